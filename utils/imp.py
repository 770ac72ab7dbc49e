"""Algorithm 1 of the paper: iterative magnitude pruning (IMP) with rewinding, for every task."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from utils import files
from utils.config import ImpConfig, TrainingConfig
from utils.errors import UserError
from utils.modeling import saving
from utils.pruning import mask_files, masks
from utils.pruning.origin import Origin
from utils.runs.console import format_duration, say
from utils.runs.evaluation import Evaluator, print_scores
from utils.runs.monitor import Monitor
from utils.runs.records import MaskInfo
from utils.runs.run import Experiment, Run
from utils.runs.tickets import Ticket, restore_tickets, write_tickets
from utils.training import distributed
from utils.training.optimizer import linear_schedule
from utils.training.order import DataOrder, seed_round
from utils.training.trainer import StepPlan, Trainer

SPARSITIES = tuple(k / 10 for k in range(1, 10))  # 10 %, 20 %, ..., 90 %


@dataclass(frozen=True)
class ImpSchedule:
    """The rounds of Algorithm 1, counted from 0; utils/released.py overrides some of it.

    The last round has no target: it trains and scores the sparsest subnetwork.
    """

    training: TrainingConfig
    order: DataOrder
    sparsities: tuple[float, ...]  # after round 0, 1, ...
    round_steps: int  # t, the optimizer steps of a round
    total_steps: int  # of the whole run: --max_steps, or those of the epochs
    rewind_steps: int = 0  # i: rewind to theta_i
    rewinds: bool = True  # False: standard pruning

    @classmethod
    def from_config(cls, imp: ImpConfig, experiment: Experiment) -> Self:
        """Return the schedule that the flags ask for. Raises UserError if they conflict."""
        if imp.no_rewind and imp.rewind_steps:
            raise UserError("--no_rewind and --rewind_steps exclude each other; give one")
        training = experiment.config.training
        order = DataOrder.from_config(experiment.task.train_rows, training, experiment.runtime)
        total = order.total_steps(training.max_steps, training.num_train_epochs)
        return cls(
            training=training,
            order=order,
            sparsities=tuple(imp.sparsities or SPARSITIES),
            round_steps=total // 10 if training.save_steps is None else training.save_steps,
            total_steps=total,
            rewind_steps=imp.rewind_steps,
            rewinds=not imp.no_rewind,
        )

    def check(self) -> None:
        """Raise UserError naming the flag if the rounds are impossible."""
        neighbours = itertools.pairwise((0.0, *self.sparsities))
        if not all(a < b for a, b in neighbours) or self.sparsities[-1] > 1:
            raise UserError("--sparsities must rise strictly between 0 and 1, such as 0.2 0.5 0.9")
        length_flag = "--max_steps" if self.training.max_steps > 0 else "--num_train_epochs"
        if self.round_steps < 1:
            flag = length_flag if self.training.save_steps is None else "--save_steps"
            raise UserError(
                f"{flag} is too low: a round of IMP, --save_steps or a tenth of the run of "
                f"{self.total_steps} steps, must be at least 1 step"
            )
        if self.rounds < 1:
            raise UserError(
                f"--save_steps {self.round_steps} is longer than the run of {self.total_steps} "
                f"steps; lower it, or raise {length_flag}"
            )
        if not 0 <= self.rewind_steps < self.round_steps:
            raise UserError(
                f"--rewind_steps {self.rewind_steps} must lie within a round of {self.round_steps} "
                "steps"
            )

    @property
    def rounds(self) -> int:
        """Number of rounds: one per sparsity and a last one, or as many as fit into the run."""
        return min(len(self.sparsities) + 1, self.total_steps // self.round_steps)

    def steps(self, round_: int) -> int:
        """Return the optimizer steps of `round_`, including the first i."""
        return self.round_steps

    def offset(self, round_: int) -> int:
        """Return the global step at which `round_` starts."""
        return round_ * self.round_steps

    def first_step(self, round_: int) -> int:
        """Return the first step of `round_`: 0 in round 0, which trains to theta_i, else i."""
        return self.rewind_steps if round_ else 0

    def target(self, round_: int) -> float | None:
        """Return the sparsity to prune to after `round_`, None after the last."""
        return self.sparsities[round_] if round_ < len(self.sparsities) else None

    def plan(self, round_: int) -> StepPlan:
        """Return learning rates (linear to zero over the round) and batches of `round_`."""
        config = self.training
        rate = linear_schedule(config.learning_rate, self.steps(round_), config.warmup_steps)
        return StepPlan(self.steps(round_), rate, lambda step: self.batches(round_, step))

    def batches(self, round_: int, step: int) -> list[np.ndarray]:
        """Return the training rows of each batch of `step`."""
        return self.order.batches(round_, step)

    def prune(self, model: nn.Module, target: float) -> None:
        """Prune to `target` by magnitude; `masks.prune_to` also accepts another criterion."""
        masks.prune_to(model, target)

    def prune_before(self, model: nn.Module) -> float:
        """Prune before the first round and return the sparsity; Algorithm 1 starts dense."""
        return 0.0

    def seed_generators(self, round_: int, rank: int) -> None:
        """Seed the global generators at the start of `round_`."""
        seed_round(self.order.seed, round_, rank)

    def rewind(self, model: nn.Module, theta: dict[str, torch.Tensor]) -> None:
        """Restore theta_i and gamma_i."""
        if self.rewinds:
            masks.rewind(model, theta)

    def origin(self, task: str, sparsity: float) -> Origin:
        """Return the origin of a mask that this schedule finds on `task`."""
        return Origin(
            method="imp",
            task=task,
            seed=self.training.seed,
            rewind="theta_i" if self.rewinds else "none",
            rewind_steps=self.rewind_steps,
            rewind_fraction=self.rewind_steps / self.round_steps,
            as_released=False,
            sparsity=sparsity,
        )


def run(experiment: Experiment, schedule: ImpSchedule) -> None:
    """Find tickets in the output folder of the experiment and print the scores of the rounds."""
    schedule.check()
    masks.attach(experiment.model)  # m = 1
    training = experiment.config.training
    defaults = {"save_steps": schedule.total_steps // 10, "sparsities": list(SPARSITIES)}
    with Run.open(experiment, defaults) as run_:
        if run_.finished:
            return
        trainer, evaluator = experiment.trainer(), Evaluator(run_, "imp")
        tickets = TicketWriter(run_, schedule, evaluator)
        during = training.logging_steps if training.evaluate_during_training else 0
        total = schedule.rounds * schedule.round_steps
        periodic = [(during, 0, tickets.score_within_round)]
        with Monitor(trainer, evaluator, total, periodic) as monitor:
            find_tickets(trainer, schedule, tickets, monitor)
        run_.finish()
        records = [record for record in run_.records() if record.final]
        print_scores(experiment.task, records)


def find_tickets(
    trainer: Trainer, schedule: ImpSchedule, tickets: "TicketWriter", monitor: Monitor
) -> None:
    """Run Algorithm 1; each round writes a ticket and a checkpoint, from which runs resume."""
    model, rank = trainer.model, trainer.runtime.rank
    theta = masks.snapshot(model) if schedule.rewinds else {}  # theta_0, gamma_0
    tickets.initial_sparsity = schedule.prune_before(model)
    round_, start = monitor.resume(tickets) or (0, 0)
    theta = tickets.theta or theta
    while round_ < schedule.rounds:
        monitor.begin_round(round_, schedule.offset(round_), start)
        if start == schedule.first_step(round_):
            schedule.seed_generators(round_, rank)
        if round_ == 0 and schedule.rewind_steps and start <= schedule.rewind_steps:
            theta = train_to_theta_i(trainer, schedule, start, tickets, monitor)
            start = schedule.rewind_steps
        seed_path = (schedule.order.seed, round_)
        # train m * theta_i, gamma_i to step t
        trainer.train(schedule.plan(round_), start, seed_path, monitor.after_step)
        monitor.read_losses()
        score = tickets.score(round_)
        trainer.release_memory()  # pruning and saving need memory
        with tickets.round_folder(round_) as folder:
            target = schedule.target(round_)
            if target is not None:
                schedule.prune(model, target)
                tickets.add(round_, folder)
        tickets.publish(round_, score, monitor.time_left())
        schedule.rewind(model, theta)
        trainer.reset_optimizer()
        round_, start = round_ + 1, schedule.first_step(round_ + 1)
        monitor.save_checkpoint(round_, start)


def train_to_theta_i(
    trainer: Trainer, schedule: ImpSchedule, start: int, tickets: "TicketWriter", monitor: Monitor
) -> dict[str, torch.Tensor]:
    """Train from step `start` of the first round to step i; save and return theta_i, gamma_i."""
    # start == i after a stop at step i: no step is left, but theta_i is not saved yet
    plan = dataclasses.replace(schedule.plan(0), steps=schedule.rewind_steps)
    trainer.train(plan, start, (schedule.order.seed, 0), monitor.after_step)
    theta = masks.snapshot(trainer.model)
    tickets.save_theta(theta)
    trainer.reset_optimizer()  # as every later round starts
    return theta


class TicketWriter:
    """Writes the tickets of a run: a folder per round with subnetwork and mask, and their index."""

    def __init__(self, run_: Run, schedule: ImpSchedule, evaluator: Evaluator) -> None:
        self.run, self.schedule, self.evaluator = run_, schedule, evaluator
        self.experiment = run_.experiment
        self.initial_sparsity = 0.0  # of the first round
        self.tickets: list[Ticket] = []  # one per round, in order
        self.theta: dict[str, torch.Tensor] = {}  # theta_i, gamma_i of an interrupted run
        self._theta_file = run_.path / files.REWIND_WEIGHTS
        self._theta_digest: str | None = None
        self._started = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return the tickets so far and the digest of theta_i, for a checkpoint."""
        tickets = [dataclasses.asdict(ticket) for ticket in self.tickets]
        return {"tickets": tickets, "theta_digest": self._theta_digest}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore tickets, tickets.json and theta_i. Raises UserError if a file was changed."""
        round_, i = state["round"], self.schedule.rewind_steps
        rounds = [r + 1 for r in range(round_) if self.schedule.target(r) is not None]
        shapes = masks.shapes(self.experiment.model)
        self.tickets = restore_tickets(self.run.path, state.get("tickets"), rounds, shapes)
        if self.tickets and self.experiment.runtime.is_main:
            self._write_index()
        if i and (round_ or state["step"] > i):
            theta = mask_files.load_tensors(self._theta_file, "weight")
            self._theta_digest = state.get("theta_digest")
            if self._theta_digest not in (None, files.file_digest(self._theta_file)):
                raise UserError(f"{self._theta_file}: not the weights that this run saved")
            self.theta = {name: theta[name] for name, _ in masks.parameters(self.experiment.model)}

    def score(self, round_: int, step: int | None = None) -> float | None:
        """Evaluate the subnetwork at the end of `round_`, or at global `step` within it."""
        if not self.experiment.config.training.do_eval:
            return None
        end = (round_ + 1) * self.schedule.round_steps
        mask_info, final = self._mask_in_training(), step is None
        return self.evaluator.evaluate(step or end, mask_info, round_ + 1, final=final, last=False)

    def score_within_round(self, step: int) -> None:
        """Evaluate at global `step`, unless a round ends there and is evaluated in any case."""
        if step % self.schedule.round_steps:
            self.score(step // self.schedule.round_steps, step)

    def _mask_in_training(self) -> MaskInfo:
        if self.tickets:
            ticket = self.tickets[-1]
            path = self.run.path / ticket.mask
            origin = self._origin(ticket.sparsity)
            return MaskInfo(ticket.sparsity, str(path), ticket.mask_sha256, origin)
        sparsity = self.initial_sparsity
        return MaskInfo(sparsity, origin=self._origin(sparsity) if sparsity else None)

    def _origin(self, sparsity: float) -> Origin:
        return self.schedule.origin(self.experiment.task.name, sparsity)

    def _folder(self, round_: int) -> Path:
        """Return checkpoint-STEP, where STEP is the global step at which `round_` ends."""
        return self.run.path / files.model_folder_name((round_ + 1) * self.schedule.round_steps)

    @contextlib.contextmanager
    def round_folder(self, round_: int) -> Iterator[Path | None]:
        """Yield the folder of `round_` with the trained subnetwork; None on ranks above 0."""
        if not self.experiment.runtime.is_main:
            yield None
            return
        experiment = self.experiment
        with files.atomic_folder(self._folder(round_)) as folder:
            if experiment.config.training.save_total_limit != 0:
                saving.save_pretrained(experiment.model, experiment.task.tokenizer, folder)
            yield folder

    def add(self, round_: int, folder: Path | None) -> None:
        """Save the mask pruned after `round_` in `folder`; raises if the ranks disagree on it."""
        mask = masks.current(self.experiment.model)
        sparsity = round(masks.sparsity(mask), 9)
        if folder is None:
            digest = masks.digest(mask)
        else:
            digest = mask_files.save(mask, folder / files.MASK, self._origin(sparsity))
        if len(set(distributed.gather(digest))) > 1:
            raise RuntimeError(f"the processes disagree on the mask of round {round_ + 1}")
        path = f"{self._folder(round_).name}/{files.MASK}"
        self.tickets.append(Ticket(round_ + 1, sparsity, path, digest))

    def publish(self, round_: int, score: float | None, time_left: float) -> None:
        """Write the index with the score of `round_`, remove old subnetworks, and print a line."""
        if round_:
            self.tickets[round_ - 1].score = score  # this round has trained that mask
        if not self.experiment.runtime.is_main:
            return
        self._write_index()
        limit = self.experiment.config.training.save_total_limit
        if limit is not None and round_ >= limit:
            for name in files.MODEL_FILES:
                (self._folder(round_ - limit) / name).unlink(missing_ok=True)
        say(self._line(round_, score, time_left))

    def _write_index(self) -> None:
        task, seed = self.experiment.task.name, self.experiment.config.training.seed
        write_tickets(self.run.path, task, seed, self.tickets)

    def _line(self, round_: int, score: float | None, time_left: float) -> str:
        trained = self.tickets[round_ - 1].sparsity if round_ else self.initial_sparsity
        found = self.tickets[round_:]  # none after the last round
        pruned = "".join(f"  pruned to {t.sparsity:.1%}: {self.run.path / t.mask}" for t in found)
        scored = "" if score is None else f"  {self.experiment.task.score_key} {score:6.2f}"
        spent = format_duration(time.monotonic() - self._started)  # in this round
        self._started = time.monotonic()
        is_last = round_ + 1 == self.schedule.rounds
        left = "" if is_last else f", {format_duration(time_left)} left"
        number = f"round {round_ + 1:2d}/{self.schedule.rounds}"
        return f"{number}  sparsity {trained:6.1%}{scored}{pruned}  ({spent}{left})"

    def save_theta(self, theta: dict[str, torch.Tensor]) -> None:
        """Save theta_i and gamma_i: a resumed run and --weight_pertub read them."""
        if self.experiment.runtime.is_main:
            origin = dataclasses.replace(self._origin(0.0), mode="rewound")
            saving.save_weights(theta, self._theta_file, origin)
            self._theta_digest = files.file_digest(self._theta_file)
