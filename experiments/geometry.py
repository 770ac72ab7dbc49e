"""Geometry of masks: sparsity by matrix, overlap, and the overlap that chance would give.

Masks of one sparsity overlap by chance, and more so if they agree in how much to prune where.
Frankle et al. 2021 ("Pruning Neural Networks at Initialization: Why Are We Missing the Mark?") find
that the layer-wise sparsities alone explain much of a mask.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

COUNTS = ["both", "first", "second"]  # weights kept by both masks, by the first, by the second
COLUMNS = ["layer", "kind", "size", *COUNTS]
Bits = tuple[np.ndarray, tuple[int, ...]]  # uint8, one bit per weight; the shape of the matrix


def part_of(key: str) -> tuple[str, str]:
    """Return "layer N" and the kind of matrix of a mask key, or "pooler" twice."""
    found = re.search(r"\.layer\.(\d+)\.(?:attention\.self\.)?(.+?)(?:\.dense)?\.weight", key)
    return (f"layer {found[1]}", found[2].replace(".", " ")) if found else ("pooler", "pooler")


def iou(both: float, first: float, second: float) -> float:
    """Return intersection over union in percent; 100 if neither mask keeps any weight."""
    return 100 * both / (first + second - both) if first + second else 100.0


def cosine(both: float, first: float, second: float) -> float:
    """Return the cosine of two masks as vectors, in percent; 100 if both are empty."""
    if not first or not second:
        return 100.0 if first == second else 0.0
    return 100 * both / (first * second) ** 0.5


def bits(mask: Mapping[str, "torch.Tensor"]) -> dict[str, Bits]:
    """Return the bits and the shape of each matrix of a mask; 1 keeps a weight."""
    return {k: (np.packbits(m.bool().numpy().reshape(-1)), tuple(m.shape)) for k, m in mask.items()}


def count(
    one: Mapping[str, Bits], other: Mapping[str, Bits], paths: tuple[Path, Path]
) -> pd.DataFrame:
    """Return COLUMNS in a row per matrix of the masks in two files.

    Raises UserError for masks of different architectures.
    """
    ours, theirs = ({key: shape for key, (_, shape) in mask.items()} for mask in (one, other))
    check_shapes(ours, theirs, paths)
    rows = []
    for key, (a, shape) in one.items():
        b = other[key][0]
        kept = [int(np.bitwise_count(each).sum()) for each in (a & b, a, b)]
        rows.append((*part_of(key), math.prod(shape), *kept))
    return pd.DataFrame(rows, columns=COLUMNS)


def check_shapes(
    one: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]], paths: Iterable[Path]
) -> None:
    """Raise UserError if the shapes of the matrices of two masks differ."""
    if one != other:
        what = " and ".join(map(str, paths))
        raise UserError(f"{what} are masks of different architectures; give masks of one model")


def check(table: pd.DataFrame) -> None:
    """Raise ValueError for parts without a name, and for counts that no two masks have."""
    if not all(isinstance(name, str) for name in (*table["layer"], *table["kind"])):
        raise ValueError("a name that is no string")
    both, first, second, size = (table[column] for column in (*COUNTS, "size"))
    rising = (both >= 0, both <= first, both <= second, first <= size, second <= size, size > 0)
    if not all(each.all() for each in (*rising, first + second - both <= size)):
        raise ValueError("impossible counts")


def by_part(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of a table of `count` by layer and by kind of matrix, and "all"."""
    groups = [table.groupby(column, sort=False) for column in ("layer", "kind")]
    return {"all": table, **dict([*groups[0], *groups[1]])}


def sparsity(table: pd.DataFrame, mask: str = "first") -> float:
    """Return the sparsity of the "first" or the "second" mask in these matrices, in percent."""
    return float(100 * (1 - table[mask].sum() / table["size"].sum()))


def observed(table: pd.DataFrame) -> tuple[float, float, float]:
    """Return the COUNTS over all matrices of a table."""
    both, first, second = table[COUNTS].sum().tolist()
    return both, first, second


def by_chance(table: pd.DataFrame) -> tuple[float, float, float]:
    """Return the expected COUNTS of two random masks with these sparsities in each matrix.

    A weight of a matrix is kept by both with the product of the two fractions that are kept.
    `iou` and `cosine` of the result are those of random masks, up to their small variance.
    """
    both = (table["first"] * table["second"] / table["size"]).sum()
    return float(both), float(table["first"].sum()), float(table["second"].sum())
