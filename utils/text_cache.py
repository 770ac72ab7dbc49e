"""The file that a text's WordPieces are kept in: a header, the ids, and where the lines start (of a stream, one 0)."""

import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

FORMAT = 1  # another number makes old caches be built anew
HEADER_BYTES = 4096  # JSON, padded to a page: rewritten by one write


class Partial:
    """A cache in the making: header and ids in one file, starts in another; goes on where its header says."""

    def __init__(self, path: Path, identity: dict, anew: bool):
        self.paths = (path, path.with_name(f"{path.name}.starts"))
        for each in self.paths:
            each.touch()
        fresh = {"identity": identity, "text_done": 0, "ids": 0, "lines": 0, "complete": 0}
        self.header = fresh if anew else self._recorded(identity) or fresh
        self.files = [open(each, "r+b", buffering=0) for each in self.paths]  # noqa: SIM115 - close() closes them
        for file, size in zip(self.files, _part_sizes(self.header), strict=True):
            file.truncate(
                size
            )  # drops what came after the last record; a new file gets zeros: no header, one start
            file.seek(size)

    @property
    def text_done(self) -> int:
        return self.header["text_done"]

    def append(self, text_done: int, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add WordPieces, and lines by their lengths: now the first `text_done` bytes of the text are in."""
        write(self.files[0], ids.tobytes())
        write(self.files[1], (self.header["ids"] + np.cumsum(lengths, dtype=np.int64)).tobytes())
        self.header["text_done"] = text_done
        self.header["ids"] += len(ids)
        self.header["lines"] += len(lengths)

    def record(self) -> None:
        """Bring it to the disk, the header last: a build that is killed from here on loses nothing of it."""
        for file in self.files:
            os.fsync(file.fileno())
        os.pwrite(self.files[0].fileno(), json.dumps(self.header).encode().ljust(HEADER_BYTES), 0)

    def finish(self, cache: Path) -> None:
        """Put the starts behind the ids and rename the file to `cache`."""
        ids, starts = self.files
        write(ids, bytes(_layout(self.header)[0] - ids.tell()))
        starts.seek(0)
        while chunk := starts.read(1 << 20):
            write(ids, chunk)
        self.header["complete"] = 1
        self.record()
        os.fsync(ids.fileno())
        os.replace(self.paths[0], cache)
        self.paths[1].unlink()

    def needed(self) -> int:
        """Bytes of the whole cache, judged by the text so far, or by 4 bytes of text a WordPiece if there is none."""
        text_bytes = self.header["identity"]["text"]["bytes"]
        guess = {**self.header, "ids": text_bytes // 4, "lines": 0}
        if self.text_done:
            guess |= {
                key: self.header[key] * text_bytes // self.text_done for key in ("ids", "lines")
            }
        return _layout(guess)[1]

    def remove(self) -> None:
        """Leave nothing of it."""
        for each in self.paths:
            each.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files:
            file.close()

    def _recorded(self, identity: dict) -> dict | None:
        """The header of a killed build, if it was of this text and tokenizer and what it counts is there."""
        header = _read_header(self.paths[0])
        if header is None or header["identity"] != identity:
            return None
        sizes = zip(self.paths, _part_sizes(header), strict=True)
        return (
            header | {"complete": 0}
            if all(each.stat().st_size >= size for each, size in sizes)
            else None
        )


def write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`: a disk that fills up takes a part first, and fails at the next."""
    while data:
        data = data[file.write(data) :]


def _part_sizes(header: dict) -> tuple[int, int]:
    """Bytes of header and ids, and of the starts."""
    ids_bytes = header["ids"] * np.dtype(header["identity"]["dtype"]).itemsize
    return HEADER_BYTES + ids_bytes, 8 * (header["lines"] + 1)


def _layout(header: dict) -> tuple[int, int]:
    """Where the starts begin in a complete cache (a multiple of 8), and its size, in bytes."""
    ids_end, starts_bytes = _part_sizes(header)
    starts_at = -(-ids_end // 8) * 8
    return starts_at, starts_at + starts_bytes


def _read_header(path: Path) -> dict | None:
    """The header of a cache, complete or in the making; None if there is none that makes sense."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(HEADER_BYTES))
        counts = {key: int(header[key]) for key in ("text_done", "ids", "lines", "complete")}
        return {"identity": dict(header["identity"]), **counts}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fault(cache: Path, identity: dict) -> str | None:
    """Why `cache` is not the one that is wanted; None if it is."""
    header = _read_header(cache)
    if header is None:
        return "is cut short or damaged"
    if header["identity"].get("tokenizer") != identity["tokenizer"]:
        return "is of another tokenizer"
    if header["identity"] != identity:
        return "is of an earlier state of the text"
    if not header["complete"] or cache.stat().st_size != _layout(header)[1]:
        return "is cut short or damaged"
    return None


def mapped(cache: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """ids and starts of a complete cache, memory-mapped."""
    header = _read_header(cache)
    ids = np.memmap(cache, header["identity"]["dtype"], "r", HEADER_BYTES, (header["ids"],))
    if not header["identity"]["by_lines"]:
        return ids, None
    return ids, np.memmap(cache, np.int64, "r", _layout(header)[0], (header["lines"] + 1,))
