"""Algorithm 1 of the paper: iterative magnitude pruning with rewinding; the only loop of rounds, for every task."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import distributed, files, masks, models, report, seeds
from utils.errors import UserError
from utils.optim import linear_schedule
from utils.run import Run
from utils.training import Plan, Recipe, Trainer
from utils.watch import Watch

SPARSITIES = tuple(k / 10 for k in range(1, 10))  # 10 %, 20 %, ..., 90 %


@dataclass(frozen=True)
class Policy:
    """How the rounds of IMP go. The defaults are Algorithm 1; the released code's ways are switched on one by one."""

    sparsities: tuple[float, ...]  # after round 1, 2, ...
    round_steps: int  # t, optimizer steps of a round
    total_steps: int  # of the whole run, as epochs or --max_steps give it
    rewind_steps: int = 0  # i: rewind to theta_i
    rewind: str = "theta_i"  # or "encoder": bert.* but not the head; or "none": standard pruning
    schedule_over_run: bool = False  # learning rate linear over all rounds, restarted every round
    data_run_on: bool = False  # a round takes up the rows where the last one stopped
    prune_first: bool = False  # prune theta_0 before the first round
    short_first_round: bool = False  # the first round is one step shorter
    last_round: bool = True  # train and score the sparsest subnetwork too, in a round of its own

    @property
    def wanted(self) -> int:
        """Rounds that the sparsities ask for."""
        return len(self.sparsities) - self.prune_first + self.last_round

    @property
    def rounds(self) -> int:
        """Rounds that the run has room for."""
        return min(self.wanted, (self.total_steps + self.short_first_round) // self.round_steps)

    def steps(self, round_: int) -> int:
        """Optimizer steps of `round_` (from 0), those before the rewinding point included."""
        return self.round_steps - (self.short_first_round and round_ == 0)

    def start(self, round_: int) -> int:
        """The step that `round_` begins at: i, but 0 in the first, which trains to theta_i itself."""
        return self.rewind_steps if round_ else 0

    def target(self, round_: int) -> float | None:
        """The sparsity to prune to after `round_`, None after the last."""
        place = round_ + self.prune_first
        return self.sparsities[place] if place < len(self.sparsities) else None

    def plan(self, round_: int, recipe: Recipe, order: seeds.Order) -> Plan:
        """Learning rates and batches of `round_`."""
        total = self.total_steps if self.schedule_over_run else self.steps(round_)
        rate = linear_schedule(recipe.learning_rate, total, recipe.warmup_steps)
        behind = round_ * self.round_steps - (self.short_first_round and round_ > 0)

        def batches(step: int):
            return (
                order.batches(0, behind + step) if self.data_run_on else order.batches(round_, step)
            )

        return Plan(self.steps(round_), rate, batches)


def check_policy(policy: Policy) -> None:
    """Raises UserError naming the flag where the rounds asked for cannot be."""
    ascending = all(
        a < b for a, b in zip((0.0, *policy.sparsities), policy.sparsities, strict=False)
    )
    if not ascending or policy.sparsities[-1] > 1:
        raise UserError("--sparsities must rise strictly between 0 and 1, such as 0.2 0.5 0.9")
    if policy.round_steps < 1:
        raise UserError(
            "--save_steps is the length of an IMP round and must be at least 1; "
            "left out, it is a tenth of the run"
        )
    if policy.wanted < 1:
        raise UserError(
            "--sparsities: the released code prunes to the first before any training; give at least two"
        )
    if policy.rounds < 1:
        raise UserError(
            f"--save_steps {policy.round_steps} is longer than the run of {policy.total_steps} steps; "
            "lower it, or raise --num_train_epochs or --max_steps"
        )
    if not 0 <= policy.rewind_steps < policy.round_steps:
        raise UserError(
            f"--rewind_steps {policy.rewind_steps} must lie within a round of {policy.round_steps} steps"
        )


def find_tickets(
    trainer: Trainer, policy: Policy, order: seeds.Order, tickets: "Tickets", watch: Watch
) -> list[dict]:
    """Run Algorithm 1; returns one entry per ticket (round, sparsity, mask file, digest, score).

    Everything is written round by round; a run that was stopped goes on where its last checkpoint was taken.
    """
    model = trainer.model
    theta = masks.snapshot(model) if policy.rewind != "none" else {}  # theta_0, gamma_0
    if policy.prune_first:
        masks.prune_to(model, policy.sparsities[0])
    first, done = watch.resume() or (0, 0)
    if (first, done) > (0, policy.rewind_steps) and policy.rewind_steps:
        theta = tickets.load_theta(theta)
    for round_ in range(first, policy.rounds):
        start = done if round_ == first else policy.start(round_)
        tickets.begin(round_)
        watch.begin_round(round_, round_ * policy.round_steps, start)
        if start == policy.start(round_) and not (policy.data_run_on and round_):
            seeds.seed_round(order.seed, round_, distributed.rank())
        plan = policy.plan(round_, trainer.recipe, order)
        if round_ == 0 and 0 < policy.rewind_steps >= start:
            theta, start = _train_to_theta_i(
                trainer, policy, plan, start, order.seed, tickets, watch
            )
        trainer.train(
            plan, start, (order.seed, round_), watch
        )  # train m * theta_i, gamma_i to step t
        watch.flush()
        score = tickets.score(round_)
        trainer.give_back(0)  # pruning and files need room
        with tickets.checkpoint(round_) as folder:
            if folder is not None:
                models.save_pretrained(model, tickets.tokenizer, folder)
            if policy.target(round_) is not None:
                masks.prune_to(model, policy.target(round_))
                tickets.add(round_, masks.current(model), folder)
        tickets.publish(round_, score, watch.time_left())
        if policy.rewind != "none":
            masks.rewind(model, theta, prefix="bert." if policy.rewind == "encoder" else "")
        trainer.restart()
        watch.save(round_ + 1, policy.start(round_ + 1))
        watch.stop_if_asked()
    return tickets.entries


def _train_to_theta_i(
    trainer: Trainer,
    policy: Policy,
    plan: Plan,
    start: int,
    seed: int,
    tickets: "Tickets",
    watch: Watch,
):
    """Train theta_0, gamma_0 to step i, keep theta_i and gamma_i, and go on with a new optimizer, as later rounds do."""
    trainer.train(Plan(policy.rewind_steps, plan.rate, plan.batches), start, (seed, 0), watch)
    theta = masks.snapshot(trainer.model)
    tickets.save_theta(theta)
    trainer.restart()
    return theta, policy.rewind_steps


class Tickets:
    """The tickets of a run: a folder a round with subnetwork and mask, the index tickets.json, and their scores.

    `evaluate(step, round, mask_row, final)` scores the model as it is, records it and returns percent points, or None
    where the user asked for no evaluation. `keep_models` bounds the subnetworks kept; masks always stay.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        task: str,
        tokenizer,
        evaluate: Callable,
        score_key: str,
        as_released: bool,
        keep_models: int | None,
    ):
        self.run, self.policy, self.tokenizer, self.evaluate = run, policy, tokenizer, evaluate
        self.task, self.score_key, self.as_released, self.keep_models = (
            task,
            score_key,
            as_released,
            keep_models,
        )
        self.entries = (files.read_json(run.folder / files.TICKETS) or {}).get("tickets", [])
        self._began = time.monotonic()

    def begin(self, round_: int) -> None:
        """Start the clock of `round_`; tickets of it and later ones, from before a fault, are found anew."""
        self.entries = [entry for entry in self.entries if entry["round"] <= round_]
        self._began = time.monotonic()

    def origin(self, sparsity: float) -> dict:
        """Where a mask of this run comes from, for its sidecar and the results rows."""
        p = self.policy
        return {
            "method": "imp",
            "task": self.task,
            "sparsity": sparsity,
            "seed": self.run.arguments.get("seed"),
            "rewind": p.rewind,
            "rewind_steps": p.rewind_steps,
            "rewind_fraction": p.rewind_steps / p.round_steps,
            "as_released": self.as_released,
        }

    def mask_row(self, round_: int) -> dict:
        """What a results row says of the mask that `round_` trains with."""
        entry = self.entries[-1] if self.entries else None
        if entry is None and self.policy.prune_first:
            first = self.policy.sparsities[0]
            return {
                "sparsity": first,
                "mask": None,
                "mask_sha256": None,
                "mask_info": self.origin(first),
            }
        if entry is None:
            return {"sparsity": 0.0, "mask": None, "mask_sha256": None, "mask_info": None}
        return {
            "sparsity": entry["sparsity"],
            "mask": str(self.run.folder / entry["mask"]),
            "mask_sha256": entry["mask_sha256"],
            "mask_info": self.origin(entry["sparsity"]),
        }

    def score(self, round_: int, step: int | None = None) -> float | None:
        """Evaluate the subnetwork in training: at the end of `round_`, or at global `step` within it."""
        end = (round_ + 1) * self.policy.round_steps
        return self.evaluate(step or end, round_ + 1, self.mask_row(round_), step is None)

    def checkpoint(self, round_: int):
        """The folder of `round_`, written whole by the first process; None to the others."""
        return (
            files.folder_written_whole(self.folder(round_))
            if distributed.first()
            else contextlib.nullcontext()
        )

    def folder(self, round_: int) -> Path:
        """checkpoint-STEP, STEP being the global step at which `round_` ends."""
        return self.run.folder / files.checkpoint_name((round_ + 1) * self.policy.round_steps)

    def add(self, round_: int, mask: masks.Mask, folder: Path | None) -> None:
        """Save the mask pruned after `round_` in `folder` and enter it in the list; all processes must have the same.

        Its score is not known before the next round has trained it.
        """
        sparsity, sha256 = round(masks.sparsity(mask), 9), masks.digest(mask)
        distributed.check_same(sha256, f"mask of round {round_ + 1}")
        if folder is not None:
            masks.save(mask, folder / files.MASK, self.origin(sparsity))
        path = f"{self.folder(round_).name}/{files.MASK}"
        self.entries.append(
            {
                "round": round_ + 1,
                "sparsity": sparsity,
                "mask": path,
                "mask_sha256": sha256,
                "score": None,
            }
        )

    def publish(self, round_: int, score: float | None, time_left: float) -> None:
        """Enter the score in the index and write it, drop subnetworks over the limit, and print the line of `round_`."""
        for entry in self.entries:
            if entry["round"] == round_:  # the ticket that this round has trained
                entry["score"] = score
        if not distributed.first():
            return
        index = {"task": self.task, "seed": self.run.arguments.get("seed"), "tickets": self.entries}
        files.write_json(self.run.folder / files.TICKETS, index)
        if self.keep_models is not None and round_ >= self.keep_models:
            for name in files.MODEL_FILES:
                (self.folder(round_ - self.keep_models) / name).unlink(missing_ok=True)
        report.say(self._line(round_, score, time_left))

    def _line(self, round_: int, score: float | None, time_left: float) -> str:
        entry = (
            self.entries[-1] if self.entries and self.entries[-1]["round"] == round_ + 1 else None
        )
        scored = "" if score is None else f"  {self.score_key} {score:6.2f}"
        pruned = (
            ""
            if entry is None
            else f"  pruned to {entry['sparsity']:.1%}: {self.run.folder / entry['mask']}"
        )
        spent = report.duration(time.monotonic() - self._began)
        left = "" if round_ + 1 == self.policy.rounds else f", {report.duration(time_left)} left"
        number = f"round {round_ + 1:2d}/{self.policy.rounds}"
        return f"{number}  sparsity {self._trained_sparsity(round_):6.1%}{scored}{pruned}  ({spent}{left})"

    def _trained_sparsity(self, round_: int) -> float:
        before = [entry["sparsity"] for entry in self.entries if entry["round"] <= round_]
        return (
            before[-1]
            if before
            else (self.policy.sparsities[0] if self.policy.prune_first else 0.0)
        )

    def save_theta(self, theta: dict[str, torch.Tensor]) -> None:
        """Keep theta_i and gamma_i: later rounds and `--weight_pertub` read them."""
        info = {**self.origin(0.0), "mode": "rewound"}
        if distributed.first():
            models.save_weights(theta, self.run.folder / files.REWIND_WEIGHTS, info)

    def load_theta(self, theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """theta_i and gamma_i of this run, named as in `theta`."""
        return models.match_names(
            masks.load_tensors(self.run.folder / files.REWIND_WEIGHTS, "weight"), theta
        )


def trained_mask(folder: Path, checkpoint: Path) -> dict | None:
    """What a results row says of the mask that the subnetwork in `checkpoint` was trained with, by the index of tickets.

    None if `folder` has no index: it is no IMP run's.
    """
    entries = (files.read_json(folder / files.TICKETS) or {}).get("tickets")
    if entries is None:
        return None
    row = {"sparsity": 0.0, "mask": None, "mask_sha256": None, "mask_info": None}
    for entry in entries:
        path = folder / entry["mask"]
        if int(path.parent.name.rpartition("-")[2]) >= int(checkpoint.name.rpartition("-")[2]):
            break
        row = {
            "sparsity": entry["sparsity"],
            "mask": str(path),
            "mask_sha256": entry["mask_sha256"],
            "mask_info": files.read_json(masks.info_path(path)),
        }
    return row
