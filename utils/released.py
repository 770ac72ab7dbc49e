"""Every deviation of the released code from the paper that --as_released reproduces.

Each function takes an object of the paper's code (an experiment, a schedule, a plan) and returns
the released variant. docs/fidelity.md lists the deviations.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.config import SquadConfig
from utils.data.rows import Rows, batches_by_length
from utils.data.seeds import derive_seed
from utils.errors import UserError
from utils.imp import SPARSITIES, ImpSchedule
from utils.modeling.packing import Packed, pack
from utils.pruning import masks
from utils.pruning.origin import Origin
from utils.runs.run import Experiment
from utils.tasks.base import LabelledTask
from utils.tasks.glue import GlueTask
from utils.tasks.mlm import EVALUATION_SEED, MlmBatch, MlmTask
from utils.tasks.squad import SquadTask
from utils.training.optimizer import BETA1, BETA2, PaperAdamW, linear_schedule
from utils.training.order import DataOrder
from utils.training.trainer import StepPlan


def apply(experiment: Experiment) -> Experiment:
    """Return the experiment with the released task and optimizer."""
    arguments = experiment.arguments
    task = experiment.task
    if isinstance(task, GlueTask):
        task = ReleasedGlueTask(**_fields(task), length=arguments["max_seq_length"])
    elif isinstance(task, SquadTask):
        task = ReleasedSquadTask(**_fields(task), length=arguments["max_seq_length"])
    elif isinstance(task, MlmTask):
        batch_size = arguments["per_gpu_eval_batch_size"]
        task = ReleasedMlmTask(**_fields(task), batch_size=batch_size)
    return replace(experiment, task=task, optimizer_class=SingleOperationAdamW)


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in fields(instance)}


def schedule(paper: ImpSchedule, experiment: Experiment) -> "ReleasedSchedule":
    """Return the released rounds of IMP for the task of an experiment."""
    task, values = experiment.task, _fields(paper)
    values["order"] = ReleasedOrder(**_fields(paper.order))
    if experiment.arguments["sparsities"] is None:
        values["sparsities"] = (*SPARSITIES, 1.0)
    if isinstance(task, MlmTask):
        return ReleasedSchedule(**{**values, "rewinds": False}, prune_first=True)
    if not paper.rewinds:
        raise UserError("--as_released rewinds, as the released code does; leave out --no_rewind")
    return ReleasedSchedule(**values, short_first_round=isinstance(task, SquadTask))


@dataclass(frozen=True)
class ReleasedOrder(DataOrder):
    """Gradients of batches that do not fill a step are added to the next epoch's first step."""

    def batches(self, round_: int, step: int) -> list[np.ndarray]:
        """Return the batches of a step, after those that the epoch before left over."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if not epoch or step_of_epoch:
            return super().batches(round_, step)
        before = self.split(self.permutation(round_, epoch - 1))
        return before[self.steps_per_epoch * self.accumulation :] + super().batches(round_, step)


@dataclass(frozen=True)
class ReleasedSchedule(ImpSchedule):
    """The rounds of the released code.

    The learning rate is linear over all rounds and restarts every round. A rewind restores bert.*
    but not the head (GLUE, SQuAD), or nothing (MLM: its saved weights alias the live ones). The
    last prune reaches 100 %, and no round follows it. The order of the training rows and the
    random state continue over the rounds. GLUE and SQuAD keep the epochs' learning rate with
    --max_steps.
    """

    prune_first: bool = False  # MLM prunes theta_0 before any training
    short_first_round: bool = False  # SQuAD counts its steps from 1

    def check(self) -> None:
        """Raise UserError naming the flag if the rounds are impossible."""
        if len(self.sparsities) <= self.prune_first:
            raise UserError(
                "--sparsities: the released code prunes to the first before any training; give at "
                "least two"
            )
        super().check()

    @property
    def rounds(self) -> int:
        """Number of rounds: one per sparsity still to reach, if the run has room for them."""
        room = (self.total_steps + self.short_first_round) // max(1, self.round_steps)
        return min(len(self.sparsities) - self.prune_first, room)

    def steps(self, round_: int) -> int:
        """Return the optimizer steps of `round_`."""
        return self.round_steps - (self.short_first_round and round_ == 0)

    def offset(self, round_: int) -> int:
        """Return the global step at which `round_` starts; SQuAD's first is 1."""
        return max(super().offset(round_), int(self.short_first_round))

    def target(self, round_: int) -> float | None:
        """Return the sparsity to prune to after `round_`."""
        return super().target(round_ + self.prune_first)

    def plan(self, round_: int) -> StepPlan:
        """Return learning rates, linear over the whole run, and batches of `round_`."""
        config = self.training
        total = self.total_steps
        if config.max_steps > 0 and not self.prune_first:
            total = self.order.total_steps(-1, config.num_train_epochs)
        rate = linear_schedule(config.learning_rate, total, config.warmup_steps)
        return replace(super().plan(round_), learning_rate=rate)

    def batches(self, round_: int, step: int) -> list[np.ndarray]:
        """Return the batches that follow those of the round before."""
        earlier = round_ * self.round_steps - (self.short_first_round and round_ > 0)
        return self.order.batches(0, earlier + step)

    def prune_before(self, model: nn.Module) -> float:
        """Prune theta_0 to the first sparsity (MLM)."""
        if not self.prune_first:
            return 0.0
        self.prune(model, self.sparsities[0])
        return self.sparsities[0]

    def seed_generators(self, round_: int, rank: int) -> None:
        """Seed the global generators once."""
        if round_ == 0:
            super().seed_generators(round_, rank)

    def rewind(self, model: nn.Module, theta: dict[str, torch.Tensor]) -> None:
        """Restore bert.*, but not the head."""
        if self.rewinds:
            masks.rewind(model, theta, prefix="bert.")

    def origin(self, task: str, sparsity: float) -> Origin:
        """Return the origin of a mask that this schedule finds on `task`."""
        rewind = "encoder" if self.rewinds else "none"
        return replace(super().origin(task, sparsity), rewind=rewind, as_released=True)


def pack_padded(rows: Rows, indices: np.ndarray, length: int) -> Packed:
    """Pack `rows[indices]`, each padded to `length` tokens that attention does not see."""
    lengths = rows.lengths(indices)
    ids = np.zeros((len(indices), length), rows.ids.dtype)
    types = np.zeros((len(indices), length), rows.types.dtype)
    for row, index in enumerate(indices):
        ids[row, : lengths[row]], types[row, : lengths[row]] = rows[index]
    starts = np.arange(len(indices) + 1) * length
    packed = pack(Rows(ids.ravel(), types.ravel(), starts), np.arange(len(indices)))
    full = bool((lengths == length).all())
    return replace(packed, lengths=torch.from_numpy(lengths.astype(np.int64)), full=full)


@dataclass(kw_only=True)
class PaddedTask(LabelledTask):
    """Rows padded to `length` tokens, and whole batches, so that sums round as they did."""

    length: int

    def _pack(self, rows: Rows, indices: np.ndarray) -> Packed:
        return pack_padded(rows, indices, self.length)

    def _batches_by_length(self, rows: Rows) -> list[np.ndarray]:
        return batches_by_length(rows, self.length)

    def row_lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Return None: a batch is not split."""
        return None


@dataclass
class ReleasedGlueTask(PaddedTask, GlueTask):
    """GLUE with padded rows; MNLI's mismatched result replaces the matched."""

    def _metric_suffix(self, split: str) -> str:
        return ""


@dataclass(frozen=True)
class ReleasedSquadConfig(SquadConfig):
    """Answers with spaces such as U+00A0 do not train; the v2.0 rules score v1.1 files too."""

    only_word_spaces = True
    v2_scores = True


def squad_config(paper: SquadConfig) -> SquadConfig:
    """Return the released rules for finding and scoring answers."""
    return ReleasedSquadConfig(**_fields(paper))


@dataclass
class ReleasedSquadTask(PaddedTask, SquadTask):
    """SQuAD with padded windows; padding counts in the softmax and the n-best."""


@dataclass(kw_only=True)
class ReleasedMlmTask(MlmTask):
    """MLM with new evaluation masks at each step, and means over batches.

    Accuracies are weighted by all tokens; the perplexity is exp of the mean of the mean losses.
    """

    batch_size: int

    def _evaluation_batch_blocks(self, block_size: int) -> int:
        return self.batch_size

    def _evaluation_seed(self, step: int | None, block: int) -> int:
        return derive_seed(EVALUATION_SEED, step or 0, block)

    def _weights(self, batch: MlmBatch) -> tuple[int, int]:
        return batch.packed.ids.numel(), min(1, len(batch.targets))


class SingleOperationAdamW(PaperAdamW):
    """The same rule by the released optimizer's single operations, so that it rounds as they do."""

    fused = False

    def _update(self) -> None:
        for group in self.param_groups:
            step_size = group["lr"] * math.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_one(parameter, step_size)

    def _update_one(self, parameter: nn.Parameter, step_size: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # load_state_dict of torch expects it
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        parameter.addcdiv_(first, second.sqrt().add_(self.eps), value=-step_size)


def plan(paper: StepPlan, experiment: Experiment) -> StepPlan:
    """Return the released plan of a fine-tuning.

    GLUE and MLM: --max_steps N makes N + 1 steps. SQuAD: the learning rate falls over the epochs
    with --max_steps too, and evaluations come one step early: steps are counted from 1.
    """
    training, task = experiment.config.training, experiment.task
    order = ReleasedOrder.from_config(task.train_rows, training, experiment.runtime)
    found = replace(paper, batches=lambda step: order.batches(0, step))
    if not isinstance(task, SquadTask):
        return replace(found, steps=paper.steps + (training.max_steps > 0))
    total = order.total_steps(-1, training.num_train_epochs)
    rate = linear_schedule(training.learning_rate, total, training.warmup_steps)
    return replace(found, learning_rate=rate, evaluate_early=1)
