"""Train a subnetwork of BERT, or the dense model, on a GLUE task, as the paper scores tickets."""

from dataclasses import dataclass

from utils import cli
from utils.config import GlueConfig, RunConfig, SubnetworkConfig, TrainingConfig, flag


@dataclass(frozen=True)
class PredictingConfig(TrainingConfig):
    """Training, evaluation and prediction (defaults: Table 1)."""

    MODES = (*TrainingConfig.MODES, "do_predict")

    do_predict: bool = flag(
        False,
        "write the predictions on the test set for gluebenchmark.com, such as RTE.tsv, with the "
        "trained model, or without --do_train the model given (ours)",
    )


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """The flags of this script."""

    data: GlueConfig
    subnetwork: SubnetworkConfig
    training: PredictingConfig


def main() -> None:
    """Train and score the subnetwork, or without --do_train evaluate the model given."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune, released
        from utils.runs.run import Experiment, start_runtime
        from utils.tasks.glue import GlueTask

    runtime = start_runtime(config.training)

    # data
    task = GlueTask.load(config.data, config.model, config.training, config.output)

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
