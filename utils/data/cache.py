"""A cache of arrays in one .npz file: atomic, safe for concurrent jobs, optional."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import files

Arrays = dict[str, np.ndarray]
DIGEST = "digest"


def cached_arrays(
    path: Path, names: set[str], build: Callable[[], Arrays], overwrite: bool
) -> Arrays:
    """Return the arrays `names` in the .npz file `path`, or build and write them.

    A digest in the file covers its name and arrays. Warns if the cache is corrupt or holds another
    content than was written under this name, and rebuilds it; warns if it cannot be written.
    """
    if path.exists() and not overwrite:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)  # checks the CRC of each array
            digest = arrays.pop(DIGEST, None)
            if set(arrays) == names and np.array_equal(digest, _digest(path, arrays)):
                return arrays
            reason = "it has other arrays"
        except Exception as error:  # numpy, zipfile and zlib have their own kinds
            reason = str(error)
        files.warn(f"{path}: corrupt cache ({reason}); rebuilding it")
    arrays = build()
    try:
        with files.atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays, **{DIGEST: _digest(path, arrays)})  # type: ignore[arg-type]
    except OSError as error:
        files.warn(f"{path}: cache not written ({error}); continuing without it")
    return arrays


def _digest(path: Path, arrays: Arrays) -> np.ndarray:
    """Return the sha256 of the file name and of each array's name, type, shape and values."""
    sha256 = hashlib.sha256(path.name.encode())
    for name, array in sorted(arrays.items()):
        sha256.update(f"{name} {array.dtype} {array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).data)
    return np.frombuffer(sha256.digest(), dtype=np.uint8)
