"""Masks over the prunable weights: which weights, global magnitude pruning, rewinding, saving; nothing else calls prune.

A mask is a dict of bool tensors, one per prunable matrix, keyed as the released code keys them
(`bert.encoder.layer.0.attention.self.query.weight_mask`); True keeps the weight. Sparsity is the fraction that is False.
"""

import hashlib
import math
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from utils import files, selection, ticket_format
from utils.errors import UserError

Mask = dict[str, torch.Tensor]
SUFFIX = ".weight_mask"


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> module of every prunable matrix, in a fixed order: all Linear of `bert.encoder`, then `bert.pooler.dense`.

    `model` is any BERT task model with its encoder as `.bert` (73 matrices for BERT-base, section 3.1 of the paper).
    """
    found = {
        f"bert.encoder.{name}": m
        for name, m in model.bert.encoder.named_modules()
        if isinstance(m, nn.Linear)
    }
    return found | {"bert.pooler.dense": model.bert.pooler.dense}


def attach(model: nn.Module, mask: Mask | None = None) -> None:
    """Put `mask` (all ones if None) on the model through torch's prune; once per model, later changes happen in place."""
    for name, module in prunable(model).items():
        keep = (
            torch.ones_like(module.weight)
            if mask is None
            else mask[name + SUFFIX].to(module.weight)
        )
        prune.custom_from_mask(module, "weight", keep)


def keep_within_graphs(model: nn.Module) -> None:
    """What an attached mask needs for compiled layers to work with the weights at their least: fewer bytes, same products.

    `weight`, the product, is forgotten after use: a graph would hand it out in float32, and take a gradient of zeros for
    it. The mask becomes one of bools, a byte a weight instead of four.
    """
    for module in prunable(model).values():
        if hasattr(module, "weight_mask"):
            module.weight_mask = module.weight_mask.bool()
            module.register_forward_hook(_forget_product)


def _forget_product(module: nn.Linear, *_) -> None:
    module.weight = None


def current(model: nn.Module) -> Mask:
    """A copy of the mask that is attached to `model`, as bool tensors on the CPU."""
    return {
        name + SUFFIX: module.weight_mask.to("cpu", torch.bool, copy=True)
        for name, module in prunable(model).items()
    }


def assign(model: nn.Module, mask: Mask) -> None:
    """Change the attached mask's values in place."""
    for name, module in prunable(model).items():
        module.weight_mask.copy_(mask[name + SUFFIX])


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> the trained parameter behind each prunable matrix (`weight_orig` once a mask is attached)."""
    return {
        name: getattr(m, "weight_orig", m.weight).detach() for name, m in prunable(model).items()
    }


def sparsity(mask: Mask) -> float:
    """Fraction of the prunable weights that are masked, 0 to 1."""
    total = sum(m.numel() for m in mask.values())
    return (total - sum(int(torch.count_nonzero(m)) for m in mask.values())) / total


@torch.no_grad()
def prune_to(model: nn.Module, target: float) -> None:
    """Mask the smallest-magnitude weights of `model`, globally, until exactly round(target * N) are masked (Algorithm 1).

    Ranks the current `weight_orig` (torch's `prune.global_unstructured` ranks a `weight` that is one step old).
    """
    modules = prunable(model)
    values = weights(model)
    kept = selection.each(
        lambda name: torch.as_tensor(selection.array(modules[name].weight_mask.float()) != 0),
        values,
    )
    pruned = magnitude(values, target, dict(zip(values, kept, strict=True)))
    for name, module in modules.items():
        module.weight_mask.copy_(
            pruned[name + SUFFIX].view(torch.uint8)
        )  # torch copies these faster than bools


@torch.no_grad()
def magnitude(
    values: dict[str, torch.Tensor], target: float, kept: dict[str, torch.Tensor] | None = None
) -> Mask:
    """The mask that drops the round(target * N) smallest |values| over all matrices together.

    `kept` (bool, same keys) names the weights still alive: the others stay masked and count towards the target. Ties
    at the threshold are dropped in the order of the matrices and, within one, of its flattened entries.
    Raises UserError if a value is not finite, ValueError if more than the target is masked already.
    """
    keep = {
        name: torch.ones_like(v, dtype=torch.bool) if kept is None else kept[name]
        for name, v in values.items()
    }
    count = round(target * sum(v.numel() for v in values.values()))
    return {name + SUFFIX: k for name, k in selection.drop_smallest(values, keep, count).items()}


def random(shapes: dict[str, torch.Size], target: float, seed: int) -> Mask:
    """m_RP of Table 2: a mask with exactly round(target * N) weights dropped, every choice equally likely."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    generator = torch.Generator().manual_seed(seed)
    keep = torch.ones(total, dtype=torch.bool)
    keep[torch.randperm(total, generator=generator)[: round(target * total)]] = False
    pieces = torch.split(keep, list(sizes.values()))
    return {
        name + SUFFIX: piece.view(shapes[name]).clone()
        for name, piece in zip(shapes, pieces, strict=True)
    }


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """theta and gamma: a copy of every parameter, on its device (on a CPU a `state_dict` would alias the live weights)."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def rewind(model: nn.Module, theta: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Set every parameter whose name starts with `prefix` back to its value in `theta`, bit for bit."""
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            parameter.copy_(theta[name])


def dense_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the plain model that computes the same: m * weight under `weight`, no masks, ties kept once."""
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        if name.endswith(SUFFIX) or value.data_ptr() in seen:
            continue
        seen.add(
            value.data_ptr()
        )  # of the live tensor: a product below may take the address of one already freed
        if name.endswith("weight_orig"):
            name, value = (
                name.removesuffix("_orig"),
                value * model.get_buffer(name.removesuffix("_orig") + "_mask"),
            )
        state[name] = value.detach().to("cpu").contiguous()
    return state


def fingerprint(model: nn.Module) -> str:
    """Tells a model's weights and masks from others': names and checksums of all tensors, in a third of a second.

    Compiled or not makes no difference.
    """
    sums = []
    for name, value in model.state_dict().items():
        value = (
            value.float() if value.dtype == torch.bool else value
        )  # a compiled model's masks are bools
        sums.append(f"{name} {zlib.crc32(value.cpu().contiguous().numpy())}")
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def digest(mask: Mask) -> str:
    """sha256 of names, shapes and bits: the same for float, int and bool files of one mask."""
    total = hashlib.sha256()
    for name in sorted(mask):
        total.update(f"{name} {tuple(mask[name].shape)}\n".encode())
        total.update(np.packbits(mask[name].cpu().bool().numpy().reshape(-1)).tobytes())
    return total.hexdigest()


def save(mask: Mask, path: Path, info: dict) -> str:
    """Write the mask as bool tensors and `info` (where it comes from) beside it, each whole or not at all; its digest."""
    mask = {name: value.cpu().bool().contiguous() for name, value in mask.items()}
    save_tensors(mask, path)
    sha256 = digest(mask)
    files.write_json(
        info_path(path), {**info, "sparsity": round(sparsity(mask), 9), "mask_sha256": sha256}
    )
    return sha256


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors to a torch file, whole or not at all; the same tensors give the same bytes."""
    with files.written_whole(path) as temporary, files.streamed(temporary) as file:
        torch.save(tensors, file)  # given a path, torch would put the temporary name into the file


def info_path(path: Path) -> Path:
    """The file beside a mask that tells where it comes from."""
    return path.with_name(path.name + files.MASK_INFO_SUFFIX)


def load(path: Path, shapes: dict[str, torch.Size]) -> Mask:
    """The mask in `path` (bool, int or float file, or a folder made by export_ticket.py), checked against `shapes`.

    Raises UserError naming file and key: missing or unexpected key, wrong shape, a value other than 0 and 1, a file
    that is absent, empty, cut short or holds anything but tensors.
    """
    path = Path(path)
    mask = ticket_format.unpack_mask(path) if path.is_dir() else load_tensors(path, "mask")
    expected = [name + SUFFIX for name in shapes]
    _check_keys(path, mask, expected)
    for name, shape in shapes.items():
        key = name + SUFFIX
        if mask[key].shape != shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(mask[key].shape)}, this model needs {tuple(shape)}; "
                "the mask belongs to another architecture"
            )
        _check_binary(path, key, mask[key])
    return {key: mask[key].bool() for key in expected}


def load_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """A dict of tensors from a torch file, without running any code in it. Raises UserError if it holds anything else."""
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the {what} file is empty; write it anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
    except pickle.UnpicklingError as error:  # torch's message would advise to trust the file
        raise UserError(
            f"{path}: not a {what} file of tensors only; refused, nothing in it was run"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"{path}: the {what} file is cut short or damaged ({_first_line(error)})"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path}: a {what} file holds a dict of tensors, this one holds {type(content).__name__}"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: key {key!r} does not name a tensor; not a {what} file")
    return content


def _check_sums(path: Path) -> None:
    """Raises an error if an entry of a torch file is not what was written; torch itself does not look at the checksums."""
    if zipfile.is_zipfile(path):  # else a file of old torch versions, which has none
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()
        if spoilt:
            raise ValueError(f"the checksum of {spoilt} is wrong")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _check_keys(path: Path, mask: Mask, expected: Iterable[str]) -> None:
    missing = [key for key in expected if key not in mask]
    if missing:
        raise UserError(
            f"{path}: key {missing[0]} is missing ({len(missing)} in all); "
            "not a mask, or one of another architecture"
        )
    unexpected = sorted(set(mask) - set(expected))
    if unexpected:
        raise UserError(
            f"{path}: unexpected key {unexpected[0]} ({len(unexpected)} in all); "
            "not a mask, or one of another architecture"
        )


def _check_binary(path: Path, key: str, value: torch.Tensor) -> None:
    if value.dtype == torch.bool:
        return
    wrong = ~((value == 0) | (value == 1))
    if wrong.any():
        place = int(torch.nonzero(wrong.flatten())[0])
        raise UserError(
            f"{path}: {key} holds {value.flatten()[place].item()} at entry {place}; a mask holds 0 and 1 only"
        )
