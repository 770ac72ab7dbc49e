"""A text file of any size as blocks of WordPieces, read from a memory-mapped cache beside the text."""

import contextlib
import errno
import fcntl
import functools
import glob
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from utils import files, text_cache
from utils.cache import digest
from utils.errors import UserError
from utils.rows import Rows

PIECE_BYTES = 1 << 15  # of text tokenized at once; larger pieces are no faster and take more memory
LONGEST_PIECE = (
    4 << 20
)  # where the text has no place to cut; tokenizing takes up to 450 bytes of memory a byte
RECORD_BYTES = 16 << 20  # of text between two records of progress
SAMPLE_BYTES = 1 << 16
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# BERT's tokenizer looks at each word alone and never joins what these four part (no added token has one inside).
# Other white space is no such place: a vertical tab, say, is dropped as a control character and joins its neighbours.
WORD_BREAKS = (b" ", b"\n", b"\r", b"\t")
LINE_BREAKS = (b"\n", b"\r")


@dataclass(frozen=True)
class Blocks:
    """Examples of at most `block_size` WordPieces, [CLS] and [SEP] included, read from the cache when asked for.

    ids: WordPiece ids of the whole text without special tokens, uint16 or int32 [WordPieces].
    starts: None where the text is one stream, whose last incomplete block is dropped; else, line by line,
    int64 [lines + 1]: line r is ids[starts[r]:starts[r + 1]], cut to the block when it is read.
    """

    ids: np.ndarray
    starts: np.ndarray | None
    block_size: int
    cls_id: int
    sep_id: int

    def __len__(self) -> int:
        return (
            len(self.ids) // (self.block_size - 2) if self.starts is None else len(self.starts) - 1
        )

    def gather(self, indices: np.ndarray) -> Rows:
        """The examples `indices` (int64 [n]) as n rows with token types 0, in memory; IndexError outside the text."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"examples {indices.min()} to {indices.max()} of {len(self)}")
        first, last = self._spans(indices)
        starts = np.zeros(len(indices) + 1, dtype=np.int64)
        np.cumsum(last - first + 2, out=starts[1:])
        ids = np.empty(starts[-1], dtype=np.int32)
        ids[starts[:-1]], ids[starts[1:] - 1] = self.cls_id, self.sep_id
        for start, end, a, b in zip(starts[:-1], starts[1:], first, last, strict=True):
            ids[start + 1 : end - 1] = self.ids[a:b]
        return Rows(ids, np.zeros(len(ids), dtype=np.uint8), starts)

    def rows(self, indices: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """The examples `indices`: int32 [n, block_size]; line by line, a list of n int32 arrays of unequal length."""
        gathered = self.gather(indices)
        if self.starts is None:
            return gathered.ids.reshape(-1, self.block_size)
        return [gathered[row][0] for row in range(len(gathered))]

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in `ids` each example begins and ends, without its special tokens, int64 [n] each."""
        body = self.block_size - 2
        if self.starts is None:
            return indices * body, (indices + 1) * body
        first = np.asarray(self.starts[indices])
        return first, np.minimum(self.starts[indices + 1], first + body)


def load_blocks(
    path: Path,
    tokenizer,
    block_size: int,
    line_by_line: bool = False,
    cache_dir: Path | None = None,
    overwrite_cache: bool = False,
    threads: int | None = None,
) -> Blocks:
    """Blocks of the UTF-8 text at `path`, cut as the paper's code cuts them (Table 1: block size 512).

    The text is one stream of WordPieces in blocks of `block_size` - 2 within [CLS] and [SEP], the rest dropped; with
    `line_by_line`, each line that is not blank is one example, cut to the block. `tokenizer`: a BERT tokenizer of
    transformers. `threads`: pieces of the text tokenized at once, one a core unless given.

    The WordPieces are kept in `cache_dir`, or beside the text, and serve all block sizes. A build that was killed goes
    on where it last recorded its progress; of several jobs one builds and the others wait. A cache is known by the
    tokenizer's digest and by the text's size, modification time and samples of its start, middle and end: an edit that
    changes none of these is not seen, nor is damage inside a cache of the right length (`overwrite_cache` helps).

    UserError: text absent, empty, not UTF-8, shorter than one block, or without breaks; no room for the cache.
    """
    path = Path(path)
    if block_size < 3:
        raise UserError(
            f"--block_size {block_size}: must be at least 3: [CLS], one WordPiece and [SEP]"
        )
    work = _Work.of(path, tokenizer, line_by_line, threads or os.cpu_count() or 1)
    ids, starts = _arrays(work, Path(cache_dir or path.parent), overwrite_cache)
    blocks = Blocks(ids, starts, block_size, tokenizer.cls_token_id, tokenizer.sep_token_id)
    if len(blocks):
        return blocks
    if line_by_line:
        raise UserError(f"{path}: every line is blank; give a text")
    raise UserError(
        f"{path}: has {len(ids)} WordPieces, less than one block of --block_size {block_size} "
        f"({block_size - 2} WordPieces, [CLS] and [SEP]); give a longer text or a smaller --block_size"
    )


# ---- the text and its WordPieces


@dataclass(frozen=True)
class _Work:
    """A text, how it becomes WordPieces, and the identity that its cache must have (plain JSON values)."""

    path: Path
    tokenizer: Tokenizer
    threads: int
    identity: dict

    @classmethod
    def of(cls, path: Path, tokenizer, by_lines: bool, threads: int) -> "_Work":
        backend = Tokenizer.from_str(
            tokenizer.backend_tokenizer.to_str()
        )  # a copy: the caller's keeps its settings
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
        largest = max(backend.get_vocab(with_added_tokens=True).values())
        identity = {
            "format": text_cache.FORMAT,
            "text": _text_state(path),
            "tokenizer": digest(backend.to_str(), str(backend.encode_special_tokens)),
            "by_lines": by_lines,
            "dtype": "uint16" if largest < 1 << 16 else "int32",
        }
        return cls(path, backend, threads, identity)

    def cache_names(self) -> tuple[str, str]:
        """Name of the cache, and the pattern of those that other tokenizers have."""
        mode = "lines" if self.identity["by_lines"] else "stream"
        own = files.TEXT_CACHE.format(
            text=self.path.name, tokenizer=self.identity["tokenizer"][:8], mode=mode
        )
        return own, files.TEXT_CACHE.format(
            text=glob.escape(self.path.name), tokenizer="?" * 8, mode=mode
        )

    def encode(self, start: int, piece: bytes) -> tuple[np.ndarray, np.ndarray]:
        """WordPiece ids of `piece`, which starts at byte `start`; line by line, also how many each line has."""
        try:
            text = piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: byte {start + error.start} (the first is 0) is not UTF-8; "
                "convert the text to UTF-8"
            ) from error
        by_lines, dtype = self.identity["by_lines"], self.identity["dtype"]
        texts = [line for line in text.splitlines() if line.strip()] if by_lines else [text]
        lists = [
            each.ids for each in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        ids = np.concatenate([np.empty(0, dtype), *(np.array(each, dtype) for each in lists)])
        return ids, np.array([len(each) for each in lists] if by_lines else [], np.int64)


def _text_state(path: Path) -> dict:
    """Size, modification time and a digest of three samples: cheap enough for a 13 GB text at every start."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such text file; --train_data_file and --eval_data_file name the texts"
        )
    state = path.stat()
    if state.st_size == 0:
        raise UserError(f"{path}: is empty; give a text")
    samples = []
    with open(path, "rb") as file:
        for start in (0, state.st_size // 2, max(0, state.st_size - SAMPLE_BYTES)):
            file.seek(start)
            samples.append(file.read(SAMPLE_BYTES))
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "samples": digest(*samples)}


def cut_pieces(
    file: BinaryIO, start: int, piece_bytes: int, breaks: tuple[bytes, ...]
) -> Iterator[tuple[int, bytes]]:
    """(start, bytes) of the pieces of `file` from byte `start` on, each read by `piece_bytes` and cut behind a break.

    A piece without a break grows, up to LONGEST_PIECE (UserError).
    """
    file.seek(start)
    piece = b""
    while block := file.read(piece_bytes):
        cut = 1 + max(block.rfind(each) for each in breaks)
        if cut:
            yield start, piece + block[:cut]
            start, piece = start + len(piece) + cut, block[cut:]
        else:
            piece += block
        if len(piece) > LONGEST_PIECE:
            raise UserError(
                f"{file.name}: no {'space' if b' ' in breaks else 'line break'} in {len(piece)} bytes "
                f"from byte {start} on; put line breaks into the text"
            )
    if piece:
        yield start, piece


def _encoded(
    work: _Work, pieces: Iterator[tuple[int, bytes]]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(end, ids, lengths) of the pieces in order, tokenized by threads; few wait at a time, so memory stays flat."""
    waiting, held = deque(), 0
    with ThreadPoolExecutor(work.threads) as pool:
        for start, piece in pieces:
            waiting.append((start + len(piece), len(piece), pool.submit(work.encode, start, piece)))
            held += len(piece)
            while held > 2 * work.threads * PIECE_BYTES:
                end, length, result = waiting.popleft()
                held -= length
                yield end, *result.result()
        for end, _, result in waiting:
            yield end, *result.result()


# ---- the cache, built once


def _arrays(work: _Work, folder: Path, overwrite: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """ids and starts from the cache in `folder`, which is built first if need be."""
    name, all_names = work.cache_names()
    cache = folder / name
    if cache.exists() and not overwrite:
        fault = text_cache.fault(cache, work.identity)
        if fault is None:
            return text_cache.mapped(cache)
        print(f"{cache}: this cache {fault}; building it anew", file=sys.stderr)
    elif others := set(folder.glob(all_names)) - {cache}:
        print(
            f"{min(others)}: this cache is of another tokenizer; building {name}", file=sys.stderr
        )
    return _built(work, cache, overwrite)


def _built(work: _Work, cache: Path, overwrite: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Build `cache`, or take it from the job that did so meanwhile; if it cannot be kept, in a temporary folder."""
    name = files.TEXT_PARTIAL.format(cache=cache.name)
    with contextlib.ExitStack() as stack:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(_claimed(cache.with_name(name)))
        except OSError as error:
            _say_once(
                f"warning: {cache.parent}: cannot be written ({error.strerror}); texts are tokenized into a temporary "
                "folder, for this run alone; name one that keeps them with --cache_dir"
            )
            cache = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wordpieces-")))
                / cache.name
            )
            partial = cache.with_name(name)
        if overwrite or text_cache.fault(cache, work.identity) is not None:
            _build(work, partial, cache, overwrite)
        else:
            partial.unlink(missing_ok=True)
        return text_cache.mapped(cache)  # the mapping outlives the file's name


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


@contextlib.contextmanager
def _claimed(partial: Path) -> Iterator[Path]:
    """`partial`, held by this job alone; where the file system has no locks, a name in a folder of this job's own."""
    while True:
        with open(partial, "ab") as file:
            if not _locked(file):
                break
            # The job that was waited for may have renamed or removed the file: then the lock is on a thing of the past.
            if partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                yield partial
                return
    partial.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{partial.name}-", dir=partial.parent) as own:
        yield Path(own) / partial.name


def _locked(file: BinaryIO) -> bool:
    """Lock `file`, after the job that has it locked; False where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say_once(f"{file.name}: waiting for another job that tokenizes this text")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _build(work: _Work, partial: Path, cache: Path, anew: bool) -> None:
    """Tokenize what `partial` lacks of the text and make it `cache`; what cannot become a cache is removed."""
    with contextlib.closing(text_cache.Partial(partial, work.identity, anew)) as building:
        try:
            _tokenize(work, building)
            building.finish(cache)
        except UserError:
            building.remove()
            raise
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            building.remove()
            needed, free = building.needed(), shutil.disk_usage(cache.parent).free
            raise UserError(
                f"{cache.parent}: no room for the WordPieces of {work.path}: about {needed:,} bytes "
                f"needed, {free:,} free; make room or name another folder with --cache_dir"
            ) from error


def _tokenize(work: _Work, building: text_cache.Partial) -> None:
    recorded, total = building.text_done, work.identity["text"]["bytes"]
    breaks = LINE_BREAKS if work.identity["by_lines"] else WORD_BREAKS
    bar = tqdm(
        total=total,
        initial=recorded,
        unit="B",
        unit_scale=True,
        desc=f"tokenizing {work.path.name}",
        leave=False,
        delay=1,
        mininterval=1,
    )
    with open(work.path, "rb") as file, bar:
        for end, ids, lengths in _encoded(work, cut_pieces(file, recorded, PIECE_BYTES, breaks)):
            building.append(end, ids, lengths)
            bar.update(end - bar.n)
            if end - recorded >= RECORD_BYTES:
                building.record()
                recorded = end
    if _text_state(work.path) != work.identity["text"]:
        raise UserError(f"{work.path}: changed while it was read; start again when it is complete")
