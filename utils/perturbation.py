"""theta_0'': the pre-trained matrices permuted or with noise; all else of the encoder stays as pre-trained."""

import torch
from torch import nn

from utils import masks

MODES = {
    "layers": "whole layers permuted, the pooler in its place",
    "elements": "the elements of each matrix permuted",
    "noise": "Gaussian noise added",
}


@torch.no_grad()
def perturb(model: nn.Module, mode: str, seed: int, sigma: float) -> dict[str, torch.Tensor]:
    """The perturbed prunable matrices of `model`, keyed `bert....weight`; `model` stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"{name}.weight": value.clone() for name, value in masks.weights(model).items()}
    if mode == "layers":
        return weights | _permuted_layers(weights, model.config.num_hidden_layers, generator)
    if mode == "elements":
        return {name: _permuted(value, generator) for name, value in weights.items()}
    return {
        name: value + sigma * torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
    }


def _permuted_layers(
    weights: dict, layers: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    order = torch.randperm(layers, generator=generator).tolist()
    prefix = "bert.encoder.layer.{}."
    moved = {}
    for name in weights:
        for layer, source in enumerate(order):
            if name.startswith(prefix.format(layer)):
                moved[name] = weights[name.replace(prefix.format(layer), prefix.format(source), 1)]
    return {name: value.clone() for name, value in moved.items()}


def _permuted(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
