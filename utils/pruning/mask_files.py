"""Mask files: torch files of bool tensors, and exported tickets with one bit per weight.

Files are written whole or not at all. Reading runs no code of the file, checks every value and
raises UserError, which names the file and the key.
"""

import filecmp
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from utils import files, schema
from utils.errors import UserError, first_line
from utils.pruning import masks
from utils.pruning.masks import SUFFIX, Mask
from utils.pruning.origin import Origin, write_origin

SHAPES = "bit_packed_shapes"  # metadata of a packed mask: key -> shape, as JSON
ANOTHER = "another kind of file, or of another architecture"
WRAPPER = re.compile(r"((module|_orig_mod|model)\.)+")  # of DataParallel, torch.compile, Lightning
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def save(mask: Mask, path: Path, origin: Origin, overwrite: bool = True) -> str:
    """Write `mask` as bool tensors and its origin beside it; return the mask's digest.

    Raises UserError without `overwrite` if the file has another content.
    """
    mask = {key: keep.to("cpu", torch.bool, copy=True) for key, keep in mask.items()}
    save_tensors(mask, path, overwrite)
    digest = masks.digest(mask)
    sparsity = round(masks.sparsity(mask), 9)
    write_origin(path, replace(origin, sparsity=sparsity, mask_sha256=digest))
    return digest


def load(path: Path, shapes: Mapping[str, torch.Size] | None = None) -> Mask:
    """Return the mask in a torch file (bool, int or float) or in a folder of export_ticket.py.

    `shapes` are those of the model's prunable matrices, by name (None: of any model). Raises
    UserError naming file and key: a missing or unexpected key, a wrong shape, a value other than 0
    and 1, a file that is missing, empty, corrupt or holds anything but tensors.
    """
    packed = path.is_dir() or path.suffix == Path(files.PACKED_MASK).suffix
    mask = unpack_mask(path) if packed else load_tensors(path, "mask")
    if shapes is None:
        shapes = {k.removesuffix(SUFFIX): v.shape for k, v in mask.items() if k.endswith(SUFFIX)}
    expected = {name + SUFFIX: shape for name, shape in shapes.items()}
    check_shapes(path, mask, expected)
    if unexpected := sorted(set(mask) - set(expected)):
        count = len(unexpected)
        raise UserError(f"{path}: unexpected key {unexpected[0]} ({count} in all); {ANOTHER}")
    for key in expected:
        wrong = mask[key][(mask[key] != 0) & (mask[key] != 1)]
        if len(wrong):
            raise UserError(f"{path}: {key} holds {wrong[0].item()}; a mask holds 0 and 1 only")
    return {key: mask[key].bool() for key in expected}


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, overwrite: bool = True) -> None:
    """Write tensors to a torch file; the same tensors give the same bytes.

    Without `overwrite`, raises UserError if the file exists with another content, or if only its
    origin exists.
    """
    with files.atomic_file(path) as temporary:
        with files.open_for_torch(temporary) as file:
            torch.save(tensors, file)  # a path would write the temporary name into the file
        is_taken = not overwrite and (path.exists() or files.origin_path(path).exists())
        if is_taken and not (path.is_file() and filecmp.cmp(path, temporary, shallow=False)):
            remedy = "give --overwrite to replace it, or another path"
            raise UserError(f"{path}: exists with another content; {remedy}")


def load_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Return the dict of tensors in a torch file, on the CPU. `what` names the content in errors.

    A prefix of all keys, such as `module.`, is removed. Raises UserError if the file is missing,
    empty, corrupt or holds anything but dense tensors of numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_crc(path)
    except pickle.UnpicklingError as error:  # torch's message advises to trust the file
        raise UserError(
            f"{path}: not a {what} file of tensors only; refused, none of its code was run"
        ) from error
    except Exception as error:  # torch raises many types for a corrupt file
        reason = f"truncated or corrupt ({first_line(error)[:120]})"
        raise UserError(f"{path}: the {what} file is {reason}") from error
    if not isinstance(content, dict) or not content:
        kind = type(content).__name__
        raise UserError(f"{path}: a {what} file holds a dict of tensors, this one holds {kind}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: key {key!r} does not name a tensor; not a {what} file")
        is_dense = value.layout == torch.strided and not (value.is_meta or value.is_nested)
        if not is_dense or value.dtype not in FLOATS + INTEGERS:
            kind = f"{value.dtype}, {value.layout}, on {value.device}"
            raise UserError(f"{path}: {key} is a tensor of another kind ({kind}), not of numbers")
    prefix = WRAPPER.match(next(iter(content)))
    if prefix and all(key.startswith(prefix[0]) for key in content):
        content = {key.removeprefix(prefix[0]): value for key, value in content.items()}
    return content


def _check_crc(path: Path) -> None:
    """Raise ValueError for a wrong CRC in a torch file, which torch does not check."""
    if zipfile.is_zipfile(path):  # files of old torch versions are not, and have no CRC
        with zipfile.ZipFile(path) as archive:
            if corrupt := archive.testzip():
                raise ValueError(f"the CRC of {corrupt} is wrong")


def check_shapes(
    path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> None:
    """Raise UserError if a tensor of the file `path` is missing or has another shape."""
    if missing := [key for key in shapes if key not in tensors]:
        raise UserError(f"{path}: key {missing[0]} is missing ({len(missing)} in all); {ANOTHER}")
    for key, shape in shapes.items():
        if (found := tensors[key].shape) != shape:
            needed = f"has shape {tuple(found)}, this model needs {tuple(shape)}"
            raise UserError(f"{path}: {key} {needed}; {ANOTHER}")


def check_weight(source: Path | str, name: str, value: torch.Tensor) -> None:
    """Raise UserError if `value`, a weight of `source`, is not of floats or not finite."""
    if value.dtype not in FLOATS:
        raise UserError(f"{source}: {name} has the type {value.dtype}, not a float")
    if not torch.stack(value.detach().float().aminmax()).isfinite().all():
        raise UserError(f"{source}: {name} holds NaN or infinite values; give other weights")


def pack_mask(mask: Mask, path: Path) -> None:
    """Write `mask` to a safetensors file, one bit per weight (11 MB for BERT-base).

    Per key of n weights: uint8 [ceil(n / 8)] of `numpy.packbits`. The metadata hold the shapes.
    """
    packed = {key: np.packbits(value.cpu().bool().numpy()) for key, value in mask.items()}
    shapes = {key: list(value.shape) for key, value in mask.items()}
    with files.atomic_file(path) as temporary:
        save_file(packed, temporary, metadata={SHAPES: json.dumps(shapes, sort_keys=True)})


def unpack_mask(path: Path) -> Mask:
    """Return the mask in the packed file `path`, or in the folder `path` of export_ticket.py.

    Raises UserError naming the file if it is missing, corrupt or not a packed mask.
    """
    path = path / files.PACKED_MASK if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a mask.pt, or a folder of experiments/export_ticket.py"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            content = schema.parse((file.metadata() or {}).get(SHAPES, "{}").encode())
            shapes = schema.from_json(dict[str, list[int]], content)
            if not shapes or set(shapes) != set(file.keys()):
                raise ValueError(f"the shapes in its metadata {SHAPES!r} are of other keys")
            return {key: _unpack(key, file.get_tensor(key), shapes[key]) for key in shapes}
    except Exception as error:  # as for torch files
        raise UserError(
            f"{path}: corrupt, or not a packed mask ({error}); export the ticket again"
        ) from error


def _unpack(key: str, packed: np.ndarray, shape: list[int]) -> torch.Tensor:
    count = math.prod(shape)
    if min(shape, default=1) < 1 or packed.dtype != np.uint8 or len(packed) != -(-count // 8):
        raise ValueError(f"{key} holds {packed.dtype} {packed.shape}, not the bits of {shape}")
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).view(shape)
