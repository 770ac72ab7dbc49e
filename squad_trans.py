"""SQuAD: with --dir, train a subnetwork; without it, find lottery tickets (Algorithm 1)."""

from dataclasses import dataclass

from utils import cli, files
from utils.config import (
    ImpConfig,
    RunConfig,
    SquadConfig,
    SubnetworkConfig,
    TrainingConfig,
    defaults,
)
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """The flags of this script."""

    data: SquadConfig
    imp: ImpConfig
    subnetwork: SubnetworkConfig = defaults(dir=None)
    training: TrainingConfig = defaults(
        per_gpu_train_batch_size=16, learning_rate=3e-5, num_train_epochs=4.0
    )

    def __post_init__(self) -> None:
        subnetwork, rounds = self.subnetwork, self.imp
        if subnetwork.dir is None and (subnetwork.mask_dir or subnetwork.weight_pertub):
            raise UserError(
                "--mask_dir and --weight_pertub train a ticket: give --dir pre or --dir rand with "
                "them"
            )
        if subnetwork.dir and (rounds.sparsities or rounds.rewind_steps or rounds.no_rewind):
            raise UserError(
                "--sparsities, --rewind_steps and --no_rewind are for finding tickets: leave out "
                "--dir with them"
            )

    @property
    def finds_tickets(self) -> bool:
        """Whether the script runs IMP."""
        return self.subnetwork.dir is None and self.training.do_train


def main() -> None:
    """Run Algorithm 1, or train and score a subnetwork, or evaluate the model given."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune, imp, released
        from utils.runs.run import Experiment, start_runtime
        from utils.tasks.squad import SquadTask

    runtime = start_runtime(config.training)
    # data
    data = released.squad_config(config.data) if config.training.as_released else config.data
    task = SquadTask.load(data, config.model, config.training, config.output)
    if config.training.do_train:
        job = "finds tickets (IMP) without" if config.finds_tickets else "trains one network with"
        files.log.info(f"squad_trans.py {job} --dir")

    # model (pre-trained, random or perturbed weights)
    experiment = Experiment.prepare(task, config, runtime, config.subnetwork)
    if config.training.as_released:
        experiment = released.apply(experiment)

    # mask m = 1, then rounds of training, pruning and rewinding
    if config.finds_tickets:
        schedule = imp.ImpSchedule.from_config(config.imp, experiment)
        if config.training.as_released:
            schedule = released.schedule(schedule, experiment)
        imp.run(experiment, schedule)
        return

    # or the mask given: train and evaluate
    mask_info = finetune.attach_mask(experiment.model, config.subnetwork.mask_dir)
    if config.training.do_train:
        plan = finetune.plan_steps(experiment)
        if config.training.as_released:
            plan = released.plan(plan, experiment)
        finetune.run(experiment, plan, mask_info)
    else:
        finetune.evaluate(experiment, mask_info)


if __name__ == "__main__":
    cli.run(main)
