"""What happens between two optimizer steps: loss and progress, evaluation when due, checkpoints, signals to stop."""

import collections
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from utils import distributed, masks, seeds
from utils.errors import UserError
from utils.report import Journal
from utils.run import RESUME_EXIT_CODE, Run
from utils.training import Trainer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
RECORDS = 10_000  # steps remembered, whatever the length of the run
LOG_SECONDS = 10  # between two states of the progress bar where it goes to a file
GPU_FLUSH = 50  # steps between two looks at the losses on a GPU: each look waits for the device


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """While no Watch follows them, signals to stop end the process at once; its exit code says that it can go on."""

    def end(number, _frame):
        if distributed.first():
            line = f"{signal.Signals(number).name}: stopped; the same command goes on from what is saved\n"
            os.write(2, line.encode())  # print might be what was interrupted
        raise Preempted(RESUME_EXIT_CODE)

    with _handled_by(end):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


class LossNotFinite(Exception):
    """The loss became NaN or infinite; the message names step and rows."""


class Preempted(SystemExit):
    """A signal asked the run to stop; its state is saved."""


class Watch:
    """Follows the steps of a run of `total` optimizer steps in all its rounds.

    Every `logging_steps` global steps loss and learning rate go to the journal; `periodic` holds pairs (n, call): each
    `call(step)` is made every n global steps (never if n is 0).
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        journal: Journal,
        total: int,
        logging_steps: int,
        checkpoint_minutes: float,
        periodic: list[tuple[int, Callable[[int], None]]],
    ):
        self.trainer, self.run, self.journal = trainer, run, journal
        self.periodic = [(logging_steps, self._log), *periodic]
        self.checkpoint_seconds = 60 * checkpoint_minutes
        # loss, learning rate and gradient norm of this process's last steps
        self.records: collections.deque[dict] = collections.deque(
            maxlen=max(logging_steps, RECORDS)
        )
        self._pending: list[tuple] = []
        self._total, self._bar = total, None
        self._round, self._offset = 0, 0
        self._place, self._skipped = (
            0,
            0,
        )  # steps behind, and those of them that this process did not take
        self._began = time.monotonic()
        self._saved_at = time.monotonic()
        self._stop: int | None = None
        self._began_with: str | None = None
        self._data: str | None = None
        self._handlers = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        self._bar = tqdm(
            total=self._total,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS,
            disable=not distributed.first(),
        )
        self._handlers.enter_context(_handled_by(self._on_signal))
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._handlers.close()
        self.journal.close()

    def _on_signal(self, number, _frame) -> None:
        self._stop = number

    def begin_round(self, round_: int, offset: int, start: int) -> None:
        """Steps now belong to `round_`, whose step 0 is global step `offset`; its step `start` is the next to come."""
        self._round, self._offset = round_, offset
        self._skipped += offset + start - self._place
        self._bar.n = self._place = offset + start
        self._bar.initial = self._skipped  # what an earlier process did is none of this one's pace
        self._bar.set_description(f"round {round_ + 1}", refresh=True)

    def after_step(
        self, step: int, rate: float, loss: torch.Tensor, norm: torch.Tensor, batches: list
    ) -> None:
        """Called by the trainer after step `step` of the round (counted from 1), which took the rows in `batches`."""
        self._pending.append((step, rate, torch.stack((loss.float(), norm.float())), batches))
        place = self._place = self._offset + step
        calls = [call for every, call in self.periodic if every > 0 and place % every == 0]
        save = time.monotonic() - self._saved_at > self.checkpoint_seconds
        save, stop = distributed.any_of(save, self._stop is not None)
        if calls or save or stop or loss.device.type == "cpu" or len(self._pending) >= GPU_FLUSH:
            self.flush()
        self._bar.update()
        for call in calls:
            call(place)
            self.trainer.model.train()
        if save or stop:
            self.save(self._round, step)
        if stop:
            self._end_by_signal()

    def flush(self) -> None:
        """Look at the losses since the last look: keep them, show the last, stop at one that is not finite."""
        self.run.check_held()
        if not self._pending:
            return
        values = torch.stack(
            [pair for _, _, pair, _ in self._pending]
        ).tolist()  # one wait for the device
        for (step, rate, _, batches), (loss, norm) in zip(self._pending, values, strict=True):
            if fault := self._fault(loss, norm):
                rows = ", ".join(str(r) for rows in batches for r in rows)
                raise LossNotFinite(
                    f"{fault} at step {step} of round {self._round + 1} (training rows {rows}); "
                    "lower --learning_rate; the last good checkpoint is kept"
                )
            self.records.append({"loss": loss, "lr": rate, "grad_norm": norm})
        self._pending.clear()
        self._bar.set_postfix(loss=f"{self.records[-1]['loss']:.4f}", refresh=False)

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if (
            not math.isfinite(norm) and not self.trainer.scaler.is_enabled()
        ):  # a loss scaler skips such a step
            return f"the gradient's norm is {norm}"
        return None

    def _log(self, place: int) -> None:
        recent = list(self.records)[-self.periodic[0][0] :]
        self.journal.scalar("lr", recent[-1]["lr"], place)
        self.journal.scalar("loss", sum(r["loss"] for r in recent) / len(recent), place)

    def save(self, round_: int, step: int) -> None:
        """Keep everything needed to go on after step `step` of `round_`."""
        self.flush()
        generators = distributed.gathered(seeds.generator_state())
        self.run.save_state(
            {
                "round": round_,
                "step": step,
                "generators": generators,
                "began_with": self._began_with,
                "data": self._data,
                **self.trainer.state(),
            }
        )
        distributed.wait_for_first()
        self._saved_at = time.monotonic()

    def resume(self) -> tuple[int, int] | None:
        """Put the saved state back; the round and step to go on from, or None if there is none.

        To be called before the first step. Raises UserError if model, mask or training data are not what the run began with.
        """
        self._began_with, self._data = (
            masks.fingerprint(self.trainer.model),
            self.trainer.task.data_checksum(),
        )
        state = self.run.load_state()
        found = None if state is None else (state["round"], state["step"])
        distributed.check_same(str(found), "checkpoint to go on from")
        if found is None:
            return None
        if (
            state.get("began_with", self._began_with) != self._began_with
        ):  # none in checkpoints of earlier versions
            raise UserError(
                f"{self.run.folder}: this run began with other weights or another mask than the same flags give now; "
                "put those files (or library versions) back, or give --restart to begin anew"
            )
        if state.get("data", self._data) != self._data:
            raise UserError(
                f"{self.run.folder}: this run began with other training data than the same flags give now; "
                "put that data back, or give --restart to begin anew"
            )
        self.trainer.load_state(state)
        generators = state["generators"]
        seeds.set_generator_state(generators[distributed.rank() % len(generators)])
        return found

    def stop_if_asked(self) -> None:
        """End the process if a signal came; the state has just been saved."""
        if distributed.any_of(self._stop is not None)[0]:
            self._end_by_signal()

    def _end_by_signal(self) -> None:
        if distributed.first():
            name = signal.Signals(self._stop).name if self._stop else "a signal to another process"
            tqdm.write(
                f"{name}: state saved in {self.run.folder}; the same command goes on from here",
                file=sys.stderr,
            )
        raise Preempted(RESUME_EXIT_CODE)

    def time_left(self) -> float:
        """Seconds until the end at the pace of this process so far, evaluations included."""
        taken = self._place - self._skipped
        return (self._total - self._place) * (time.monotonic() - self._began) / max(1, taken)
