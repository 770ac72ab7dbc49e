"""Barriers on the line between two trainings of one ticket, from the rows of connectivity.py.

Linear mode connectivity (Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis"): a network is stable to the noise of SGD if the line between two trainings from the
same weights has no error barrier. The claim to test: tickets match the full network if they are
stable.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import builders, markup, paper, results
from experiments.markup import Layout, Table
from experiments.results import Cell, Results
from utils import files
from utils.runs.records import EvaluationRecord, read_records

POINTS, FEWEST = 11, 3  # on a line: by default, at least
STABLE = 2.0  # points of error; Frankle et al.: "instability < 2 %"
MEASURES = ("loss", "error")  # error: 100 minus the score


@dataclass(frozen=True)
class Line:
    """Loss and error at the points `alpha`, 0 to 1, between two trainings of one network."""

    task: str
    kind: str  # of results.KINDS, or the source of another mask
    percent: float
    recipe: dict[str, Any]
    alpha: np.ndarray
    loss: np.ndarray
    error: np.ndarray  # nan if the score is undefined

    @classmethod
    def of(cls, records: list[EvaluationRecord]) -> "Line":
        """Return the line of the rows that one call of connectivity.py writes.

        Raises ValueError for other rows, and if some are missing.
        """
        row = results.describe(records[0])
        kinds = {value: kind for kind, value in results.KINDS.items()}
        kind = kinds.get((row["source"], row["init"]), f"{row['source']}, {row['init']}")
        if row["source_task"] not in (None, row["task"]):
            kind += f" of {paper.NAMES.get(row['source_task'], row['source_task'])}"
        if row["source"] in results.OF_IMP and row["rewinding"] != "0":
            kind += f", rewinding {row['rewinding']}"
        if row["as_released"]:
            kind += ", as released"
        values = [(each.metrics["alpha"], each.metrics["loss"], each.score) for each in records]
        alpha, loss, score = np.array(values, dtype=float).T
        if len(alpha) < FEWEST or not np.allclose(alpha, np.linspace(0, 1, len(alpha))):
            raise ValueError("points of a line are missing")
        return cls(row["task"], kind, row["percent"], row["recipe"], alpha, loss, 100 - score)

    def excess(self, measure: str) -> np.ndarray:
        """Return by how much a measure exceeds the straight line between its values at the ends.

        Frankle et al. subtract the mean of the ends.
        """
        values = getattr(self, measure)
        return np.asarray(values - np.linspace(values[0], values[-1], len(values)))

    def barrier(self, measure: str) -> float:
        """Return the largest excess."""
        return float(self.excess(measure).max())

    @property
    def label(self) -> str:
        """The network, with its sparsity if it has a mask."""
        return f"{self.kind}, {self.percent:g} %" if self.percent else self.kind


def read(folder: Path, found: Results) -> list[Line]:
    """Return the lines below a folder, by task, sparsity and kind; each once.

    Raises UserError if the lines and the other runs of one task have different recipes.
    """
    lines: dict[tuple[str, ...], Line] = {}
    for path in sorted(folder.rglob(files.CONNECTIVITY)):
        records, problems = read_records(path)
        found.notices += problems
        try:
            line = Line.of([record for _, record in records])
        except (LookupError, TypeError, ValueError):
            found.notices.append(f"{path}: no complete line of connectivity.py; left out")
            continue
        where = {"recipe": line.recipe, "folder": path.parent}
        trained = found.rows[(found.rows["task"] == line.task) & (found.rows["method"] == "train")]
        results.check_recipe(line.task, pd.concat([trained, pd.DataFrame([where])]))
        values = (getattr(line, measure).tobytes().hex() for measure in MEASURES)
        lines.setdefault((line.task, line.label, *values), line)
    return sorted(lines.values(), key=lambda line: (line.task, line.percent, line.kind))


def table(lines: list[Line], found: Results, layout: Layout) -> Table:
    """Return barriers and scores: a row per task and network, with the mean over its lines."""
    header = ["", "barrier in loss", "barrier in error", "stable", "score", "wins"]
    made = Table("connectivity", "Barrier between two trainings of one ticket", header, digits=3)
    for task in layout.tasks:
        own = [line for line in lines if line.task == task]
        for label in dict.fromkeys(line.label for line in own):
            group = [line for line in own if line.label == label]
            loss, error = (mean(group, measure) for measure in MEASURES)
            kind, percent = group[0].kind, group[0].percent
            score = found.cell(task, kind, percent) if kind in results.KINDS else None
            wins = builders.wins(score, found.full(task), "full") if percent else None
            values = [loss, error, _verdict(stable(error)), score, _verdict(wins)]
            made.add(f"{paper.NAMES[task]}, {label}", values)
    made.notes.append(
        f"Stable: a barrier in error (100 minus the score) below {STABLE:g} points, as in Frankle "
        "et al. 2020. Wins: by the full network's deviation. Claim: tickets win if they are stable."
    )
    return made


def mean(lines: list[Line], measure: str) -> Cell | None:
    """Return the mean barrier of some lines, nan if a score on one of them is undefined."""
    return Cell.of([line.barrier(measure) for line in lines])


def stable(error: Cell | None) -> bool | None:
    """Return whether a mean barrier in error is below STABLE, None if it is not known."""
    return None if error is None or math.isnan(error.mean) else error.mean < STABLE


def _verdict(value: bool | None) -> str | None:
    return None if value is None else markup.show(value, 0)
