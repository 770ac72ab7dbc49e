"""What a run prints: lines beside the progress bar, durations and tables."""

import sys
import time

from tqdm import tqdm

from utils.training import distributed

LOG_FILE_SECONDS = 10  # between two updates of a progress bar in a log file


def progress_bar(total: int, unit: str, *, shown: bool) -> tqdm:
    """Return a progress bar on stderr that disappears at its end."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_FILE_SECONDS
    return tqdm(
        total=total,
        unit=unit,
        dynamic_ncols=True,
        leave=False,
        mininterval=seconds,
        disable=not shown,
    )


def say(line: str) -> None:
    """Print one line to stdout without tearing the progress bar; only rank 0 prints."""
    if distributed.rank() == 0:
        with tqdm.external_write_mode(file=sys.stdout):
            print(line, flush=True)


def resuming_line(step: int, total: int, name: str, saved_at: float | None) -> str:
    """Return from where a run resumes; `saved_at`: Unix time of its checkpoint, if known."""
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(saved_at))
    saved = f", checkpoint of {clock}" if saved_at else ""
    return f"resuming from step {step} of {total}{f' ({name})' if name else ''}{saved}"


def format_duration(seconds: float) -> str:
    """Return seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a plain table with columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
