"""A cache of arrays in one .npz file: atomic, safe for concurrent jobs, optional."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import files
from utils.data.rows import content_digest

Arrays = dict[str, np.ndarray]
DIGEST = "digest"


def cached_arrays(path: Path, build: Callable[[], Arrays], overwrite: bool) -> Arrays:
    """Return the arrays in the .npz file `path`, or build and write them.

    Warns if the cache is corrupt or holds another content than was written under this name, and
    rebuilds it; warns if it cannot be written.
    """
    if path.exists() and not overwrite:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)  # checks the CRC of each array
            if arrays.pop(DIGEST, None) == _digest(path, arrays):
                return arrays
            reason = "it has another content"
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
    """Return a digest of the file name and all arrays."""
    return np.array(f"{path.name} {content_digest(*(arrays[name] for name in sorted(arrays)))}")
