"""Find lottery tickets on masked language modelling: IMP with rewinding (Algorithm 1)."""

from dataclasses import dataclass

from utils import cli
from utils.config import ImpConfig, ModelConfig, RunConfig, TextConfig, TrainingConfig, defaults


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """The flags of this script."""

    data: TextConfig
    imp: ImpConfig
    model: ModelConfig = defaults(model_name_or_path=None)
    training: TrainingConfig = defaults(
        per_gpu_train_batch_size=16, learning_rate=5e-5, num_train_epochs=1.0
    )


def main() -> None:
    """Run Algorithm 1, or without --do_train evaluate the model given."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune, imp, released
        from utils.runs.run import Experiment, start_runtime
        from utils.tasks.mlm import MlmTask

    runtime = start_runtime(config.training)

    # data and model: theta_0 pre-trained, or random without --model_name_or_path
    task = MlmTask.load(config.data, config.model, config.training, config.output)
    experiment = Experiment.prepare(task, config, runtime)
    if config.training.as_released:
        experiment = released.apply(experiment)
    if not config.training.do_train:
        finetune.evaluate(experiment)
        return

    # mask m = 1, then rounds of training, pruning and rewinding
    schedule = imp.ImpSchedule.from_config(config.imp, experiment)
    if config.training.as_released:
        schedule = released.schedule(schedule, experiment)
    imp.run(experiment, schedule)


if __name__ == "__main__":
    cli.run(main)
