"""A cache of arrays in one .npz file: atomic, safe for concurrent jobs, optional."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import files

Arrays = dict[str, np.ndarray]


def cached_arrays(
    path: Path, names: set[str], build: Callable[[], Arrays], overwrite: bool
) -> Arrays:
    """Return the arrays `names` in the .npz file `path`, or build and write them.

    Warns if the cache is corrupt or has other arrays, and rebuilds it; warns if it cannot be
    written.
    """
    if path.exists() and not overwrite:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)  # checks the CRC of each array
            if set(arrays) == names:
                return arrays
            reason = "it has other arrays"
        except Exception as error:  # numpy, zipfile and zlib have their own kinds
            reason = str(error)
        files.warn(f"{path}: corrupt cache ({reason}); rebuilding it")
    arrays = build()
    try:
        with files.atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        files.warn(f"{path}: cache not written ({error}); continuing without it")
    return arrays
