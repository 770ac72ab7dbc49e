"""Feature caches beside the data: keyed by content, tokenizer and settings, safe for many jobs, optional."""

import hashlib
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import files

# what numpy and zipfile raise for archives that are cut short or spoilt
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def digest(*parts: bytes | str | Path) -> str:
    """16 hex digits that change with any part; a Path stands for its file's bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        else:
            total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()[:16]


def cached_arrays(
    path: Path,
    build: Callable[[], dict[str, np.ndarray]],
    sound: Callable[[dict[str, np.ndarray]], bool],
    overwrite: bool = False,
) -> dict[str, np.ndarray]:
    """The arrays in the .npz at `path`, or those that `build` makes, then written there whole.

    A cache that cannot be read or is not `sound` is built anew, one that cannot be written is skipped; both say so on
    stderr.
    """
    if path.exists() and not overwrite:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if not sound(arrays):
                raise ValueError("it holds something else")
            return arrays
        except DAMAGE as error:
            print(
                f"warning: {path}: cache cannot be read ({error}); building it anew",
                file=sys.stderr,
            )
    arrays = build()
    try:
        with files.written_whole(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        print(f"warning: {path}: cache not written ({error}); going on without it", file=sys.stderr)
    return arrays
