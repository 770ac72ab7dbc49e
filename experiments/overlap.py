"""How far masks of two tasks keep the same weights: intersection over union, in all, by layer, by matrix kind."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from experiments import paper
from experiments.markup import Entry, Table
from experiments.results import Cell, rewinding_label
from utils import files, masks
from utils.errors import UserError

KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output": "attention output",
    "intermediate": "intermediate",
    "output": "output",
    "pooler": "pooler",
}  # as it stands in a mask's keys -> as the tables call it
ALL = "all"
Bits = dict[str, np.ndarray]  # mask key -> uint8, one bit a weight


@dataclass(frozen=True)
class Found:
    """A mask file below the folder, and where it comes from; `source` is a task, or paper.OMP for theta_0 itself."""

    path: Path
    source: str
    percent: float
    seed: int | None
    sha256: str


class Masks:
    """The masks found below a folder, read once each."""

    def __init__(self, found: list[Found]):
        self.found = found
        self._read: dict[str, Bits] = {}

    def seeds(self, source: str, percent: float) -> dict[int | None, Found]:
        """Seed -> mask of `source` at `percent` sparsity."""
        return {f.seed: f for f in self.found if f.source == source and f.percent == percent}

    def percents(self) -> list[float]:
        """The sparsities of which there is a mask, ascending."""
        return sorted({f.percent for f in self.found})

    def bits(self, found: Found) -> Bits:
        """The mask, one bit a weight. Raises UserError if the file cannot be read."""
        if found.sha256 not in self._read:
            tensors = masks.load_tensors(found.path, "mask")
            self._read[found.sha256] = {
                k: np.packbits(t.bool().numpy().reshape(-1)) for k, t in tensors.items()
            }
        return self._read[found.sha256]

    def pairs(self, one: str, other: str, percent: float) -> list[tuple[Found, Found]]:
        """Pairs of one seed; those of different seeds if both are one task; OMP's mask, of no seed, with every seed."""
        a, b = self.seeds(one, percent), self.seeds(other, percent)
        if one == other:
            return list(combinations(a.values(), 2))
        if paper.OMP in (one, other):
            return [(x, y) for x in a.values() for y in b.values()]
        return [(a[seed], b[seed]) for seed in a if seed in b]

    def compare(
        self, one: str, other: str, percent: float, measure: Callable, part: str = ALL
    ) -> list[float]:
        """`measure` (iou or cosine) of every pair, over the matrices whose layer or kind is `part`."""
        values = []
        for found, other_found in self.pairs(one, other, percent):
            a, b = self.bits(found), self.bits(other_found)
            if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
                raise UserError(
                    f"{found.path} and {other_found.path} are masks of different architectures; "
                    "give a folder with the runs of one model"
                )
            values.append(measure(a, b, [key for key in a if part in (ALL, layer(key), kind(key))]))
        return values


def find(folder: Path, as_released: bool, notices: list[str]) -> Masks:
    """The IMP masks that rewound to theta_0, and the one-shot masks of theta_0, below `folder`.

    Two different masks of one task, sparsity and seed are both left out and told in `notices`, and so is a mask whose
    file does not tell what it is.
    """
    groups: dict[tuple, list[Found]] = {}
    for path in sorted(Path(folder).rglob(f"*.pt{files.MASK_INFO_SUFFIX}")):
        mask = _found(path, as_released, notices)
        if mask:
            groups.setdefault((mask.source, mask.percent, mask.seed), []).append(mask)
    kept = []
    for (source, percent, seed), group in groups.items():
        if len({mask.sha256 for mask in group}) == 1:
            kept.append(group[0])
        else:
            paths = ", ".join(str(mask.path) for mask in group)
            notices.append(
                f"different masks of {source}, {percent:g} %, seed {seed}, all left out: {paths}"
            )
    return Masks(kept)


def _found(path: Path, as_released: bool, notices: list[str]) -> Found | None:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    mask = path.with_name(path.name.removesuffix(files.MASK_INFO_SUFFIX))
    if not isinstance(info, dict) or "mask_sha256" not in info or not mask.is_file():
        return None
    wrong = _wrong(info)
    if wrong:
        notices.append(f"{path}: {wrong}; left out")
        return None
    percent, sha256 = round(100 * info["sparsity"], 1), info["mask_sha256"]
    if info.get("method") == "omp" and info.get("weight", "pre") == "pre":
        return Found(mask, paper.OMP, percent, None, sha256)
    wanted = info.get("method") == "imp" and bool(info.get("as_released")) == as_released
    if wanted and rewinding_label(info) == "0":
        return Found(mask, info["task"], percent, info.get("seed"), sha256)
    return None


def _wrong(info: dict) -> str | None:
    """What is absent or of another kind than a mask's file says it, None if nothing."""
    kinds = {"mask_sha256": str, "sparsity": int | float}
    if info.get("method") == "imp":
        kinds |= {"task": str, "seed": int | None, "rewind_fraction": int | float | None}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            return f"{key!r} is {info[key]!r}" if key in info else f"no {key!r}"
    return None


def _counts(a: Bits, b: Bits, keys: list[str]) -> tuple[int, int, int]:
    """Kept by both, by `a`, by `b`."""
    both = sum(int(np.bitwise_count(a[k] & b[k]).sum()) for k in keys)
    return both, *(sum(int(np.bitwise_count(m[k]).sum()) for k in keys) for m in (a, b))


def iou(a: Bits, b: Bits, keys: list[str]) -> float:
    """Weights that both masks keep over those that either keeps, in percent; 100 where neither keeps any."""
    both, in_a, in_b = _counts(a, b, keys)
    return 100 * both / (in_a + in_b - both) if in_a + in_b else 100.0


def cosine(a: Bits, b: Bits, keys: list[str]) -> float:
    """Cosine of the two masks taken as vectors, in percent; 100 where both are empty."""
    both, in_a, in_b = _counts(a, b, keys)
    if not in_a or not in_b:
        return 100.0 if in_a == in_b else 0.0
    return 100 * both / (in_a * in_b) ** 0.5


def layer(key: str) -> str:
    """ "layer 0" and so on, or "pooler"."""
    found = re.search(r"\.layer\.(\d+)\.", key)
    return f"layer {found[1]}" if found else "pooler"


def kind(key: str) -> str:
    """Which of a layer's six matrices a mask key belongs to, or "pooler"."""
    return next((name for part, name in KINDS.items() if f".{part}." in key), "other")


def by_chance(percent: float) -> float:
    """The overlap, in percent, expected of two independent random masks of one sparsity."""
    keep = 1 - percent / 100
    return 100 * keep / (2 - keep)


def tables(found: Masks, tasks: tuple[str, ...], percent: float, with_paper: bool) -> list[Table]:
    """Overlap between tasks at `percent` sparsity, in all, by layer and by kind, and with OMP at every sparsity."""
    sources = [source for source in (*tasks, paper.OMP) if found.seeds(source, percent)]
    names = ["OMP of theta_0" if source == paper.OMP else paper.NAMES[source] for source in sources]
    whole = Table(
        "figure_overlap",
        f"Overlap of {percent:g} % masks: weights kept by both, % of those kept by either",
        ["", *names],
    )
    for source, name in zip(sources, names, strict=True):
        whole.add(name, [_entry(found, [(source, other)], percent, iou) for other in sources])
    whole.notes.append(
        "Masks of one seed, averaged over seeds (in brackets: pairs); a task with itself: different "
        f"seeds. Two random masks would share {by_chance(percent):.1f} %."
    )
    of_tasks = [source for source in sources if source != paper.OMP]
    by_layer = _by_part(found, of_tasks, percent, "layer", layer)
    by_kind = _by_part(found, of_tasks, percent, "kind", kind)
    return [whole, by_layer, by_kind, _with_omp(found, tasks, with_paper)]


def _entry(
    found: Masks, pairs: list[tuple[str, str]], percent: float, measure: Callable, part: str = ALL
) -> Entry:
    values = [
        value for one, other in pairs for value in found.compare(one, other, percent, measure, part)
    ]
    return Entry(Cell.of(values) if values else None)


def _by_part(
    found: Masks, tasks: list[str], percent: float, name: str, part_of: Callable[[str], str]
) -> Table:
    table = Table(
        f"overlap_by_{name}",
        f"Overlap of {percent:g} % masks by {name}",
        ["", *(paper.NAMES[task] for task in tasks)],
    )
    first = [mask for task in tasks for mask in found.seeds(task, percent).values()][:1]
    for part in dict.fromkeys(part_of(key) for mask in first for key in found.bits(mask)):
        table.add(
            part,
            [
                _entry(
                    found, [(task, other) for other in tasks if other != task], percent, iou, part
                )
                for task in tasks
            ],
        )
    table.notes.append("Mean over the other tasks; in brackets: pairs of masks.")
    return table


def _with_omp(found: Masks, tasks: tuple[str, ...], with_paper: bool) -> Table:
    having = [
        task for task in tasks if any(found.seeds(task, percent) for percent in found.percents())
    ]
    table = Table(
        "overlap_with_omp",
        "Overlap of IMP masks with one-shot masks of theta_0",
        ["", *(paper.NAMES[task] for task in having)],
    )
    for percent in found.percents():
        if found.seeds(paper.OMP, percent):
            for label, measure in (("shared", iou), ("cosine x 100", cosine)):
                table.add(
                    f"{percent:g} %, {label}",
                    [_entry(found, [(task, paper.OMP)], percent, measure) for task in having],
                )
    table.notes.append("Two random masks of sparsity s have the cosine 1 - s.")
    if with_paper:
        table.notes.append("Essential Sparsity (2023) reports a cosine over 0.96 at 10 to 40 %.")
    return table
