"""What a run prints: lines beside the progress bar, durations and tables."""

import sys

from tqdm import tqdm

from utils.files import is_printing_process

LOG_FILE_SECONDS = 10  # between two updates of a progress bar in a log file


def progress_bar(total: int, *, unit: str = "step", shown: bool) -> tqdm:
    """Return a progress bar on stderr that disappears at its end."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_FILE_SECONDS
    look = {"unit": unit, "dynamic_ncols": True, "leave": False, "mininterval": seconds}
    return tqdm(total=total, disable=not shown, **look)


def skip_steps(bar: tqdm, steps: int) -> None:
    """Advance a progress bar by steps of an earlier process; its rate and time left ignore them."""
    if not bar.disable:
        bar.n += steps
        bar.initial += steps
        bar.last_print_n += steps


def say(line: str) -> None:
    """Print one line to stdout without tearing the progress bar; only rank 0 prints."""
    if is_printing_process():
        with tqdm.external_write_mode(file=sys.stdout):
            print(line, flush=True)


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
