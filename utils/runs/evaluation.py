"""Scores of a model: results.jsonl, eval_results.txt and TensorBoard events."""

import contextlib
import functools
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

from utils import files
from utils.runs.console import format_table
from utils.runs.records import EvaluationRecord, MaskInfo
from utils.runs.run import Run, code_commit
from utils.tasks.base import Task

_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")  # that a result depends on


class Evaluator:
    """Scores the model of a run on its task; `method`: "imp", "train" or "evaluate"."""

    def __init__(self, run: Run, method: str) -> None:
        self.run, self.experiment = run, run.experiment
        self.events = TensorBoardEvents(run)
        experiment, device = run.experiment, run.experiment.runtime.device
        versions = {name: version(name) for name in _VERSIONS}
        self._record = functools.partial(
            EvaluationRecord,
            task=experiment.task.name,
            method=method,
            init=experiment.init,
            init_info=experiment.init_info,
            seed=experiment.config.training.seed,
            script=os.path.basename(sys.argv[0]),
            args=experiment.arguments,
            versions={"python": platform.python_version(), "commit": code_commit(), **versions},
            device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        )

    def evaluate(
        self, step: int, mask_info: MaskInfo, round_number: int | None, *, final: bool, last: bool
    ) -> float | None:
        """Score the model after `step` and return the score in percent points.

        `round_number` counts from 1, None: no IMP. `final`: the end of a training or a round.
        `last`: the end of the run; its prediction files carry no step.
        """
        task, model, runtime = self.experiment.task, self.experiment.model, self.experiment.runtime
        metrics = task.evaluate(model, runtime, self.run.path, None if last else step)
        # JSON has no NaN
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        score = finite[task.score_key]
        record = self._record(
            sparsity=mask_info.sparsity,
            mask=mask_info.file,
            mask_sha256=mask_info.sha256,
            mask_info=mask_info.origin,
            step=step,
            round=round_number,
            final=final,
            metrics=finite,
            score=None if score is None else task.scale * score,
            wall_seconds=round(self.run.seconds(), 1),
        )
        self.run.append(record)
        if runtime.is_main:
            lines = (f"{key} = {finite[key]}\n" for key in sorted(finite))
            files.write_text(self.run.path / files.EVAL_RESULTS, "".join(lines))
        for key, value in finite.items():
            if value is not None:
                self.events.scalar(f"eval_{key}", value, step)
        return record.score


class TensorBoardEvents:
    """Writes TensorBoard scalars on rank 0; a disk error ends the curves, not the run."""

    def __init__(self, run: Run) -> None:
        self._folder = run.path / files.EVENTS
        self._enabled = run.experiment.runtime.is_main
        self._writer: Any = None

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write one point."""
        if not self._enabled:
            return
        # Not SummaryWriter: a full disk ends its thread, and its caller waits for it forever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        event = Event(wall_time=time.time(), step=step, summary=scalar(tag, value))
        try:
            if self._writer is None:
                self._folder.mkdir(exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"))
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._enabled = False
            files.warn(f"{self._folder}: {error.strerror}; no TensorBoard events from here on")

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


def scores_table(task: Task, records: list[EvaluationRecord]) -> str:
    """Return the printed table of a run: one line per evaluation."""
    columns = task.columns or (list(records[0].metrics) if records else [task.score_key])
    rows = []
    for record in records:
        values = (record.metrics.get(column) for column in columns)
        cells = ("-" if value is None else f"{value:.4f}" for value in values)
        rows.append([str(record.round or "-"), str(record.step), f"{record.sparsity:.1%}", *cells])
    return format_table(["round", "step", "sparsity", *columns], rows)
