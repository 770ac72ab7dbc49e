"""Pruning criteria: which weights a mask of a given sparsity keeps; one function each."""

import math
from collections.abc import Callable

import torch

from utils.pruning import selection

Mask = dict[str, torch.Tensor]  # "NAME.weight_mask" -> bool tensor, True keeps the weight
SUFFIX = ".weight_mask"
# Maps trained weights, target sparsity and mask of the weights still alive (None: all) to a mask
Criterion = Callable[[dict[str, torch.Tensor], float, Mask | None], Mask]


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


@torch.no_grad()
def layerwise(values: dict[str, torch.Tensor], target: float, kept: Mask | None = None) -> Mask:
    """Return the mask that drops the smallest |values| of each matrix, to `target` in each.

    A control: all matrices have the same sparsity (Su et al. 2020, "Sanity-Checking Pruning
    Methods"). A matrix of n weights loses target * n of them, rounded up or down so that
    round(target * N) of all N are dropped. `kept` and the errors raised are as in `magnitude`.
    """
    mask: Mask = {}
    seen = dropped = 0  # weights of the matrices so far
    for name, value in values.items():
        seen += value.numel()
        count = round(target * seen) - dropped
        dropped += count
        alive = None if kept is None else {name: kept[name + SUFFIX]}
        mask[name + SUFFIX] = selection.drop_smallest({name: value}, alive, count)[name]
    return mask


def shuffle(mask: Mask, seed: int) -> Mask:
    """Return `mask` with the entries of each matrix permuted: the same sparsities, other positions.

    A control: only the layer-wise sparsities of the mask remain (Frankle et al. 2021, "Pruning
    Neural Networks at Initialization: Why Are We Missing the Mark?").
    """
    generator = torch.Generator().manual_seed(seed)
    return {key: permuted(keep, generator) for key, keep in mask.items()}


def permuted(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the same values in a random order, in the same shape."""
    return values.flatten()[torch.randperm(values.numel(), generator=generator)].view_as(values)
