"""Tokenized rows of unequal length, kept in flat arrays, and how a batch of them is packed without padding."""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

EVALUATION_TOKENS = 4096  # padding counted, in one batch of an evaluation
EVEN = 32  # where batches are to have few shapes, their widths are multiples of it


@dataclass
class Rows:
    """`n` tokenized rows, special tokens included, in three flat arrays.

    ids: WordPiece ids of all rows one after another, [tokens]; types: token types (segments), uint8 [tokens];
    starts: int64 [n + 1], row r is ids[starts[r]:starts[r + 1]].
    """

    ids: np.ndarray
    types: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.starts[row], self.starts[row + 1])
        return self.ids[span], self.types[span]

    def lengths(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Tokens of each row, or of those numbered `rows`, int64 [n]."""
        return np.diff(self.starts) if rows is None else self.starts[rows + 1] - self.starts[rows]

    @classmethod
    def from_lists(cls, ids: list[list[int]], types: list[list[int]]) -> "Rows":
        """Rows from one list of ids and one of token types per row."""
        starts = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in ids], out=starts[1:])
        total = int(starts[-1])
        flat_ids = np.fromiter((i for row in ids for i in row), dtype=np.int32, count=total)
        flat_types = np.fromiter((t for row in types for t in row), dtype=np.uint8, count=total)
        return cls(flat_ids, flat_types, starts)


@dataclass
class Packed:
    """A batch of B rows laid end to end: T = sum(widths) tokens, and what attention needs to keep rows apart.

    ids, types, positions: int64 [1, T]; first: int64 [B], index in T of each row's [CLS];
    lengths: int64 [B], tokens of each row that are attended to; widths: int64 [B], tokens of each row in T
    (equal to lengths unless rows are padded); slots: int64 [T], index of each token in the padded [B * W] grid.
    Where a row of filler ends the batch, it is counted in lengths and grid, and nothing reads it.
    """

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    first: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    width: int  # W, the longest row's width
    full: bool  # every row has W attended tokens

    def to(self, device: torch.device) -> "Packed":
        """The batch on `device`."""
        moved = {k: send(v, device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Packed(**moved, width=self.width, full=self.full)

    def evened(self) -> "Packed":
        """The same rows in one of few shapes: W a multiple of EVEN, and T of W, for which a row of filler is added."""
        width = math.ceil(self.width / EVEN) * EVEN
        filler = -self.ids.shape[1] % width
        slots = self.slots + self.slots // self.width * (width - self.width)
        if filler == 0:
            return replace(self, slots=slots, width=width, full=self.full and width == self.width)
        added = torch.arange(filler, device=slots.device) + len(self.lengths) * width
        wider = {
            name: F.pad(getattr(self, name), (0, filler)) for name in ("ids", "types", "positions")
        }
        return replace(
            self,
            **wider,
            lengths=F.pad(self.lengths, (0, 1), value=filler),
            slots=torch.cat([slots, added]),
            width=width,
            full=False,
        )


@dataclass
class Batch:
    """What every task's batch has: packed rows, and what the sum of their losses is divided by.

    total: a number, or a tensor [] where it differs between batches of one shape; counts over all processes.
    """

    packed: Packed
    total: float | torch.Tensor

    def evened(self) -> "Batch":
        """The same batch in one of few shapes."""
        return replace(self, packed=self.packed.evened())

    def tensors(self) -> list[torch.Tensor]:
        """Everything in the batch that is a tensor, in a fixed order."""
        return [value for value in self._values() if isinstance(value, torch.Tensor)]

    def shape(self) -> tuple:
        """What batches must have in common to be worked on by the same operations: shapes, and what is no tensor."""
        return tuple(
            value.shape if isinstance(value, torch.Tensor) else value for value in self._values()
        )

    def _values(self) -> list:
        return [
            *vars(self.packed).values(),
            *(value for value in vars(self).values() if value is not self.packed),
        ]


def checksum(*arrays: np.ndarray) -> str:
    """Tells arrays from others of other values or lengths."""
    return " ".join(f"{len(array)}:{zlib.crc32(np.ascontiguousarray(array))}" for array in arrays)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`; to a GPU through pinned memory, so that the process does not wait for the GPU's work."""
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def pack(rows: Rows, indices: np.ndarray, pad_to: int | None = None) -> Packed:
    """Pack `rows[indices]`; with `pad_to`, every row is padded to that many tokens (the released code's batches)."""
    lengths = (rows.starts[indices + 1] - rows.starts[indices]).astype(np.int64)
    widths = lengths if pad_to is None else np.full_like(lengths, pad_to)
    ends = np.cumsum(widths)
    first = ends - widths
    width = int(widths.max())
    row_of = np.repeat(np.arange(len(indices)), widths)
    positions = np.arange(int(ends[-1])) - first[row_of]
    real = positions < lengths[row_of]
    source = (rows.starts[indices][row_of] + positions)[real]
    ids, types = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.int64)
    ids[real], types[real] = rows.ids[source], rows.types[source]
    arrays = dict(
        ids=ids[None],
        types=types[None],
        positions=positions[None],
        first=first,
        lengths=lengths,
        slots=row_of * width + positions,
    )
    return Packed(
        **{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()},
        width=width,
        full=bool((lengths == width).all()),
    )


def by_length(
    rows: Rows, pad_to: int | None = None, tokens: int = EVALUATION_TOKENS
) -> list[np.ndarray]:
    """Row numbers in batches of like length, longest first, each of at most `tokens` padded tokens (for evaluation)."""
    order = np.argsort(-rows.lengths(), kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, tokens // (pad_to or int(rows.lengths()[order[begin]])))
        batches.append(order[begin : begin + size])
        begin += size
    return batches
