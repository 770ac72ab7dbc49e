"""One optimizer step and the loop of steps: forward, backward, clip, AdamW, for any task."""

import contextlib
import ctypes
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils import distributed
from utils.graphs import Graphs
from utils.optim import ReleasedAdamW
from utils.rows import Batch

RESIDENT = "/proc/self/statm"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT = (
    2**25
)  # bytes, the most that glibc allows: larger blocks go back at once, or the gaps they leave add up
ACTIVATION_BYTES = (
    1e9  # on a CPU a batch that would keep more for its backward pass is worked on in parts
)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of training; the defaults are Table 1's."""

    learning_rate: float
    batch_size: int
    accumulation: int = 1
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    precision: str = "fp32"  # or "fp16", "bf16": autocast
    fused: bool = True  # AdamW in one kernel; --as_released rounds as its single operations do


@dataclass(frozen=True)
class Plan:
    """What the steps of one round are: their number, the learning rate of each, and the batches of each."""

    steps: int
    rate: Callable[[int], float]
    batches: Callable[[int], list[np.ndarray]]


class Trainer:
    """A model in training: its task, optimizer and device.

    `task` gives `train_batch(rows, place, device)` and `loss(model, batch)`; `place` (seed, round, step, batch) seeds what
    the task draws itself; `lengths(rows)` tells the tokens of each row, or None where a batch goes through the model whole.
    `recorded`: forward and backward passes as CUDA graphs (in one process).
    """

    def __init__(
        self, model: nn.Module, task, recipe: Recipe, device: torch.device, recorded: bool = False
    ):
        self.give_back = keep_freed_memory(device)
        self.model, self.task, self.recipe, self.device = model.to(device), task, recipe, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.loss = distributed.loss_module(model, task)
        self.parameters = list(
            model.parameters()
        )  # once: to find them takes as long as a third of the clipping
        self.graphs = Graphs(self.losses, self.parameters) if recorded else None
        self.restart()

    def restart(self) -> None:
        """A new optimizer, as at the start of every round."""
        r = self.recipe
        self.optimizer = ReleasedAdamW(
            self.model, r.learning_rate, r.adam_epsilon, r.weight_decay, r.fused
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of the forward pass."""
        return autocast(self.device, self.recipe.precision)

    def step(
        self, batches: list[np.ndarray], rate: float, place: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on the mean loss over `batches`; that loss and the gradient norm before clipping."""
        self.optimizer.set_lr(rate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, part, share in self.parts(batches):
            batch = self.task.train_batch(part, (*place, number), self.device)
            if self.graphs:
                total += self.graphs.backward(batch.evened(), len(batches), share)
            else:
                scaled, loss = self.losses(batch, len(batches), share)
                scaled.backward()
                total += loss
        distributed.total(total)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total, norm

    def losses(self, batch: Batch, count: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`share` of the mean loss of one of `count` batches: scaled for the backward pass, and detached as it is."""
        with self.autocast():
            loss = self.loss(batch) / count * share
        # DistributedDataParallel takes the mean over the processes; the batch's mean is the sum of their shares
        return self.scaler.scale(loss * distributed.size()), loss.detach()

    def parts(self, batches: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray, float]]:
        """What goes through the model at once: number of the batch, its rows or a part of them, which share of it that is.

        Parts hold rows of like length; their losses, weighted by share, have the batch's mean loss and gradients as sum.
        """
        for number, rows in enumerate(batches):
            lengths = self.task.lengths(rows) if self.device.type == "cpu" else None
            count = (
                1
                if lengths is None
                else math.ceil(self.activation_bytes(lengths) / ACTIVATION_BYTES)
            )
            for part in [rows] if count == 1 else alike(rows, lengths, count):
                yield number, part, len(part) / len(rows)

    def activation_bytes(self, lengths: np.ndarray) -> float:
        """About how much a forward pass over rows of these lengths keeps for the backward pass, in each process."""
        c = self.model.config
        numbers = (
            12 * c.hidden_size
            + 2 * c.intermediate_size
            + 4 * c.num_attention_heads * int(lengths.max())
        )
        return 4 * c.num_hidden_layers * numbers * int(lengths.sum()) / distributed.size()

    def train(self, plan: Plan, start: int, place: tuple[int, ...], watch) -> None:
        """Take the steps `start` to `plan.steps`, telling `watch` of each."""
        self.model.train()
        self.give_back(0)  # what a round's end and its files have left
        for step in range(start, plan.steps):
            rate, batches = plan.rate(step), plan.batches(step)
            loss, norm = self.step(batches, rate, (*place, step))
            self.give_back()
            watch.after_step(step + 1, rate, loss, norm, batches)
        self.model.zero_grad(set_to_none=True)
        self.give_back(0)  # evaluation needs room too

    def state(self) -> dict:
        """Everything a later process needs to go on: tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_steps": self.optimizer.steps,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict) -> None:
        """Put model, masks, optimizer and scaler back in place."""
        self.model.load_state_dict(state["model"])
        self.restart()
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.steps = state["optimizer_steps"]
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast to `precision` ("fp32" leaves everything as it is)."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(
        device.type, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    )


def alike(rows: np.ndarray, lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """`rows` sorted by length, in at most `count` parts of about equally many tokens, none empty."""
    order = np.argsort(-lengths, kind="stable")
    upto = np.cumsum(lengths[order])
    bounds = np.searchsorted(upto, upto[-1] * np.arange(1, count) / count)
    return [part for part in np.split(rows[order], bounds) if len(part)]


def keep_freed_memory(device: torch.device) -> Callable[..., None]:
    """Let the C library keep freed memory for the next step: giving it back and fetching it anew costs 13 % of a CPU step.

    Returns what is to be called after every step: rows of ever other lengths leave gaps that would add up to gigabytes, so
    it gives back what is free once that is more than a step needs. Both do nothing but on a CPU under Linux with glibc.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if device.type != "cpu" or mallopt is None or trim is None or not os.path.exists(RESIDENT):
        return lambda spare=0: None
    for option, value in ((M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)
    in_use = -math.inf

    def give_back(spare: float = 2 * ACTIVATION_BYTES) -> None:
        nonlocal in_use
        if resident_bytes() > in_use + spare:
            trim(0)
            in_use = resident_bytes()

    return give_back


def resident_bytes() -> int:
    """This process's memory that is in the machine's own, on Linux."""
    with open(RESIDENT, encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
