"""Pruning criteria: which weights a mask of a given sparsity keeps; one function each."""

import math
from collections.abc import Callable

import torch

from utils.pruning import selection

Mask = dict[str, torch.Tensor]  # "NAME.weight_mask" -> bool tensor, True keeps the weight
SUFFIX = ".weight_mask"
# Maps trained weights, target sparsity and the mask of the weights still alive to a new mask
Criterion = Callable[[dict[str, torch.Tensor], float, Mask], Mask]


@torch.no_grad()
def magnitude(values: dict[str, torch.Tensor], target: float, kept: Mask | None = None) -> Mask:
    """Return the mask that drops the round(target * N) smallest of N |values| over all matrices.

    The global criterion of IMP (Algorithm 1, line 4) and OMP. `kept` is the mask of the weights
    still alive, on the device of `values`: masked weights stay masked and count towards the target.
    Raises UserError if a value is not finite, ValueError if more is masked already.
    """
    count = round(target * sum(value.numel() for value in values.values()))
    alive = None if kept is None else {name: kept[name + SUFFIX] for name in values}
    keep = selection.drop_smallest(values, alive, count)
    return {name + SUFFIX: keep[name] for name in values}


def random(shapes: dict[str, torch.Size], target: float, seed: int) -> Mask:
    """Return m_RP of Table 2: drop exactly round(target * N) weights, drawn uniformly."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    total = sum(sizes)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.ones(total, dtype=torch.bool)
    keep[torch.randperm(total, generator=generator)[: round(target * total)]] = False
    pieces = zip(shapes, keep.split(sizes), strict=True)
    return {name + SUFFIX: piece.view(shapes[name]) for name, piece in pieces}
