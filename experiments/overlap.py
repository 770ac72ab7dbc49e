"""Overlap of masks, as measured and by chance, in all, by layer and by kind of matrix."""

if __name__ == "__main__":
    import _root  # noqa: F401

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import geometry, markup, paper
from experiments.geometry import COLUMNS, Bits, bits, cosine, count, iou
from experiments.markup import Layout, Table
from experiments.results import Cell, most_common, rewinding_label
from utils import cli, files, schema
from utils.errors import UserError
from utils.pruning.origin import Origin

Measure = Callable[[pd.DataFrame], float]  # of a table of `count`
MEASURES: dict[str, Measure] = {  # column -> measure
    "shared (IoU), %": lambda table: iou(*geometry.observed(table)),
    "shared by chance, %": lambda table: iou(*geometry.by_chance(table)),
    "cosine x 100": lambda table: cosine(*geometry.observed(table)),
    "cosine by chance x 100": lambda table: cosine(*geometry.by_chance(table)),
}
SHARED, _, COSINE, _ = MEASURES.values()
CHANCE = "By chance: two random masks with these sparsities in each matrix (expected value)."


@dataclass(frozen=True)
class MaskFile:
    """A mask file; `source` is the task that IMP found it on, or paper.OMP for theta_0 itself.

    `stored` maps digests of other masks to counts of the pair, with this mask as the first. If
    `path` is a file of `store`, only these are known.
    """

    path: Path
    source: str
    percent: float
    seed: int | None
    digest: str
    stored: dict[str, pd.DataFrame] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, float, int | None]:
        """Source, sparsity in percent and seed: one mask exists of each."""
        return self.source, self.percent, self.seed

    @property
    def label(self) -> str:
        """`key` in words."""
        return f"{self.source}, {self.percent:g} %, seed {self.seed}"

    @property
    def is_stored(self) -> bool:
        """Whether `path` is a file of `store`, without the mask."""
        return self.path.name == files.OVERLAPS

    @property
    def is_usable(self) -> bool:
        """Whether the mask is stored, or its file holds the mask that its origin describes."""
        return self.is_stored or bool(_bits(self))

    def can_count(self, other: "MaskFile") -> bool:
        """Whether the counts of the pair are stored or both masks are in files."""
        return other.digest in self.stored or not (self.is_stored or other.is_stored)


def find(folder: Path, as_released: bool, notices: list[str]) -> list[MaskFile]:
    """Return the masks of IMP that rewinds to theta_0, and the one-shot masks of theta_0.

    They are mask files, or come from a file of `store`. Different masks of one task, sparsity and
    seed, and masks with an invalid origin, are left out with a notice.
    """
    groups: dict[tuple[str, float, int | None], list[MaskFile]] = {}
    for path in sorted(folder.rglob(f"*.pt{files.ORIGIN_SUFFIX}")):
        mask = _mask_file(path, as_released, notices)
        if mask and not files.moved_aside(path, folder):
            groups.setdefault(mask.key, []).append(mask)
    for path in [] if as_released else sorted(folder.rglob(files.OVERLAPS)):
        for mask in _stored_masks(path):
            groups.setdefault(mask.key, []).append(mask)
    kept = []
    for group in groups.values():
        if len({mask.digest for mask in group}) == 1:
            kept.append(group[0])
        else:
            paths = ", ".join(str(mask.path) for mask in group)
            notices.append(f"different masks of {group[0].label}, all left out: {paths}")
    return kept


def _mask_file(origin_path: Path, as_released: bool, notices: list[str]) -> MaskFile | None:
    path = origin_path.with_suffix("")
    try:
        origin = schema.read(origin_path, Origin) or Origin()
    except UserError as error:
        notices.append(f"{error}; left out")
        return None
    digest, is_imp = origin.mask_sha256, origin.method == "imp"
    if digest is None or not path.is_file():
        return None
    if origin.sparsity is None or (is_imp and origin.task is None):
        notices.append(f"{origin_path}: no 'sparsity' or no 'task'; left out")
        return None
    percent = round(100 * origin.sparsity, 1)
    if origin.method == "omp" and origin.weight in (None, "pre"):
        return MaskFile(path, paper.OMP, percent, None, digest)
    wanted = is_imp and bool(origin.as_released) == as_released and rewinding_label(origin) == "0"
    return MaskFile(path, str(origin.task), percent, origin.seed, digest) if wanted else None


def join(masks: list[MaskFile], earlier: list[MaskFile]) -> list[MaskFile]:
    """Return the usable masks of both lists; a mask in both has its file and its stored counts.

    Raises UserError for different masks of one task, sparsity and seed.
    """
    joined = {mask.key: mask for mask in earlier}
    for mask in (mask for mask in masks if mask.is_usable):
        same = joined.get(mask.key, mask)
        if same.digest != mask.digest:
            problem = f"another mask of {mask.label} than in {same.path}"
            raise UserError(f"{mask.path}: {problem}; collect to a new folder")
        joined[mask.key] = replace(mask, stored=same.stored | mask.stored)
    return list(joined.values())


def store(masks: list[MaskFile], path: Path) -> None:
    """Write the counts of each pair of usable masks that has them, one a row; `find` reads them.

    Without pairs there is no file.
    """
    rows: list[Any] = []
    ordered = sorted(masks, key=lambda mask: (mask.percent, mask.source, mask.seed or 0))
    for one, other in combinations(ordered, 2):
        related = one.source == other.source or one.seed == other.seed
        paired = related or paper.OMP in (one.source, other.source)
        if one.percent == other.percent and paired and one.can_count(other):
            ends = [[mask.source, mask.seed, mask.digest] for mask in (one, other)]
            rows.append([one.percent, ends, _counts(one, other).to_numpy().tolist()])
    if rows:
        files.write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _stored_masks(path: Path) -> Iterable[MaskFile]:
    """Return the masks of a file of `store`. Raises UserError for another row."""
    masks: dict[MaskFile, MaskFile] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            percent, ends, counts = schema.parse(line)
            percent = schema.from_json(float, percent)
            columns = zip(COLUMNS, zip(*counts, strict=True), strict=True)
            table = pd.DataFrame(dict(columns)).astype(dict.fromkeys(COLUMNS[2:], int))
            geometry.check(table)
            one, other = (MaskFile(path, s, percent, seed, sha) for s, seed, sha in ends)
            swapped = table.rename(columns={"first": "second", "second": "first"})[COLUMNS]
            for own, another, counted in ((one, other, table), (other, one, swapped)):
                masks.setdefault(own, own).stored[another.digest] = counted
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path}, line {number}: corrupt; collect the runs again") from error
    return masks.values()


@functools.cache
def _bits(mask: MaskFile) -> dict[str, Bits]:
    """Return the bits by mask key; empty, with a warning, for another mask than the origin's.

    Raises UserError if the file is corrupt.
    """
    from utils.pruning import mask_files, masks  # import torch

    tensors = mask_files.load_tensors(mask.path, "mask")
    if masks.digest(tensors) != mask.digest:
        files.warn(f"{mask.path}: the .json beside it describes another mask; left out")
        return {}
    return bits(tensors)


@functools.cache
def _counts(one: MaskFile, other: MaskFile) -> pd.DataFrame:
    if other.digest in one.stored:
        return one.stored[other.digest]
    return count(_bits(one), _bits(other), (one.path, other.path))


def _first(mask: MaskFile) -> pd.DataFrame:
    """Return counts of a pair with this mask as the first."""
    return next(iter(mask.stored.values())) if mask.stored else _counts(mask, mask)


def _by_seed(masks: list[MaskFile], source: str, percent: float) -> dict[int | None, MaskFile]:
    found = (mask for mask in masks if (mask.source, mask.percent) == (source, percent))
    return {mask.seed: mask for mask in found if mask.is_usable}


def pairs(masks: list[MaskFile], one: str, other: str, percent: float) -> list[pd.DataFrame]:
    """Return the counts of each pair of masks of two sources.

    Pairs are masks of one seed. A task is paired with itself across seeds, and with OMP, which has
    no seed, by each of its masks.
    """
    a, b = _by_seed(masks, one, percent), _by_seed(masks, other, percent)
    if one == other:
        found = list(combinations(a.values(), 2))
    elif paper.OMP in (one, other):
        found = list(product(a.values(), b.values()))
    else:
        found = [(a[seed], b[seed]) for seed in a if seed in b]
    return [_counts(x, y) for x, y in found if x.can_count(y)]


def _mean(counts: list[pd.DataFrame], measure: Measure) -> Cell | None:
    return Cell.of([measure(each) for each in counts])


def tables(masks: list[MaskFile], layout: Layout) -> list[Table]:
    """Return overlaps of tasks (in all, by chance, by layer, by kind, with OMP) and sparsities."""
    found = [mask.percent for mask in masks if mask.source in layout.tasks]
    percent = layout.sparsity or most_common(found, float(paper.TRANSFER_SPARSITY))
    wanted = (*layout.tasks, paper.OMP) if found else ()
    sources = [source for source in wanted if _by_seed(masks, source, percent)]
    title = f"Overlap of {percent:g} % masks"
    header = ["", *(paper.SOURCES[source] for source in sources)]
    shared = "weights kept by both, % of those kept by either"
    whole = Table("figure_overlap", f"{title}: {shared}", header)
    for one in sources:
        cells = [_mean(pairs(masks, one, other, percent), SHARED) for other in sources]
        whole.add(paper.SOURCES[one], cells)
    keep = 1 - percent / 100
    whole.notes.append(
        "Masks of one seed, averaged over seeds (in brackets: pairs); a task with itself: "
        f"different seeds. Two random masks would share {100 * keep / (2 - keep):.1f} % if every "
        "matrix had this sparsity; overlap_by_chance uses the sparsity of each matrix."
    )
    counts = {
        f"{paper.SOURCES[one]}, {paper.SOURCES[other]}": pairs(masks, one, other, percent)
        for one, other in combinations_with_replacement(sources, 2)
    }
    chance = Table("overlap_by_chance", f"{title}, measured and by chance", ["", *MEASURES])
    for label, own in counts.items():
        chance.add(label, [_mean(own, measure) for measure in MEASURES.values()])
    chance.notes.append(f"{CHANCE} In brackets: pairs.")
    parts = [_by_part(counts, title, part) for part in ("layer", "kind")]
    found_on = {source: list(_by_seed(masks, source, percent).values()) for source in sources}
    profile = _profile(found_on, f"Sparsity by layer and by kind of {percent:g} % masks")
    return [whole, chance, *parts, profile, _with_omp(masks, layout)]


def _profile(own: dict[str, list[MaskFile]], title: str) -> Table:
    """Return the sparsity of each layer and kind of matrix, with a column per source."""
    table = Table("sparsity_profile", title, ["", *(paper.SOURCES[source] for source in own)])
    split = [[geometry.by_part(_first(mask)) for mask in masks] for masks in own.values()]
    for part in dict.fromkeys(chain(*chain(*split))):
        counts = ([each[part] for each in found if part in each] for found in split)
        table.add(part, [_mean(each, geometry.sparsity) for each in counts])
    return table


def _by_part(counts: dict[str, list[pd.DataFrame]], title: str, column: str) -> Table:
    """Return the overlap of each pair, with a column per layer or kind of matrix."""
    parts = dict.fromkeys(part for own in counts.values() for each in own for part in each[column])
    table = Table(f"overlap_by_{column}", f"{title} by {column}", ["", *parts])
    for label, own in counts.items():
        cells = [_mean([each[each[column] == part] for each in own], SHARED) for part in parts]
        table.add(label, cells)
    return table


def _with_omp(masks: list[MaskFile], layout: Layout) -> Table:
    found = {mask.source for mask in masks}
    tasks = [task for task in layout.tasks if task in found]
    title = "Overlap of IMP masks with one-shot masks of theta_0"
    table = Table("overlap_with_omp", title, ["", *(paper.NAMES[task] for task in tasks)])
    measures = {"shared": SHARED, "cosine x 100": COSINE}
    for percent in sorted({mask.percent for mask in masks if mask.source == paper.OMP}):
        counts = [pairs(masks, task, paper.OMP, percent) for task in tasks]
        for label, measure in measures.items():
            table.add(f"{percent:g} %, {label}", [_mean(own, measure) for own in counts])
    table.notes.append("Two random masks of sparsity s have the cosine 1 - s.")
    layout.note(table, "Essential Sparsity (2023) reports a cosine over 0.96 at 10 to 40 %.")
    return table


def compare(one: Path, other: Path) -> Table:
    """Return sparsities and overlap of two masks: files or exported folders of any model.

    Raises UserError for a file that is no mask and for masks of different architectures.
    """
    from utils.pruning import mask_files  # imports torch

    a, b = (bits(mask_files.load(path)) for path in (one, other))
    counts = count(a, b, (one, other))
    header = ["", "sparsity, %", "sparsity of the second, %", *MEASURES]
    table = Table("overlap", f"Overlap of {one} and {other}", header, digits=2)
    for label, part in geometry.by_part(counts).items():
        numbers = [geometry.sparsity(part, mask) for mask in ("first", "second")]
        numbers += [measure(part) for measure in MEASURES.values()]
        table.add(label, [Cell(number, None, n=0) for number in numbers])
    table.notes += ["Shared: weights kept by both, % of those kept by either.", CHANCE]
    return table


def main(argv: list[str] | None = None) -> None:
    """Print the overlap of two masks."""
    parser = cli.OneLineParser("Compare two masks: sparsities and overlap, by layer and by kind.")
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, help="mask.pt, or a folder of export_ticket.py")
    args = parser.parse_args(argv)
    print(markup.markdown(compare(args.first, args.second)), end="")


if __name__ == "__main__":
    cli.run(main)
