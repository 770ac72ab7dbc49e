"""Scores of a model: results.jsonl, eval_results.txt, all_results.json and TensorBoard events."""

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
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from utils import files
from utils.runs.console import format_table, say
from utils.runs.records import EvaluationRecord, MaskInfo
from utils.runs.run import Run, code_commit
from utils.tasks.base import Task
from utils.training.order import DataOrder

_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")  # that a result depends on


class Evaluator:
    """Scores the model of a run on its task; `method`: "imp", "train" or "evaluate"."""

    def __init__(self, run: Run, method: str) -> None:
        self.run, self.experiment, self.method = run, run.experiment, method
        self.events = TensorBoardEvents(run)
        experiment, device = run.experiment, run.experiment.runtime.device
        versions = {name: version(name) for name in _VERSIONS}
        task, training = experiment.task, experiment.config.training
        self._order = None  # of the training rows
        if training.do_train:
            self._order = DataOrder.from_config(task.train_rows, training, experiment.runtime)
        self._record = functools.partial(
            EvaluationRecord,
            task=task.name,
            method=method,
            init=experiment.init,
            init_info=experiment.init_info,
            seed=training.seed,
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
        began = time.monotonic()
        metrics = task.evaluate(model, runtime, self.run.path, None if last else step)
        seconds = time.monotonic() - began
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
            named = self._named(finite, step, seconds)
            files.write_json(self.run.path / files.ALL_RESULTS, named)
        for key, value in finite.items():
            if value is not None:
                self.events.scalar(f"eval_{key}", value, step)
        if not final:
            scores = "  ".join(map(" ".join, shown_scores(task, record).items()))
            say(f"step {step}  sparsity {record.sparsity:.1%}  {scores}")
        return record.score

    def _named(
        self, metrics: dict[str, float | None], step: int, seconds: float
    ) -> dict[str, float | None]:
        """Return an evaluation as Hugging Face's examples name its numbers."""
        rows = self.experiment.task.dev_rows
        speed: dict[str, float | None] = {
            "eval_runtime": round(seconds, 4),
            "eval_samples": rows,
            "eval_samples_per_second": round(rows / seconds, 3) if seconds else None,
        }
        if self._order:
            epoch = round(step / self._order.steps_per_epoch, 2)
            speed |= {"epoch": epoch, "train_samples": self._order.rows}
        return speed | {f"eval_{key}": value for key, value in metrics.items()}


class TensorBoardEvents:
    """Writes scalars of a training on rank 0; a disk error ends the curves, not the run."""

    def __init__(self, run: Run) -> None:
        self._folder = run.path / files.EVENTS
        training = run.experiment.config.training
        self._enabled = run.experiment.runtime.is_main and training.do_train
        self._writer: Any = None

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write one point."""
        self._write(step, summary=scalar(tag, value))

    def start(self, step: int) -> None:
        """Make TensorBoard drop the points from `step` on that a killed process wrote."""
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        if not self._enabled:
            return
        try:
            if self._writer is None:
                self._folder.mkdir(exist_ok=True)
                # Not SummaryWriter: a full disk ends its thread, and its caller waits forever.
                # the file's name has whole seconds only; a later process must not replace it
                self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
            self._writer.flush()
        except OSError as error:
            self._enabled = False
            files.warn(f"{self._folder}: {error.strerror}; no TensorBoard events from here on")

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


def shown_scores(task: Task, record: EvaluationRecord) -> dict[str, str]:
    """Return name and value of the metrics to print; scores in percent points, as in the paper."""
    shown = {}
    for name in task.columns or record.metrics:
        value, scale = record.metrics.get(name), 1.0 if name == "perplexity" else task.scale
        shown[name] = "-" if value is None else f"{scale * value:.2f}"
    return shown


def print_scores(task: Task, records: list[EvaluationRecord]) -> None:
    """Print the table of a run: one line per evaluation, nothing without one."""
    if not records:
        return
    rows = []
    for record in records:
        position = {"step": str(record.step), "sparsity": f"{record.sparsity:.1%}"}
        number = {"round": str(record.round)} if record.round else {}
        rows.append({**number, **position, **shown_scores(task, record)})
    header = list(rows[0])
    say(format_table(header, [[row.get(name, "-") for name in header] for row in rows]))
