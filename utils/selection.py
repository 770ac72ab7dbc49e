"""The smallest weights over many matrices together: exact, by one threshold that a sample brackets, on a CPU or a GPU."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from utils.errors import UserError

Keep = dict[str, torch.Tensor]  # name -> bool, True keeps the weight
Found = TypeVar("Found")
SAMPLE_EVERY = 509  # to find the threshold every so many-th weight is looked at first; a prime, so that all columns are


def drop_smallest(values: dict[str, torch.Tensor], keep: Keep, count: int) -> Keep:
    """`keep` without the smallest |values| of those kept, so that `count` are dropped in all.

    Ties at the threshold are dropped in the order of the matrices and, within one, of its flattened entries.
    Raises UserError if a value is not finite, ValueError if more than `count` are dropped already.
    """
    if _by_numpy(next(iter(values.values()))):
        return _drop(values, keep, count)
    # a GPU takes one long row faster than many matrices
    flat = _drop(
        {"": _joined(values)}, {"": torch.cat([k.flatten() for k in keep.values()])}, count
    )[""]
    pieces = flat.split([v.numel() for v in values.values()])
    return {
        name: piece.view(v.shape) for piece, (name, v) in zip(pieces, values.items(), strict=True)
    }


def each(call: Callable[[str], Found], values: dict[str, torch.Tensor]) -> list[Found]:
    """`call(name)` for every matrix, in their order; on a CPU several at once, as many as torch has threads."""
    if not _by_numpy(next(iter(values.values()))):
        return [call(name) for name in values]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(call, values))


def array(tensor: torch.Tensor) -> np.ndarray | torch.Tensor:
    """numpy's view of a tensor on the CPU."""
    return tensor.detach().numpy() if _by_numpy(tensor) else tensor.detach()


def _joined(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """All matrices as one row. Raises UserError naming the first that holds a NaN or infinity."""
    row = torch.cat([value.flatten().float() for value in values.values()])
    if not torch.isfinite(row).all():
        for name, value in values.items():
            _check_finite(float(value.abs().max()), name)
    return row


def _drop(values: dict[str, torch.Tensor], keep: Keep, count: int) -> Keep:
    total = sum(v.numel() for v in values.values())
    dead = total - sum(_count(array(k)) for k in keep.values())
    if dead > count:
        raise ValueError(
            f"{dead} of {total} weights are masked already, more than the {count} asked for"
        )
    if count == dead:
        return keep
    threshold, below, equal = _select(values, keep, count - dead, total - dead)
    ties = np.diff(
        np.minimum(np.cumsum([0, *equal]), count - dead - below)
    )  # so many of each matrix's `equal` weights go
    spared, sizes = dict(zip(values, zip(ties, equal, strict=True), strict=True)), _Sizes(values)

    def larger(name: str) -> torch.Tensor:
        size, alive, (gone, there) = sizes(name), array(keep[name]), spared[name]
        found = torch.as_tensor((size > threshold) & alive)
        if gone < there:
            at = torch.nonzero(torch.as_tensor((size == threshold) & alive).flatten()).flatten()
            found.view(-1)[at[gone:]] = True
        return found

    return dict(zip(values, each(larger, values), strict=True))


def _select(
    values: dict[str, torch.Tensor], keep: Keep, k: int, alive: int
) -> tuple[float, int, list[int]]:
    """The k-th smallest |value| of the `alive` kept ones, how many of them are below it, and how many equal it in each matrix.

    A sample tells a narrow bracket in which it must lie; one pass counts what is below and takes out what is within, a
    hundredth of all, which alone is ranked. Exact: where the sample misled, the bracket becomes everything.
    """
    low, high = _bracket(values, keep, k / alive)
    below, within = _split(values, keep, low, high)
    if not below < k <= below + sum(len(sizes) for sizes in within):
        below, within = _split(values, keep, 0.0, math.inf)
    threshold = _kth(torch.cat(within), k - below)
    below += sum(int((sizes < threshold).sum()) for sizes in within)
    return float(threshold), below, [int((sizes == threshold).sum()) for sizes in within]


def _bracket(values: dict[str, torch.Tensor], keep: Keep, rank: float) -> tuple[float, float]:
    """Between which sizes the one of `rank` (0 to 1) lies, by a sample: five of its standard deviations on either side."""
    picked = {
        name: value.reshape(-1)[::SAMPLE_EVERY].float().abs() for name, value in values.items()
    }
    sample = torch.cat(
        [size[keep[name].reshape(-1)[::SAMPLE_EVERY]] for name, size in picked.items()]
    )
    margin = 2.5 * math.sqrt(len(sample)) + 1
    low, high = math.floor(rank * len(sample) - margin), math.ceil(rank * len(sample) + margin)
    return (
        float(_kth(sample, low)) if low > 0 else 0.0,
        float(_kth(sample, high)) if high <= len(sample) else math.inf,
    )


def _split(
    values: dict[str, torch.Tensor], keep: Keep, low: float, high: float
) -> tuple[int, list[torch.Tensor]]:
    """How many of the kept sizes are below `low`, and those of each matrix up to `high`. Raises UserError at NaN or infinity."""
    sizes = _Sizes(values)

    def split(name: str) -> tuple[int, torch.Tensor]:
        size, alive = sizes(name), array(keep[name])
        _check_finite(float(size.max()), name)
        smaller = (size < low) & alive
        return _count(smaller), torch.as_tensor(size[((size <= high) & alive) ^ smaller])

    below, within = zip(*each(split, values), strict=True)
    return sum(below), list(within)


class _Sizes(threading.local):
    """Name -> |value|, each in the memory of the one that its thread took before: fresh memory costs more than the computing."""

    def __init__(self, values: dict[str, torch.Tensor]):
        first = next(iter(values.values()))
        self._values = values
        self._scratch = torch.empty(
            max(v.numel() for v in values.values()), dtype=torch.float32, device=first.device
        )

    def __call__(self, name: str) -> np.ndarray | torch.Tensor:
        value = array(self._values[name].float())
        room = array(self._scratch[: self._values[name].numel()].view(value.shape))
        return (np if isinstance(value, np.ndarray) else torch).abs(value, out=room)


def _by_numpy(tensor: torch.Tensor) -> bool:
    """On a CPU one thread of numpy compares, counts and picks out faster than two of torch."""
    return tensor.device.type == "cpu"


def _kth(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th smallest of a row: torch's kthvalue works with one of a GPU's many processors, its sort with all."""
    return values.kthvalue(k).values if _by_numpy(values) else values.sort().values[k - 1]


def _count(flags: np.ndarray | torch.Tensor) -> int:
    return (
        int(torch.count_nonzero(flags))
        if isinstance(flags, torch.Tensor)
        else int(np.count_nonzero(flags))
    )


def _check_finite(largest: float, name: str) -> None:
    if not math.isfinite(largest):
        raise UserError(
            f"{name}.weight holds NaN or infinite values and cannot be ranked; lower --learning_rate, "
            "or give sound weights"
        )
