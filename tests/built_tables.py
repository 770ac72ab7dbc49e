"""Tables from synthetic results, and the text of their cells."""

import subprocess
import sys
from pathlib import Path

from results_tree import mask_info

from experiments import markup, paper, tables
from experiments.markup import Layout

ROOT = Path(__file__).resolve().parents[1]


def layout(*tasks: str, with_paper: bool = True, sparsity: float | None = None) -> Layout:
    return Layout(tasks or paper.TASKS, with_paper, sparsity)


def shown(table, label: str, column: str) -> str:
    """Return the text of a cell in the first row with this label."""
    entries = next(entries for name, entries in table.rows if name == label)
    return markup.show(entries[table.header.index(column) - 1], table.digits)


def under(table, label: str) -> list[str]:
    """Return the row of the paper below the row `label`."""
    index = [name for name, _ in table.rows].index(label)
    name, entries = table.rows[index + 1]
    assert name == "  paper"
    return [markup.show(entry, table.digits) for entry in entries]


def built(folder: Path, *tasks: str, only: list[str] | None = None):
    """Return the tables and the notices."""
    made, found = tables.build(folder, layout(*tasks), only)
    return made, found.notices


def imp(task: str, sparsity: float, **more):
    return lambda seed: mask_info(task, sparsity, seed, **more)


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "experiments" / "tables.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
