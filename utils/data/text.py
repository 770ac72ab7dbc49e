"""A text of any size as blocks of WordPieces, read from a memory-mapped cache beside the text."""

import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import BertTokenizer

from utils import files
from utils.data.rows import Rows
from utils.errors import UserError

PIECE_BYTES = 1 << 15  # of text tokenized at once; larger pieces are not faster
LONGEST_PIECE = 4 << 20  # of text without a break; a byte takes up to 450 bytes of memory
# BERT's tokenizer never joins what these separate. A vertical tab, for example, it drops instead.
WORD_BREAKS = (b" ", b"\n", b"\r", b"\t")
LINE_BREAKS = (b"\n", b"\r")

CACHE_NAME = "{text}.{tokenizer}.{mode}.ids"  # mode: stream or lines
HEADER_BYTES = 4096  # JSON with spaces up to here; then the ids; then, 8-byte aligned, the starts
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_warn_once = functools.cache(files.warn)

Arrays = tuple[np.ndarray, np.ndarray | None, str]  # ids, starts and digest, as in Blocks


@dataclass(frozen=True)
class Blocks:
    """Rows of at most `block_size` WordPieces with [CLS] and [SEP], read from the cache on demand.

    ids: WordPiece ids of the whole text without special tokens, uint16 or int32 [WordPieces].
    starts: None for one stream, which is cut into full blocks; else int64 [lines + 1], line r is
    ids[starts[r]:starts[r + 1]], truncated to the block when it is read.
    """

    ids: np.ndarray
    starts: np.ndarray | None
    block_size: int
    cls_id: int
    sep_id: int
    digest: str = ""  # of all WordPieces and lines

    def __len__(self) -> int:
        if self.starts is None:
            return len(self.ids) // (self.block_size - 2)
        return len(self.starts) - 1

    def first(self, count: int | None) -> "Blocks":
        """Return the first `count` blocks, None for all."""
        if count is None or count >= len(self):
            return self
        if self.starts is None:
            return replace(self, ids=self.ids[: count * (self.block_size - 2)])
        return replace(self, starts=self.starts[: count + 1])

    def gather(self, indices: np.ndarray) -> Rows:
        """Return the blocks `indices`, int64 [n], as n rows in memory. Raises IndexError."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"blocks {indices.min()} to {indices.max()} of {len(self)}")
        body = self.block_size - 2
        if self.starts is None:
            first, last = indices * body, (indices + 1) * body
        else:
            first = self.starts[indices]
            last = np.minimum(self.starts[indices + 1], first + body)
        starts = np.concatenate([[0], np.cumsum(last - first + 2)])
        ids = np.empty(starts[-1], dtype=np.int32)
        ids[starts[:-1]], ids[starts[1:] - 1] = self.cls_id, self.sep_id
        for row, (a, b) in enumerate(zip(first, last, strict=True)):
            ids[starts[row] + 1 : starts[row + 1] - 1] = self.ids[a:b]
        return Rows(ids, np.zeros(len(ids), dtype=np.uint8), starts)


@dataclass
class Text:
    """A UTF-8 text and how it becomes WordPieces: as one stream, or each non-blank line alone.

    `identity` holds what a cache must have been built from, as JSON values. Raises UserError if the
    text is missing or empty.
    """

    path: Path
    tokenizer: BertTokenizer
    line_by_line: bool = False
    threads: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        self._plain = self.tokenizer.backend_tokenizer
        parts = (self._plain.to_str(), str(self._plain.encode_special_tokens))
        digests = b"".join(hashlib.sha256(part.encode()).digest() for part in parts)
        largest = max(self._plain.get_vocab(with_added_tokens=True).values())
        self.identity: dict[str, Any] = {
            "format": 2,
            "text": self.state(),
            "tokenizer": hashlib.sha256(digests).hexdigest()[:16],
            "by_lines": self.line_by_line,
            "dtype": "uint16" if largest < 1 << 16 else "int32",
        }

    @property
    def name(self) -> str:
        """Name of the text in messages."""
        return str(self.path)

    def state(self) -> dict[str, Any]:
        """Return size and digest, which detect any edit."""
        if not self.path.is_file():
            remedy = "--train_data_file and --eval_data_file name texts"
            raise UserError(f"{self.path}: no such text file; {remedy}")
        size = self.path.stat().st_size
        if size == 0:
            raise UserError(f"{self.path}: is empty; give a text")
        return {"bytes": size, "sha256": files.file_digest(self.path)}

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the text in chunks of at most `size` bytes."""
        with self.path.open("rb") as file:
            while chunk := file.read(size):
                yield chunk

    def tokenize(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (bytes, WordPiece ids, WordPieces of each line) of the text's pieces in order."""
        breaks = LINE_BREAKS if self.line_by_line else WORD_BREAKS
        pieces = cut_pieces(self.chunks(PIECE_BYTES), breaks, self.name)
        with ThreadPoolExecutor(self.threads) as pool:
            while group := list(itertools.islice(pieces, 4 * self.threads)):  # bounds the memory
                yield from pool.map(self._encode, group)

    def _encode(self, piece: tuple[int, bytes]) -> tuple[int, np.ndarray, np.ndarray]:
        start, content = piece
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {start + error.start} (counted from 0)"
            raise UserError(f"{self.name}: {where} is not UTF-8; convert the text") from error
        texts = [text]
        if self.line_by_line:
            texts = [line for line in text.splitlines() if line.strip()]
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.array([i for each in encodings for i in each.ids], dtype=self.identity["dtype"])
        lengths = [len(each) for each in encodings] if self.line_by_line else []
        return len(content), ids, np.array(lengths, dtype=np.int64)


def cut_pieces(
    chunks: Iterable[bytes], breaks: tuple[bytes, ...], name: str
) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, content) of pieces of about a chunk, each cut behind one of `breaks`.

    Raises UserError if more than LONGEST_PIECE bytes of the text `name` have no break.
    """
    start, piece = 0, b""
    for chunk in chunks:
        piece += chunk
        cut = 1 + max(piece.rfind(each) for each in breaks)
        if cut:
            yield start, piece[:cut]
            start, piece = start + cut, piece[cut:]
        elif len(piece) > LONGEST_PIECE:
            kind = "space" if b" " in breaks else "line break"
            where = f"in {len(piece)} bytes from byte {start}"
            raise UserError(f"{name}: no {kind} {where}; put line breaks into the text")
    if piece:
        yield start, piece


def load_blocks(
    text: Text, block_size: int, cache_dir: str | Path | None = None, overwrite_cache: bool = False
) -> Blocks:
    """Return the blocks of a text, cut as the released code cuts them (Table 1: block size 512).

    A stream becomes blocks of `block_size` - 2 WordPieces (at least 1) within [CLS] and [SEP]; the
    last incomplete block is dropped. With `line_by_line`, each line that is not blank is a row.
    One cache in `cache_dir`, or beside the text, serves all block sizes; of several jobs, one
    builds it. Raises UserError if the text is not UTF-8, too short or without breaks, or if the
    disk is full.
    """
    mode, tokenizer = "lines" if text.line_by_line else "stream", text.identity["tokenizer"][:8]
    folder = Path(cache_dir or text.path.parent)
    cache = folder / CACHE_NAME.format(text=text.path.name, tokenizer=tokenizer, mode=mode)
    found = cache.exists() and not overwrite_cache
    arrays = _map(cache, text.identity) if found else None
    if arrays is None:
        if found:
            files.warn(f"{cache}: corrupt, or of an earlier version of the text; rebuilding it")
        try:
            arrays = _build(text, cache, overwrite_cache)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            what = f"{Path(error.filename).parent}: no space for the WordPieces of {text.name}"
            remedy = "free some, or name another folder with --cache_dir"
            raise UserError(f"{what}; {remedy}") from error
    ids, starts, digest = arrays
    cls_id, sep_id = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id
    blocks = Blocks(ids, starts, block_size, cls_id, sep_id, digest)
    if len(blocks) == 0:
        what = f"fewer than one block of --block_size {block_size} without [CLS] and [SEP]"
        remedy = "give a longer text or a smaller --block_size"
        raise UserError(f"{text.name}: has {len(ids)} WordPieces, {what}; {remedy}")
    return blocks


def _map(cache: Path, identity: dict[str, Any]) -> Arrays | None:
    """Memory-map a cache; None if it is missing, not of `identity` or not as it was built."""
    try:
        with cache.open("rb") as file:
            header = json.loads(file.read(HEADER_BYTES))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if header["identity"] != identity or header["digest"] != digest:
            return None
        ids = np.memmap(cache, identity["dtype"], "r", HEADER_BYTES, (header["ids"],))
        starts_at = HEADER_BYTES + ids.nbytes + -ids.nbytes % 8
        starts = np.memmap(cache, np.int64, "r", starts_at, (header["lines"] + 1,))
        if cache.stat().st_size != starts_at + starts.nbytes:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ids, starts if identity["by_lines"] else None, digest


def _build(text: Text, cache: Path, overwrite: bool) -> Arrays:
    """Build the cache, or one for this run in a temporary folder, unless another job does first."""
    with contextlib.ExitStack() as stack:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(cache))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            what = "texts are tokenized into a temporary folder, for this run only"
            _warn_once(f"{cache.parent}: {reason}; {what}; name another with --cache_dir")
            temporary = tempfile.TemporaryDirectory(prefix="wordpieces-")
            cache = Path(stack.enter_context(temporary)) / cache.name
        arrays = None if overwrite else _map(cache, text.identity)
        if arrays is None:
            for leftover in cache.parent.glob(f".{glob.escape(cache.name)}.*.tmp"):
                leftover.unlink()  # of a killed build
            with files.atomic_file(cache) as partial, partial.open("wb") as file:
                _write(text, file)
            arrays = _map(cache, text.identity)  # the mapping outlives a temporary folder
    assert arrays is not None
    return arrays


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Let one job at a time build `cache`."""
    lock = FileLock(cache.with_name(f".{cache.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        files.warn(f"{cache}: waiting for another job that tokenizes this text")
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # a waiting FileLock notices
        lock.release()


def _write(text: Text, file: BinaryIO) -> None:
    total, ids_count, starts = text.identity["text"]["bytes"], 0, [np.zeros(1, dtype=np.int64)]
    body = files.DigestStream(file)
    file.seek(HEADER_BYTES)
    name = f"tokenizing {text.path.name}"
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, delay=1) as bar:
        for size, ids, lengths in text.tokenize():
            body.write(ids.tobytes())
            starts.append(ids_count + np.cumsum(lengths, dtype=np.int64))
            ids_count += len(ids)
            bar.update(size)
    if text.state() != text.identity["text"]:
        raise UserError(f"{text.name}: changed during reading; rerun when it is complete")
    body.write(bytes(-file.tell() % 8))
    for array in starts:
        body.write(array.tobytes())
    lines, digest = sum(map(len, starts)) - 1, body.sha256.hexdigest()
    header = {"identity": text.identity, "ids": ids_count, "lines": lines, "digest": digest}
    file.seek(0)
    file.write(json.dumps(header).encode().ljust(HEADER_BYTES))
