"""Mask files: torch files of bool tensors, and exported tickets with one bit per weight.

Files are written whole or not at all. Reading runs no code of the file, checks every value and
raises UserError, which names the file and the key.
"""

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
from utils.errors import UserError
from utils.pruning import masks
from utils.pruning.masks import SUFFIX, Mask
from utils.pruning.origin import Origin, write_origin

SHAPES = "bit_packed_shapes"  # metadata of a packed mask: key -> shape, as JSON
ANOTHER = "not a mask, or a mask of another architecture"
WRAPPER = re.compile(r"((module|_orig_mod|model)\.)+")  # of DataParallel, torch.compile, Lightning
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def save(mask: Mask, path: Path, origin: Origin) -> str:
    """Write `mask` as bool tensors and its origin beside it; return the mask's digest."""
    mask = {key: keep.to("cpu", torch.bool, copy=True) for key, keep in mask.items()}
    save_tensors(mask, path)
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
    missing = [key for key in expected if key not in mask]
    unexpected = sorted(set(mask) - set(expected))
    if missing:
        raise UserError(f"{path}: key {missing[0]} is missing ({len(missing)} in all); {ANOTHER}")
    if unexpected:
        count = len(unexpected)
        raise UserError(f"{path}: unexpected key {unexpected[0]} ({count} in all); {ANOTHER}")
    for key, shape in expected.items():
        if mask[key].shape != shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(mask[key].shape)}, this model needs "
                f"{tuple(shape)}; the mask belongs to another architecture"
            )
        _check_binary(path, key, mask[key])
    return {key: mask[key].bool() for key in expected}


def _check_binary(path: Path, key: str, value: torch.Tensor) -> None:
    wrong = ((value != 0) & (value != 1)).flatten().nonzero()
    if len(wrong):
        at = int(wrong[0])
        found = value.flatten()[at].item()
        raise UserError(f"{path}: {key} holds {found} at entry {at}; a mask holds 0 and 1 only")


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors to a torch file; the same tensors give the same bytes."""
    with files.atomic_file(path) as temporary, files.open_for_torch(temporary) as file:
        torch.save(
            tensors, file
        )  # given a path, torch would write the temporary name into the file


def load_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Return the dict of tensors in a torch file, on the CPU. `what` names the content in errors.

    A prefix of all keys, such as `module.`, is removed. Raises UserError if the file is missing,
    empty, corrupt or holds anything but dense tensors of numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the {what} file is empty; write it again")
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: the {what} file is truncated or corrupt ({reason})") from error
    if not isinstance(content, dict) or not content:
        kind = type(content).__name__
        raise UserError(f"{path}: a {what} file holds a dict of tensors, this one holds {kind}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: key {key!r} does not name a tensor; not a {what} file")
        check_dense(path, key, value, FLOATS + INTEGERS)
    prefix = WRAPPER.match(next(iter(content)))
    if prefix and all(key.startswith(prefix[0]) for key in content):
        content = {key.removeprefix(prefix[0]): value for key, value in content.items()}
    return content


def check_dense(path: Path, key: str, value: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise UserError if `value`, `key` of the file `path`, is not a dense tensor of `dtypes`."""
    special = [kind for kind in ("meta", "quantized", "nested") if getattr(value, f"is_{kind}")]
    special += [] if value.layout == torch.strided else [str(value.layout)]
    if special or value.dtype not in dtypes:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = " ".join([*special, str(value.dtype)]).replace("torch.", "")
        raise UserError(f"{path}: {key} is a tensor of {found}; save it as a dense one of {kinds}")


def _check_crc(path: Path) -> None:
    """Raise ValueError for a wrong CRC in a torch file, which torch does not check."""
    if zipfile.is_zipfile(path):  # files of old torch versions are not, and have no CRC
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
        if corrupt:
            raise ValueError(f"the CRC of {corrupt} is wrong")


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

    Raises UserError naming file and key if the file is missing, corrupt or not a packed mask.
    """
    path = path / files.PACKED_MASK if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a mask.pt, or a folder of experiments/export_ticket.py"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            packed = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # as for torch files
        raise UserError(
            f"{path}: corrupt, or not a safetensors file ({error}); export the ticket again"
        ) from error
    if SHAPES not in metadata:
        raise UserError(f"{path}: not a packed mask (no {SHAPES!r} in the file's metadata)")
    try:
        shapes = schema.from_json(dict[str, list[int]], schema.parse(metadata[SHAPES].encode()))
    except ValueError as error:
        raise UserError(f"{path}: corrupt {SHAPES!r} ({error}); export the ticket again") from error
    if set(shapes) != set(packed) or not packed:
        wrong = sorted(set(shapes) ^ set(packed))[:1]
        raise UserError(f"{path}: shapes and tensors do not match (key {''.join(wrong) or 'none'})")
    return {key: _unpack(path, key, packed[key], shapes[key]) for key in shapes}


def _unpack(path: Path, key: str, packed: np.ndarray, shape: list[int]) -> torch.Tensor:
    if not all(n > 0 for n in shape):
        raise UserError(f"{path}: {key} has the invalid shape {shape}")
    count = math.prod(shape)
    needed = math.ceil(count / 8)
    if packed.dtype != np.uint8 or packed.shape != (needed,):
        raise UserError(
            f"{path}: {key} holds {packed.dtype} {list(packed.shape)}, but its shape {shape} "
            f"needs {needed} bytes (uint8)"
        )
    bits = np.unpackbits(packed)
    if bits[count:].any():
        raise UserError(f"{path}: {key} has bits set after its last weight; the file is corrupt")
    return torch.from_numpy(bits[:count].astype(bool)).view(shape)
