"""Masks over the prunable weights of a BERT task model. Only this module uses torch's prune.

A mask is a dict of bool tensors, one per prunable matrix, with the released code's keys
(`bert.encoder.layer.0.attention.self.query.weight_mask`); True keeps the weight. Sparsity is the
fraction that is False.
"""

import hashlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from utils.pruning import criteria, selection
from utils.pruning.criteria import SUFFIX, Criterion, Mask


def prunable(model: Any) -> dict[str, Any]:
    """Return name -> module of every Linear in `bert.encoder`, and of `bert.pooler.dense`.

    `model` is a BERT task model with its encoder as `.bert`. BERT-base has 73 such matrices with
    85,524,480 weights (section 3.1).
    """
    modules = model.bert.encoder.named_modules(prefix="bert.encoder")
    linear = {name: module for name, module in modules if isinstance(module, nn.Linear)}
    return linear | {"bert.pooler.dense": model.bert.pooler.dense}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return name -> shape [out, in] of every prunable matrix."""
    return {name: module.weight.shape for name, module in prunable(model).items()}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> trained values of every prunable matrix: `weight_orig` if it has a mask."""
    return {n: getattr(m, "weight_orig", m.weight).detach() for n, m in prunable(model).items()}


def attach(model: nn.Module, mask: Mask | None = None) -> None:
    """Put `mask` (None: all ones) on the model, once; later changes of the mask are in place."""
    for name, module in prunable(model).items():
        ones = torch.ones_like(module.weight)
        keep = ones if mask is None else mask[name + SUFFIX].to(module.weight)
        prune.custom_from_mask(module, "weight", keep)


def current(model: nn.Module) -> Mask:
    """Return a copy of the attached mask as bool tensors on the CPU, {} if there is none."""
    modules = [(n, m) for n, m in prunable(model).items() if hasattr(m, "weight_mask")]
    return {n + SUFFIX: m.weight_mask.to("cpu", torch.bool, copy=True) for n, m in modules}


def assign(model: nn.Module, mask: Mask) -> None:
    """Set the values of the attached mask in place."""
    for name, module in prunable(model).items():
        # through numpy on a CPU: 10 times faster there than copy_ (measured on BERT-base)
        selection.array(module.weight_mask)[...] = selection.array(mask[name + SUFFIX])


def sparsity(mask: Mask) -> float:
    """Return the fraction of the prunable weights that are masked, 0 to 1; 0 without a mask."""
    total = sum(keep.numel() for keep in mask.values()) or 1
    return sum(keep.numel() - int(torch.count_nonzero(keep)) for keep in mask.values()) / total


def prune_to(model: nn.Module, target: float, criterion: Criterion = criteria.magnitude) -> None:
    """Mask weights by `criterion` until round(target * N) of N are masked (Algorithm 1, line 4).

    Raises UserError if a weight is not finite, ValueError if more is masked already.
    """
    # torch's global_unstructured ranks `weight`, the product of the last forward pass, before the
    # last update. This ranks `weight_orig`.
    kept = {name + SUFFIX: module.weight_mask for name, module in prunable(model).items()}
    assign(model, criterion(weights(model), target, kept))


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter, theta and gamma, with its name in a model without masks."""
    for name, parameter in model.named_parameters():
        yield _plain_name(name), parameter


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter by its name in a model without masks."""
    # a `state_dict` aliases the live weights
    return {name: parameter.detach().clone() for name, parameter in parameters(model)}


@torch.no_grad()
def rewind(model: nn.Module, theta: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Set every parameter with a name starting with `prefix` to its exact value in `theta`."""
    for name, parameter in parameters(model):
        if name.startswith(prefix):
            parameter.copy_(theta[name])


def _plain_name(name: str) -> str:
    return name.replace("weight_orig", "weight")


def dense_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the equivalent plain model's state: m * weight as `weight`, tied weights once."""
    state = {}
    seen = set()
    for key, value in model.state_dict().items():
        if key.endswith(SUFFIX) or value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())  # not of the product below, which may reuse a freed address
        name = _plain_name(key)
        product = value if name == key else value * model.get_buffer(name + "_mask")
        state[name] = product.detach().to("cpu").contiguous()
    return state


def for_compiled_layers(model: nn.Module) -> None:
    """Prepare the attached masks for compiled layers: less memory, the same products.

    The masks become bool, a byte per weight. `weight` is dropped after each forward pass: a
    compiled graph would return the product in float32, and its gradient of zeros.
    """
    for module in prunable(model).values():
        if hasattr(module, "weight_mask"):
            module.weight_mask = module.weight_mask.bool()
            module.register_forward_hook(_drop_product)


def _drop_product(module: Any, *_: Any) -> None:
    module.weight = None


def state_digest(model: nn.Module) -> str:
    """Return a digest of all weights and masks; compilation does not change it."""
    sums = []
    for name, value in model.state_dict().items():
        is_bool = value.dtype == torch.bool  # a mask of compiled layers
        array = (value.float() if is_bool else value).cpu().contiguous().numpy()
        sums.append(f"{name} {zlib.crc32(array)}")
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def digest(mask: Mask) -> str:
    """Return the sha256 of names, shapes and bits: the same for float, int and bool masks."""
    total = hashlib.sha256()
    for name in sorted(mask):
        total.update(f"{name} {tuple(mask[name].shape)}\n".encode())
        total.update(np.packbits(mask[name].cpu().bool().numpy()).tobytes())
    return total.hexdigest()
