"""Train a subnetwork of BERT, or the dense model, on masked language modelling."""

from dataclasses import dataclass

from utils import cli
from utils.config import (
    ModelConfig,
    RunConfig,
    SubnetworkConfig,
    TextConfig,
    TrainingConfig,
    defaults,
)
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """The flags of this script."""

    data: TextConfig
    subnetwork: SubnetworkConfig
    model: ModelConfig = defaults(model_name_or_path=None)
    training: TrainingConfig = defaults(
        per_gpu_train_batch_size=16, learning_rate=5e-5, num_train_epochs=1.0
    )

    def __post_init__(self) -> None:
        if self.subnetwork.dir == "pre" and self.model.model_name_or_path is None:
            raise UserError(
                "--dir pre needs --model_name_or_path, the model to start from; or give --dir rand"
            )


def main() -> None:
    """Train and score the subnetwork, or without --do_train evaluate the model given."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune, released
        from utils.runs.run import Experiment, start_runtime
        from utils.tasks.mlm import MlmTask

    runtime = start_runtime(config.training)

    # data
    task = MlmTask.load(config.data, config.model, config.training, config.output)

    # model (pre-trained, random or perturbed weights) and mask
    experiment = Experiment.prepare(task, config, runtime, config.subnetwork)
    mask_info = finetune.attach_mask(experiment.model, config.subnetwork.mask_dir)
    if config.training.as_released:
        experiment = released.apply(experiment)
    if not config.training.do_train:
        finetune.evaluate(experiment, mask_info)
        return

    # train and evaluate
    plan = finetune.plan_steps(experiment)
    if config.training.as_released:
        plan = released.plan(plan, experiment)
    finetune.run(experiment, plan, mask_info)


if __name__ == "__main__":
    cli.run(main)
