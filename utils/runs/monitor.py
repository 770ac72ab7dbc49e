"""Between two optimizer steps: progress, logging, evaluations, checkpoints and stop signals."""

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Self

import numpy as np
import torch

from utils import files
from utils.errors import UserError
from utils.pruning import masks
from utils.runs.console import progress_bar, skip_steps
from utils.runs.evaluation import Evaluator
from utils.runs.losses import LossReader
from utils.runs.run import INPUTS, Run, input_digests
from utils.runs.signals import Preempted, handled_by, install
from utils.training import distributed, order
from utils.training.trainer import Trainer

GPU_READ_EVERY = 50  # steps between two reads of the losses on a GPU; a read waits for the device


class Monitor(contextlib.ExitStack[bool | None]):
    """Follows the optimizer steps of a run, `total_steps` in all its rounds; a context manager.

    `periodic` holds (n, early, call): `call(step)` runs `early` steps before each n-th global step,
    never if n is 0.
    """

    def __init__(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        total_steps: int,
        periodic: Sequence[tuple[int, int, Callable[[int], Any]]],
    ) -> None:
        super().__init__()
        self.trainer, self.run, self.events = trainer, evaluator.run, evaluator.events
        self.runtime, logging_steps = trainer.runtime, trainer.config.logging_steps
        self._periodic = [(logging_steps, 0, self._log), *periodic]
        self._checkpoint_seconds = 60 * self.run.experiment.config.output.checkpoint_minutes
        self._losses = LossReader(logging_steps, skips_steps=trainer.scaler.is_enabled())
        self._learning_rate = 0.0  # of the last step
        self._total, self._finds_tickets = total_steps, evaluator.method == "imp"
        self._round, self._offset, self._name = 0, 0, ""
        self._step = self._skipped = 0  # global steps done, and those done by earlier processes
        self._started = self._saved_at = time.monotonic()
        self._signal: int | None = None
        self._inputs: dict[str, str] = {}
        self._parts: tuple[Any, ...] = (trainer,)

    def __enter__(self) -> Self:
        self.callback(self.events.close)
        self.enter_context(handled_by(self._on_signal))
        self._bar = self.enter_context(progress_bar(self._total, shown=self.runtime.is_main))
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number

    def begin_round(self, round_: int, offset: int, start: int) -> None:
        """Count the steps of `round_`: its step 0 is global step `offset`, step `start` is next."""
        next_step, first = offset + start, self._skipped == self._step == 0  # of this process
        self._round, self._offset = round_, offset
        self._name = f"round {round_ + 1}" if self._finds_tickets else ""
        skipped = next_step - self._step
        self._skipped += skipped
        self._step = next_step
        skip_steps(self._bar, skipped)
        self._bar.set_description(self._name or "training", refresh=True)
        if first:
            self.events.start(next_step + 1)
            if next_step:
                of_round = f" ({self._name})" if self._name else ""
                files.log.info(f"resuming from step {next_step} of {self._total}{of_round}")
        sparsity = masks.sparsity(masks.current(self.trainer.model))
        self.events.scalar("sparsity", sparsity, next_step + 1)

    def after_step(
        self,
        step: int,
        learning_rate: float,
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
        batches: list[np.ndarray],
    ) -> None:
        """Handle the end of step `step` of the round (from 1), trained on the rows in `batches`."""
        self._losses.add(step, loss, grad_norm, batches)
        self._learning_rate, self._step = learning_rate, self._offset + step
        calls = [call for n, early, call in self._periodic if n and (self._step + early) % n == 0]
        due = time.monotonic() - self._saved_at > self._checkpoint_seconds
        save, stop = distributed.any_of(self.runtime, due, self._signal is not None)
        on_cpu = self.runtime.device.type == "cpu"
        if calls or save or stop or on_cpu or len(self._losses.unread) >= GPU_READ_EVERY:
            self.read_losses()
        self._bar.update()
        if stop:  # all ranks agree: no signal may interrupt it
            install(signal.SIG_IGN)
        for call in calls:
            call(self._step)
            self.trainer.model.train()
        if save or stop:
            self.save_checkpoint(self._round, step)
        if stop:
            name = signal.Signals(self._signal).name if self._signal else None
            saved = f"checkpoint saved in {self.run.path}; the same command resumes from here"
            raise Preempted(f"{name}: {saved}" if name else "")  # else another rank says it

    def read_losses(self) -> None:
        """Read the losses since the last read. Raises UserError if one is not finite."""
        self.run.check_held()
        if self._losses.unread:
            self._losses.read(self._name)
            self._bar.set_postfix(loss=f"{self._losses.recent[-1]:.4f}", refresh=False)

    def _log(self, step: int) -> None:
        self.events.scalar("lr", self._learning_rate, step)
        recent = self._losses.recent
        self.events.scalar("loss", sum(recent) / len(recent), step)

    def save_checkpoint(self, round_: int, step: int) -> None:
        """Save everything needed to resume after step `step` of `round_`."""
        self.read_losses()
        generators = distributed.gather(order.generator_state())
        content: dict[str, Any] = {"round": round_, "step": step, "generators": generators}
        for part in self._parts:
            content |= part.state()
        self.run.save_checkpoint(content | self._inputs)
        distributed.wait_for_main()
        self._saved_at = time.monotonic()

    def resume(self, *parts: Any) -> tuple[int, int] | None:
        """Restore the last checkpoint; return its round and step, None to start from scratch.

        Call it before the first step. `parts`, as the trainer, have `state()`, their entries of a
        checkpoint, and `load_state(content)`. Raises UserError if an input or a file that a part
        needs was changed.
        """
        self._parts, self._inputs = (*self._parts, *parts), input_digests(self.run.experiment)
        content = self.run.load_checkpoint()
        position = None if content is None else (content["round"], content["step"])
        distributed.check_same({"checkpoint to resume from": position})
        if content is not None:
            _restore(self.run, self._inputs, self._parts, content)
        return position

    def time_left(self) -> float:
        """Return the seconds to the end at the pace of this process, evaluations included."""
        done = self._step - self._skipped
        return (self._total - self._step) * (time.monotonic() - self._started) / max(1, done)


def _restore(
    run: Run, inputs: dict[str, str], parts: Sequence[Any], content: dict[str, Any]
) -> None:
    remedy = "or give --restart to start from scratch"
    for key, digest in inputs.items():
        # checkpoints of early versions lack some digests, or hold the first words of one
        if not f"{digest} ".startswith(f"{content.get(key, digest)} "):
            raise UserError(
                f"{run.path}: this run began with other {INPUTS[key]} than the same flags give "
                f"now; restore those files (or library versions), {remedy}"
            )
    try:
        for part in parts:
            part.load_state(content)
        generators = content["generators"]
        order.set_generator_state(generators[run.experiment.runtime.rank % len(generators)])
    except UserError as error:
        raise UserError(f"{error}; restore the file, {remedy}") from error
    except (OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises many kinds
        raise UserError(
            f"{run.path}: its checkpoint does not fit this run; remove it, {remedy}"
        ) from error
