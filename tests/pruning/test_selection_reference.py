"""Selection agrees with torch's own pruning, and on a GPU with that on a CPU."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from utils.pruning import criteria, selection
from utils.pruning.masks import SUFFIX


def linear_layers(values):
    """Matrices as modules, for torch's own prune."""
    layers = nn.ModuleList(nn.Linear(value.shape[1], value.shape[0]) for value in values)
    for layer, value in zip(layers, values, strict=True):
        layer.weight.data.copy_(value)
    return layers


@pytest.mark.parametrize("digits", [None, 2, 0])
def test_selection_is_that_of_torch_except_for_ties(digits):
    draw = torch.Generator().manual_seed(4)
    values = [torch.randn(shape, generator=draw) for shape in ((300, 40), (7, 900), (50, 50))]
    values = values if digits is None else [value.round(decimals=digits) for value in values]
    layers, total = linear_layers(values), sum(value.numel() for value in values)
    named = {str(number): value for number, value in enumerate(values)}
    kept = None
    for before, target in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.7), (0.7, 0.9)):
        prune.global_unstructured(
            [(layer, "weight") for layer in layers],
            prune.L1Unstructured,
            amount=round(target * total) - round(before * total),
        )
        found = list(criteria.magnitude(named, target, kept).values())
        expected = [layer.weight_mask.bool() for layer in layers]
        for masks in (found, expected):
            assert sum(int(mask.sum()) for mask in masks) == total - round(target * total)
        pairs = zip(values, found, expected, strict=True)
        differing = torch.cat([value.abs()[ours != theirs] for value, ours, theirs in pairs])
        assert len(differing.unique()) <= (digits is not None)  # the threshold itself, at most
        kept = {f"{number}{SUFFIX}": mask for number, mask in enumerate(expected)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_selection_by_torch_as_on_a_gpu_is_that_of_numpy(monkeypatch, dtype):
    draw = torch.Generator().manual_seed(5)
    values = {
        name: nn.Parameter(torch.randn(shape, generator=draw).round(decimals=2).to(dtype))
        for name, shape in (("a", (120, 60)), ("b", (30, 500)))
    }
    found = [{}, {}]
    for masks in found:
        kept = None
        for target in (0.0, 0.2, 0.5, 0.9, 1.0):
            mask = criteria.magnitude(values, target, kept)
            masks |= {(target, key): value for key, value in mask.items()}
            kept = mask
        monkeypatch.setattr(selection, "array", lambda tensor: tensor.detach())
    assert all(torch.equal(found[1][key], value) for key, value in found[0].items())
    assert all(v.dtype == torch.bool and not v.requires_grad for v in found[1].values())
