"""Packed batches: rows are concatenated without padding, so only real tokens are computed."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from utils.data.rows import Rows

WIDTH_MULTIPLE = 32  # bucketed batches have widths that are multiples of this


@dataclass
class Packed:
    """B packed rows of T tokens in all, and what attention needs to keep rows apart.

    ids, types, positions: int64 [1, T]; first: int64 [B], index in T of each row's [CLS];
    lengths: int64 [B], tokens of each row that attention sees;
    slots: int64 [T], index of each token in the padded [B * W] grid. A bucketed batch may end with
    a row of padding, which counts in `lengths` and in the grid, and which no output reads.
    """

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    first: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    width: int  # W, the width of the grid
    full: bool  # every row has W tokens

    def to(self, device: torch.device) -> "Packed":
        """Return the batch on `device`."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        moved: dict[str, Any] = {name: send(value, device) for name, value in tensors.items()}
        return replace(self, **moved)

    def bucketed(self) -> "Packed":
        """Return the same rows in one of few shapes.

        W becomes a multiple of WIDTH_MULTIPLE, and T a multiple of W by a row of padding.
        """
        width = math.ceil(self.width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        padding = -self.ids.shape[1] % width
        added = torch.arange(padding, device=self.slots.device) + len(self.lengths) * width
        slots = self.slots + self.slots // self.width * (width - self.width)
        return Packed(
            ids=F.pad(self.ids, (0, padding)),
            types=F.pad(self.types, (0, padding)),
            positions=F.pad(self.positions, (0, padding)),
            first=self.first,
            lengths=F.pad(self.lengths, (0, 1), value=padding) if padding else self.lengths,
            slots=torch.cat([slots, added]),
            width=width,
            full=self.full and width == self.width,
        )


@dataclass
class Batch:
    """A training batch: packed rows and the divisor of their summed loss.

    total: a number, or a tensor [] if it differs between batches of one shape; counts over all
    processes.
    """

    packed: Packed
    total: float | torch.Tensor

    def bucketed(self) -> Self:
        """Return the same batch in one of few shapes."""
        return replace(self, packed=self.packed.bucketed())

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor of the batch in a fixed order."""
        return [value for value in self._values() if isinstance(value, torch.Tensor)]

    def shape(self) -> tuple[Any, ...]:
        """Return shapes and plain values: batches that agree in them take the same operations."""
        return tuple(v.shape if isinstance(v, torch.Tensor) else v for v in self._values())

    def _values(self) -> list[Any]:
        own = (value for name, value in vars(self).items() if name != "packed")
        return [*vars(self.packed).values(), *own]


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on `device`; pinned memory lets the copy overlap with a GPU's work."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pack(rows: Rows, indices: np.ndarray) -> Packed:
    """Pack `rows[indices]` on the CPU."""
    lengths = rows.lengths(indices).astype(np.int64)
    ends = np.cumsum(lengths)
    first = ends - lengths
    width = int(lengths.max())
    row_of = np.repeat(np.arange(len(indices)), lengths)
    positions = np.arange(int(ends[-1])) - first[row_of]
    source = rows.starts[indices][row_of] + positions
    return Packed(
        ids=torch.from_numpy(rows.ids[source].astype(np.int64))[None],
        types=torch.from_numpy(rows.types[source].astype(np.int64))[None],
        positions=torch.from_numpy(positions)[None],
        first=torch.from_numpy(first),
        lengths=torch.from_numpy(lengths),
        slots=torch.from_numpy(row_of * width + positions),
        width=width,
        full=bool((lengths == width).all()),
    )
