"""Find lottery tickets on a GLUE task: iterative magnitude pruning with rewinding (Algorithm 1)."""

from dataclasses import dataclass

from utils import cli
from utils.config import GlueConfig, ImpConfig, RunConfig, TrainingConfig, defaults


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """The flags of this script."""

    data: GlueConfig
    imp: ImpConfig
    training: TrainingConfig = defaults(num_train_epochs=30.0)


def main() -> None:
    """Run Algorithm 1, or without --do_train evaluate the model given."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune, imp, released
        from utils.runs.run import Experiment, start_runtime
        from utils.tasks.glue import GlueTask

    runtime = start_runtime(config.training)

    # data and model: theta_0 pre-trained, gamma_0 drawn by the seed
    task = GlueTask.load(config.data, config.model, config.training, config.output)
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
