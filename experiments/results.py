"""The rows of every results.jsonl below a folder, checked, and the mean over seeds of those that a table asks for."""

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from experiments import recipe
from experiments.recipe import Agreement, Recipe
from utils import files
from utils.errors import UserError

NEEDED = {
    "task": str,
    "method": str,
    "init": str,
    "sparsity": (int, float),
    "seed": int,
    "score": (int, float),
}
METHODS = ("train", "imp")  # in the order of preference: a training of its own, else a round of IMP
STANDARD = "standard"  # pruning without rewinding


@dataclass(frozen=True)
class Row:
    """One evaluation at the end of a training or of an IMP round; the fields before `score` identify it."""

    task: str
    method: str  # "train", or "imp" for a round of IMP
    init: str  # "pre", "rand", or how the weights were perturbed
    init_task: str | None  # the task whose theta_i it starts from
    init_rewinding: str | None
    init_seed: int | None
    percent: float  # sparsity of the mask in training
    source: str  # how the mask was found: "imp", "omp" (of theta_0), "omp_rand", "random", "unknown"; "" for no mask
    source_task: str | None
    source_seed: int | None
    rewinding: str  # of the IMP that found the mask: percent of training, or STANDARD
    as_released: bool
    seed: int
    score: float  # percent points
    where: str  # file and line
    recipe: Recipe  # how it was trained

    def key(self) -> tuple:
        """What no two rows of one recipe may share unless their scores agree."""
        return astuple(self)[:-3]


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None for one seed) over `n` seeds, in percent points."""

    mean: float
    std: float | None
    n: int
    from_rounds: bool = False  # the scores are those of IMP's own rounds, not of separate trainings

    @classmethod
    def of(cls, scores: list[float], from_rounds: bool = False) -> "Cell":
        std = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        return cls(float(np.mean(scores)), std, len(scores), from_rounds)


class Results:
    """What the runs below one folder scored, and what was odd about their rows.

    The scores asked for are averaged and compared: those of one task must come from one recipe.
    """

    def __init__(self, rows: list[Row], notices: list[str]):
        self.rows, self.notices = rows, notices
        self._agreement = Agreement()

    def cell(self, task: str, **wanted) -> Cell | None:
        """The final scores of `task` whose Row fields equal `wanted`: separate trainings if any, else rounds of IMP."""
        for method in METHODS:
            found = self.scores(task, method=method, **wanted)
            if found:
                return Cell.of(found, from_rounds=method == "imp")
        return None

    def scores(self, task: str, **wanted) -> list[float]:
        """The scores of the rows of `task` whose fields equal `wanted`.

        Raises UserError if one of them was trained by another recipe than a row of `task` asked for now or before.
        """
        found = self._matching(task, wanted)
        for row in found:
            self._agreement.take(task, row.recipe, row.where)
        return [row.score for row in found]

    def check_masks(self, task: str) -> None:
        """Raises UserError if the IMP runs that found the masks of `task`, rewinding to theta_0, differ in recipe."""
        agreement = (
            Agreement()
        )  # of their own: tickets found by one recipe may be trained by another
        for row in self._matching(task, {"method": "imp", "rewinding": "0"}):
            agreement.take(task, row.recipe, row.where)

    def _matching(self, task: str, wanted: dict) -> list[Row]:
        return [
            r
            for r in self.rows
            if r.task == task and all(getattr(r, k) == v for k, v in wanted.items())
        ]

    def full(self, task: str) -> Cell | None:
        """f(x, theta_0): the full network."""
        return self.cell(task, percent=0.0, source="", init="pre", rewinding="0")

    def ticket(self, task: str, percent: float, source_task: str | None = None) -> Cell | None:
        """f(x, m_IMP, theta_0) with the mask found on `source_task` (the task itself if None)."""
        wanted = dict(source="imp", source_task=source_task or task, init="pre", rewinding="0")
        return self.cell(task, percent=float(percent), **wanted)

    def percents(self, task: str, **wanted) -> list[float]:
        """The sparsities at which `task` has rows whose fields equal `wanted`, ascending."""
        return sorted({row.percent for row in self._matching(task, wanted)})


def read(folder: Path, as_released: bool = False) -> Results:
    """Every final row below `folder`, masks found by `as_released` IMP or by Algorithm 1's, never both.

    Rows that are cut short or incomplete, and rows with one key and two scores, are left out and told in `notices`.
    Raises UserError if there is no results file.
    """
    paths = sorted(Path(folder).rglob(files.RESULTS))
    if not paths:
        raise UserError(
            f"{folder}: no {files.RESULTS} below it; give the folder that holds the runs' output folders"
        )
    notices: list[str] = []
    rows = [row for path in paths for row in _rows(path, notices)]
    rows = [
        row
        for row in rows
        if row.as_released == as_released or "imp" not in (row.source, row.method)
    ]
    return Results(_consistent(rows, notices), notices)


def _rows(path: Path, notices: list[str]) -> Iterator[Row]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            last = number == len(lines)
            notices.append(f"{where}: {'half-written last line' if last else 'not JSON'}; left out")
            continue
        wrong = _wrong(content)
        if wrong:
            notices.append(f"{where}: {wrong}; left out")
        elif content.get("final") and content["method"] in METHODS:
            row = _row(content, where)
            if row.source == "unknown":
                notices.append(
                    f"{where}: a mask of unknown origin ({content['mask']}, no {files.MASK_INFO_SUFFIX} "
                    "file beside it); in no table"
                )
            yield row


def _wrong(content) -> str | None:
    if not isinstance(content, dict):
        return "not an object"
    for key, kind in NEEDED.items():
        if not isinstance(content.get(key), kind) or isinstance(content.get(key), bool):
            return f"{key!r} is {content[key]!r}" if key in content else f"no {key!r}"
    for key in ("mask_info", "init_info", "args"):
        if not isinstance(content.get(key), dict | None):
            return f"{key!r} is {content[key]!r}"
    return None


def _row(content: dict, where: str) -> Row:
    init, mask, source = (
        content.get("init_info") or {},
        content.get("mask_info") or {},
        _source(content),
    )
    found_by = mask or (
        _first_round(content.get("args") or {}) if content["method"] == "imp" else {}
    )
    return Row(
        task=content["task"],
        method=content["method"],
        init=content["init"],
        init_task=init.get("task"),
        init_rewinding=rewinding_label(init) if "rewind_fraction" in init else None,
        init_seed=init.get("seed"),
        percent=round(100 * content["sparsity"], 1),
        source=source,
        source_task=mask.get("task"),
        source_seed=None if source.startswith("omp") else mask.get("seed"),
        rewinding=rewinding_label(found_by),
        as_released=bool(found_by.get("as_released")),
        seed=content["seed"],
        score=float(content["score"]),
        where=where,
        recipe=recipe.told(content),
    )


def _source(content: dict) -> str:
    mask = content.get("mask_info") or {}
    if not mask:
        return "unknown" if content.get("mask") else ""
    return (
        "omp_rand"
        if mask.get("method") == "omp" and mask.get("weight") == "rand"
        else str(mask.get("method"))
    )


def _first_round(arguments: dict) -> dict:
    """What a mask's information would say in the first round of IMP, which has no mask yet and so no length told."""
    later = bool(arguments.get("rewind_steps"))  # i > 0: not the plain training of theta_0
    return {
        "rewind": "none" if arguments.get("no_rewind") else "theta_i",
        "rewind_fraction": float(later),
        "as_released": arguments.get("as_released", False),
    }


def rewinding_label(info: dict) -> str:
    """The point that IMP rewound to, as whole percent of training; as_released masks count as rewound to the start."""
    if info.get("rewind") == "none" and not info.get("as_released"):
        return STANDARD
    return f"{100 * (info.get('rewind_fraction') or 0.0):.0f}"


def _consistent(rows: list[Row], notices: list[str]) -> list[Row]:
    """The rows without repetitions, and without those that contradict each other; all where recipes do, for `scores`."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key(), []).append(row)
    kept = []
    for group in groups.values():
        if not all(recipe.agree(row.recipe, group[0].recipe) for row in group):
            kept += group
        elif all(_same(row.score, group[0].score) for row in group):
            kept.append(group[0])
        else:
            told = "; ".join(f"{row.score:.2f} in {row.where}" for row in group)
            notices.append(f"contradiction, all left out: {_told_key(group[0])}: {told}")
    return kept


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))


def _told_key(row: Row) -> str:
    named = zip([f.name for f in fields(Row)], row.key(), strict=False)
    return ", ".join(f"{name} {value}" for name, value in named if value not in (None, "", False))
