"""The order of training rows, and the state of the global random generators."""

import functools
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from utils.config import TrainingConfig
from utils.data.seeds import ORDER, derive_seed
from utils.modeling.runtime import Runtime


@dataclass(frozen=True)
class DataOrder:
    """Batches of training rows: a new permutation each epoch. Its last batch may be short.

    The batches of a step depend on (seed, round, epoch) only, so a run resumes at any step without
    the earlier ones. At the end of an epoch, batches that do not fill a step of `accumulation`
    batches are dropped.
    """

    rows: int
    batch_size: int  # over all processes
    accumulation: int
    seed: int

    @classmethod
    def from_config(cls, rows: int, training: TrainingConfig, runtime: Runtime) -> Self:
        """Return the order that the flags ask for."""
        batch_size = training.per_gpu_train_batch_size * runtime.world_size
        return cls(rows, batch_size, training.gradient_accumulation_steps, training.order_seed)

    def total_steps(self, max_steps: int, epochs: float) -> int:
        """Return the optimizer steps of a run: `max_steps` if positive, else the epochs'."""
        return max_steps if max_steps > 0 else max(1, round(epochs * self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return max(1, math.ceil(self.rows / self.batch_size) // self.accumulation)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one epoch's permutation, used in all its steps
    def permutation(self, round_: int, epoch: int) -> np.ndarray:
        """Return the row numbers in the order of an epoch of a round, int64 [rows]."""
        seed = derive_seed(self.seed, round_, epoch, ORDER)
        return np.random.default_rng(seed).permutation(self.rows)

    def batches(self, round_: int, step: int) -> list[np.ndarray]:
        """Return the row numbers of each batch (at most `accumulation`) of a step of a round."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        size = self.accumulation * self.batch_size
        rows = self.permutation(round_, epoch)[step_of_epoch * size : (step_of_epoch + 1) * size]
        return self.split(rows)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return `rows` in batches."""
        return [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]


def seed_round(seed: int, round_: int, rank: int) -> None:
    """Seed the global generators (dropout) of a round; every rank draws other numbers."""
    torch.manual_seed(derive_seed(seed, round_, rank))


def generator_state() -> dict[str, torch.Tensor]:
    """Return the states of the global generators, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # not with --no_cuda
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_generator_state(state: dict[str, torch.Tensor]) -> None:
    """Restore the global generators from `generator_state()`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
