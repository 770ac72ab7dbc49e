"""One optimizer step, and the loop of steps: forward, backward, clip, AdamW, for any task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.config import TrainingConfig
from utils.data.seeds import TASK, derive_seed
from utils.modeling.bert import BertTaskModel, compile_layers
from utils.modeling.packing import Batch
from utils.modeling.runtime import Runtime
from utils.tasks.base import Task
from utils.training.cuda_graphs import CudaGraphs
from utils.training.distributed import loss_module
from utils.training.memory import keep_freed_memory
from utils.training.optimizer import PaperAdamW

# Called after a step: its number in the round (from 1), learning rate, loss, gradient norm, rows
AfterStep = Callable[[int, float, torch.Tensor, torch.Tensor, list[np.ndarray]], None]
ACTIVATION_BYTES = 1e9  # on a CPU, a batch that would keep more is split into micro-batches


@dataclass(frozen=True)
class StepPlan:
    """The steps of a round: how many, and the learning rate and row numbers of each (from 0)."""

    steps: int
    learning_rate: Callable[[int], float]
    batches: Callable[[int], list[np.ndarray]]
    evaluate_early: int = 0  # steps by which evaluations during training come early


class Trainer:
    """A model in training on a task, with its optimizer.

    The model moves to the device of `runtime`. With `config.compile`, its encoder layers are
    compiled, and on one GPU forward and backward passes run as CUDA graphs.
    """

    def __init__(
        self,
        model: BertTaskModel,
        task: Task,
        config: TrainingConfig,
        runtime: Runtime,
        optimizer_class: type[PaperAdamW] = PaperAdamW,
    ) -> None:
        device = runtime.device
        self.release_memory = keep_freed_memory(device)
        if config.compile:
            compile_layers(model)
        self.model: BertTaskModel = nn.Module.to(model, device)  # transformers' `to` is untyped
        self.task, self.config, self.runtime = task, config, runtime
        self.scaler = torch.amp.GradScaler(device.type, enabled=runtime.precision == "fp16")
        self._optimizer_class = optimizer_class
        self._loss = loss_module(model, task, runtime)
        self._parameters = list(model.parameters())  # listed once: this takes time
        self.graphs: CudaGraphs | None = None
        if config.compile and device.type == "cuda" and runtime.world_size == 1:
            self.graphs = CudaGraphs(self.losses, self._parameters)
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Start with a new optimizer, as every round does."""
        self.optimizer = self._optimizer_class(self.model, self.config)

    def step(
        self, batches: list[np.ndarray], learning_rate: float, seed_path: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimizer step on the mean loss over `batches`; `seed_path`: seed, round, step.

        Returns the loss, [], and the gradient norm before clipping, [].
        """
        self.optimizer.set_lr(learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.runtime.device)
        count = min(len(batches), self.config.gradient_accumulation_steps)
        for number, rows, share in self.micro_batches(batches):
            seed = derive_seed(*seed_path, number, TASK)
            batch = self.task.train_batch(rows, seed, self.runtime)
            if self.graphs:
                total += self.graphs.backward(batch.bucketed(), count, share)
            else:
                scaled, loss = self.losses(batch, count, share)
                scaled.backward()
                total += loss
        self.runtime.sum(total)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total, norm

    def losses(self, batch: Batch, count: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a micro-batch adds to the step's loss, []: scaled for backward, and detached.

        The step divides the sum of its batches' losses by `count`. The micro-batch holds the
        fraction `share` of the rows of its batch.
        """
        with self.runtime.autocast():
            loss = self._loss(batch) / count * share
        # DistributedDataParallel averages over the processes, but their losses must add up.
        return self.scaler.scale(loss * self.runtime.world_size), loss.detach()

    def micro_batches(self, batches: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray, float]]:
        """Yield (number of the batch, rows of a micro-batch, their fraction of the batch).

        The loss of a batch is the sum of its micro-batches' mean losses times these fractions.
        """
        for number, rows in enumerate(batches):
            parts = [rows]
            lengths = self.task.row_lengths(rows) if self.runtime.device.type == "cpu" else None
            if lengths is not None:
                count = math.ceil(self.activation_bytes(lengths) / ACTIVATION_BYTES)
                parts = split_by_length(rows, lengths, count) if count > 1 else parts
            for part in parts:
                yield number, part, len(part) / len(rows)

    def activation_bytes(self, lengths: np.ndarray) -> float:
        """Estimate the bytes per process that the backward pass of rows of these lengths needs."""
        c = self.model.config
        attention = 4 * c.num_attention_heads * int(lengths.max())
        per_token = 12 * c.hidden_size + 2 * c.intermediate_size + attention
        return 4 * c.num_hidden_layers * per_token * int(lengths.sum()) / self.runtime.world_size

    def train(
        self, plan: StepPlan, start: int, seed_path: tuple[int, ...], after_step: AfterStep
    ) -> None:
        """Take the steps `start` to `plan.steps` of a round; `seed_path` is (seed, round)."""
        self.model.train()
        self.release_memory()
        for step in range(start, plan.steps):
            learning_rate, batches = plan.learning_rate(step), plan.batches(step)
            loss, norm = self.step(batches, learning_rate, (*seed_path, step))
            self.release_memory(spare=2 * ACTIVATION_BYTES)
            after_step(step + 1, learning_rate, loss, norm, batches)
        self.model.zero_grad(set_to_none=True)
        self.release_memory()

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_steps": self.optimizer.steps,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore model, masks, optimizer and scaler from `state()`."""
        self.model.load_state_dict(state["model"])
        self.reset_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.steps = state["optimizer_steps"]
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def split_by_length(rows: np.ndarray, lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """Split `rows` into at most `count` parts of about equally many tokens, longest rows first."""
    order = np.argsort(-lengths, kind="stable")
    tokens = np.cumsum(lengths[order])
    bounds = np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count)
    return [part for part in np.split(rows[order], bounds) if len(part)]
