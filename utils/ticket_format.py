"""A mask as one bit a weight, in a safetensors file: how an exported ticket carries it (11 MB for BERT-base)."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utils import files
from utils.errors import UserError

PACKED_MASK = "mask.safetensors"  # in the exported folder
SHAPES = "bit_packed_shapes"  # the one metadata entry: key -> shape, as JSON (two entries would change places)


def pack_mask(mask: dict[str, torch.Tensor], path: Path) -> None:
    """Write `mask` (bool, any shapes): per key uint8 [ceil(n / 8)], `numpy.packbits` of the flattened tensor.

    The shapes stand in the file's metadata; the file is written whole or not at all.
    """
    packed = {
        key: np.packbits(value.cpu().bool().numpy().reshape(-1)) for key, value in mask.items()
    }
    shapes = {key: list(value.shape) for key, value in mask.items()}
    with files.written_whole(path) as temporary:
        save_file(packed, temporary, metadata={SHAPES: json.dumps(shapes, sort_keys=True)})


def unpack_mask(path: Path) -> dict[str, torch.Tensor]:
    """The bool mask in the file `path`, or in the folder `path` that export_ticket.py wrote.

    Raises UserError naming file and key if the file is absent, damaged or not a packed mask.
    """
    path = Path(path) / PACKED_MASK if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a mask.pt, or a folder written by experiments/export_ticket.py"
        )
    packed, shapes = _read(path)
    return {key: _unpacked(path, key, packed[key], shapes[key]) for key in shapes}


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            packed = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged, or no safetensors file ({error}); export the ticket anew"
        ) from error
    if SHAPES not in metadata:
        raise UserError(
            f"{path}: a safetensors file, but not a packed mask (no {SHAPES!r} in its metadata)"
        )
    return packed, _shapes(path, metadata[SHAPES], set(packed))


def _shapes(path: Path, text: str, keys: set[str]) -> dict[str, list[int]]:
    try:
        shapes = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path}: its {SHAPES!r} cannot be read ({error}); export the ticket anew"
        ) from error
    if not isinstance(shapes, dict) or set(shapes) != keys or not keys:
        odd = sorted(set(shapes) ^ keys)[:1] if isinstance(shapes, dict) else []
        raise UserError(
            f"{path}: shapes and tensors do not belong together (key {''.join(odd) or 'none at all'})"
        )
    return shapes


def _unpacked(path: Path, key: str, packed: np.ndarray, shape: list[int]) -> torch.Tensor:
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise UserError(f"{path}: {key} has the shape {shape}, which no matrix has")
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-count // 8),):
        raise UserError(
            f"{path}: {key} holds {packed.dtype} {list(packed.shape)}, "
            f"but shape {shape} takes {-(-count // 8)} bytes (uint8)"
        )
    bits = np.unpackbits(packed)
    if bits[count:].any():
        raise UserError(f"{path}: {key} has bits set past its last weight; the file is damaged")
    return torch.from_numpy(bits[:count].astype(bool)).view(shape)
