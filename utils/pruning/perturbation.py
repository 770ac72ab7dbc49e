"""theta_0'' of Table 2: prunable matrices permuted or with noise; the rest stays pre-trained."""

import re

import torch
from torch import nn

from utils.pruning import masks
from utils.pruning.criteria import permuted

MODES = {
    "layers": "whole layers permuted; the pooler stays",
    "elements": "the elements of each matrix permuted",
    "noise": "Gaussian noise added",
}


@torch.no_grad()
def perturb(model: nn.Module, mode: str, seed: int, sigma: float) -> dict[str, torch.Tensor]:
    """Return the perturbed prunable matrices, keyed `bert....weight`; the model does not change.

    `mode` is a key of MODES; `sigma` is the standard deviation of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {f"{name}.weight": value for name, value in masks.weights(model).items()}
    if mode == "layers":
        layers = model.get_submodule("bert.encoder.layer")
        order = torch.randperm(len(list(layers.children())), generator=generator).tolist()
        return {name: weights[_moved(name, order)].clone() for name in weights}
    if mode == "elements":
        return {name: permuted(value, generator) for name, value in weights.items()}
    return {
        name: value + sigma * torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
    }


def _moved(name: str, order: list[int]) -> str:
    """Return the name of the matrix that moves to `name`: layer order[i] moves to layer i."""
    return re.sub(r"layer\.(\d+)", lambda layer: f"layer.{order[int(layer[1])]}", name, count=1)
