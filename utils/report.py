"""What the user sees and keeps of a run: progress bar, a line per round, tables, results rows, TensorBoard events."""

import contextlib
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from utils import distributed, files
from utils.run import Run

VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONS}


class Journal:
    """Writes a run's evaluations: a row in results.jsonl, eval_results.txt, TensorBoard events.

    `base` is what all rows share (task, script, method, init, seed, arguments, versions, device); `score_key` names the
    task's main metric and `scale` turns it into percent points.
    """

    def __init__(self, run: Run, base: dict, score_key: str, scale: float):
        self.run, self.base, self.score_key, self.scale = run, base, score_key, scale
        self._events, self._deaf = None, False

    def evaluation(
        self, *, step: int, round_: int | None, mask: dict, metrics: dict, final: bool
    ) -> dict:
        """Record one evaluation; `mask` holds sparsity, mask, mask_sha256 and mask_info of the subnetwork evaluated."""
        metrics = {
            key: value if math.isfinite(value) else None for key, value in metrics.items()
        }  # JSON has no NaN
        row = {
            **self.base,
            **mask,
            "step": step,
            "round": round_,
            "final": final,
            "metrics": metrics,
            "score": self.score(metrics),
            "wall_seconds": round(self.run.seconds(), 1),
        }
        self.run.append_result(row)
        lines = "".join(f"{key} = {metrics[key]}\n" for key in sorted(metrics))
        if distributed.first():
            files.write_text(self.run.folder / files.EVAL_RESULTS, lines)
        for key, value in metrics.items():
            if value is not None:
                self.scalar(f"eval_{key}", value, step)
        return row

    def score(self, metrics: dict) -> float | None:
        """The main metric in percent points, as the paper prints it; None where it is not defined (a constant output)."""
        value = metrics[self.score_key]
        return None if value is None else self.scale * value

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One TensorBoard point."""
        if not distributed.first() or self._deaf:
            return
        try:
            self._write_event(tag, value, step)
        except OSError as error:  # the curves are not worth the run
            self._deaf = True
            folder = self.run.folder / files.EVENTS
            print(
                f"warning: {folder}: {error.strerror}; going on without TensorBoard events",
                file=sys.stderr,
            )

    def _write_event(self, tag: str, value: float, step: int) -> None:
        # by hand: tensorboardX's SummaryWriter has a thread to write, and waits for it for ever if a full disk ended it
        from tensorboardX.event_file_writer import (
            EventsWriter,
        )  # its import takes a while: only where it is used
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if self._events is None:
            folder = self.run.folder / files.EVENTS
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
        self._events.write_event(
            Event(wall_time=time.time(), step=step, summary=scalar(tag, value))
        )
        self._events.flush()

    def close(self) -> None:
        """Close the TensorBoard events."""
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()


def say(line: str) -> None:
    """Print one line to stdout, once, without tearing the progress bar."""
    if not distributed.first():
        return
    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Seconds as '45 s', '12 min' or '3 h 05 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain table with columns as wide as they need."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def describe_device(device) -> str:
    """'cpu', or the GPU's name."""
    if device.type == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder` where it lies below it."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
