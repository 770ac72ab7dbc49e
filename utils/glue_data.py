"""The GLUE tasks: reading their classic TSV folders, and their rows as WordPieces."""

import codecs
import difflib
import functools
import itertools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils import files
from utils.cache import cached_arrays, digest
from utils.errors import UserError
from utils.rows import Rows

CACHE_FORMAT = "glue rows 2"  # another number makes every older cache void
FLOAT32_MAX = float(np.finfo(np.float32).max)
CHUNK = 8192  # texts tokenized at a time: the tokenizer's own objects take kilobytes each


@dataclass(frozen=True)
class GlueSpec:
    """One task: the names of its columns and files, and its classes in the order of the released code."""

    name: str
    labels: tuple[str, ...] | None  # None: the label is a score (regression)
    text_a: str = "sentence1"
    text_b: str | None = "sentence2"
    label: str = "label"
    header: tuple[str, ...] | None = None  # the columns of files that have no header line
    dev: str | None = "dev.tsv"
    dev_mismatched: str | None = None
    torn: bool = False  # the public files hold a few rows with too few columns, which are left out as the released code does

    @property
    def files(self) -> dict[str, str]:
        """File name of each split: train, dev, and for MNLI dev_mismatched (MNLI-mm: only that, no dev)."""
        files = {"train": "train.tsv", "dev": self.dev, "dev_mismatched": self.dev_mismatched}
        return {split: name for split, name in files.items() if name}


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("contradiction", "entailment", "neutral")
SPECS = {
    spec.name: spec
    for spec in (
        GlueSpec("cola", _BINARY, "sentence", None, header=("source", "label", "mark", "sentence")),
        GlueSpec(
            "mnli",
            _MNLI,
            label="gold_label",
            dev="dev_matched.tsv",
            dev_mismatched="dev_mismatched.tsv",
        ),
        GlueSpec(
            "mnli-mm", _MNLI, label="gold_label", dev=None, dev_mismatched="dev_mismatched.tsv"
        ),
        GlueSpec("mrpc", _BINARY, "#1 String", "#2 String", "Quality"),
        GlueSpec("sst-2", _BINARY, "sentence", None),
        GlueSpec("sts-b", None, label="score"),
        GlueSpec("qqp", _BINARY, "question1", "question2", "is_duplicate", torn=True),
        GlueSpec("qnli", _ENTAILMENT, "question", "sentence"),
        GlueSpec("rte", _ENTAILMENT),
        GlueSpec("wnli", _BINARY),
    )
}


@dataclass
class GlueExamples:
    """The n rows of one file: texts, and labels as class numbers int64 [n] or scores float32 [n].

    left_out: the rows (lines of the file, from 1) that are torn and left out, int64.
    """

    text_a: list[str]
    text_b: list[str] | None
    labels: np.ndarray
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def find_spec(task_name: str) -> GlueSpec:
    """The task of that name in any case (STS-B, sst-2); UserError names the nearest one otherwise."""
    if task_name.lower() in SPECS:
        return SPECS[task_name.lower()]
    near = difflib.get_close_matches(task_name.lower(), SPECS, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"--task_name {task_name}: no such GLUE task; {meant}(one of {', '.join(SPECS)})"
    )


def load(
    spec: GlueSpec,
    data_dir: Path,
    split: str,
    tokenizer,
    max_length: int,
    cache_dir: Path | None = None,
    overwrite_cache: bool = False,
) -> tuple[Rows, np.ndarray]:
    """The rows of one split ("train", "dev", "dev_mismatched") cut to `max_length` tokens, and their labels [n].

    Kept in a cache in `cache_dir`, or beside the data, that is keyed by the file's content and the tokenizer.
    Rows that are left out (torn ones of QQP) are named on stderr. Raises UserError where the file is missing or malformed.
    """
    path = _data_file(spec, data_dir, split)
    specials = f"{tokenizer.cls_token_id} {tokenizer.sep_token_id}"
    key = digest(CACHE_FORMAT, repr(spec), path, _bare(tokenizer).to_str(), specials)
    name = files.GLUE_CACHE.format(split=split, task=spec.name, max_length=max_length, digest=key)
    cache = (cache_dir or data_dir) / name
    build = functools.partial(_arrays, spec, path, tokenizer, max_length)
    arrays = cached_arrays(cache, build, _sound, overwrite_cache)
    if left_out := arrays["left_out"].tolist():
        print(
            f"{path}: rows with too few columns are left out, as the released code does: "
            f"{', '.join(map(str, left_out))}",
            file=sys.stderr,
        )
    return Rows(arrays["ids"], arrays["types"], arrays["starts"]), arrays["labels"]


def read_examples(spec: GlueSpec, path: Path) -> GlueExamples:
    """The rows of a TSV file in its order; a quote is a plain character and only a newline ends a row.

    Raises UserError naming the file, the row (its line, from 1) and the remedy for whatever is not a row of the task.
    """
    lines = _lines(path)
    header = list(spec.header or lines[0].split("\t"))
    first = 1 if spec.header else 2
    for column in (spec.label, spec.text_a, spec.text_b):
        if column is not None and column not in header:
            raise UserError(
                f"{path} row 1: the header has no column {column!r} ({spec.name} needs it), "
                f"only {', '.join(map(repr, header))[:200]}"
            )
    rows = {number: line.split("\t") for number, line in enumerate(lines[first - 1 :], first)}
    left_out = (
        [number for number, row in rows.items() if len(row) < len(header)] if spec.torn else []
    )
    for number in left_out:
        del rows[number]
    if not rows:
        raise UserError(f"{path}: no rows below the header; {spec.name} needs at least one")
    _check_widths(path, rows, header)
    labels = _labels(spec, path, _column(rows, header, spec.label), list(rows))
    text_b = _column(rows, header, spec.text_b) if spec.text_b else None
    return GlueExamples(
        _column(rows, header, spec.text_a), text_b, labels, np.array(left_out, dtype=np.int64)
    )


def features(examples: GlueExamples, tokenizer, max_length: int) -> Rows:
    """[CLS] a [SEP] or [CLS] a [SEP] b [SEP] for each row, with token types 0 and 1, at most `max_length` tokens.

    `tokenizer` is a fast tokenizer of transformers. Raises UserError where `max_length` leaves no room for the texts.
    """
    paired = examples.text_b is not None
    room = max_length - (3 if paired else 2)
    if room < 1:
        raise UserError(
            f"--max_seq_length {max_length}: leaves no room for a text between the special tokens"
        )
    bare = _bare(tokenizer)
    ids_a, counts_a = _word_pieces(bare, examples.text_a)
    if not paired:
        return _assembled([(ids_a, counts_a, np.minimum(counts_a, room))], tokenizer)
    ids_b, counts_b = _word_pieces(bare, examples.text_b)
    keep_a, keep_b = longest_first(counts_a, counts_b, room)
    return _assembled([(ids_a, counts_a, keep_a), (ids_b, counts_b, keep_b)], tokenizer)


def longest_first(
    counts_a: np.ndarray, counts_b: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each pair of texts, int64 [n], fit into `room` when the longer one always loses its last.

    Of two equally long texts the second loses, as in the 2020 WordPiece code: room for 13 is 7 and 6.
    """
    keep_a = np.minimum(counts_a, np.maximum(room - counts_b, (room + 1) // 2))
    return keep_a, np.minimum(counts_b, room - keep_a)


def _data_file(spec: GlueSpec, data_dir: Path, split: str) -> Path:
    path = data_dir / spec.files[split]
    expected = f"--data_dir must hold {' and '.join(spec.files.values())} of {spec.name}"
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; {expected}")
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        raise UserError(f"{path}: no such file, or not readable; {expected}")
    return path


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without byte-order mark, line ends and blank last lines."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = data.decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} row {row}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file"
        ) from None
    # str.splitlines would also split at \x0b, \x85 and others, which real sentences contain
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" "):
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty; fetch it again")
    return lines


def _check_widths(path: Path, rows: dict[int, list[str]], header: list[str]) -> None:
    wrong = [number for number, row in rows.items() if len(row) != len(header)]
    if wrong:
        others = (
            f" ({len(wrong)} such rows: {', '.join(map(str, wrong[:50]))})"
            if len(wrong) > 1
            else ""
        )
        raise UserError(
            f"{path} row {wrong[0]}: {len(rows[wrong[0]])} columns instead of {len(header)}"
            f"{others}; mend or delete it"
        )


def _column(rows: dict[int, list[str]], header: list[str], name: str) -> list[str]:
    at = header.index(name)
    return [row[at] for row in rows.values()]


def _labels(spec: GlueSpec, path: Path, texts: list[str], numbers: list[int]) -> np.ndarray:
    known = {text: number for number, text in enumerate(spec.labels or ())}
    values = [_score(text) if spec.labels is None else known.get(text) for text in texts]
    if None in values:
        at = values.index(None)
        wanted = f"one of {', '.join(known)}" if known else "a finite number"
        raise UserError(
            f"{path} row {numbers[at]}: {spec.label} is {texts[at][:60]!r}, must be {wanted}"
        )
    return np.array(values, dtype=np.float32 if spec.labels is None else np.int64)


def _score(text: str) -> float | None:
    """The number, or None if it is none or not finite in the float32 that the loss is computed in."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if abs(score) <= FLOAT32_MAX else None


def _bare(tokenizer):
    """A copy of the tokenizer's engine that neither cuts nor pads, whatever the last caller left switched on."""
    engine = tokenizer.backend_tokenizer
    bare = type(engine).from_str(engine.to_str())
    bare.no_truncation()
    bare.no_padding()
    return bare


def _word_pieces(bare, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """WordPiece ids of all texts one after another, int32 [tokens], and their number for each text, int64 [n]."""
    counts, chunks = [], []
    for start in range(0, len(texts), CHUNK):
        encoded = [
            one.ids
            for one in bare.encode_batch_fast(
                texts[start : start + CHUNK], add_special_tokens=False
            )
        ]
        counts.extend(map(len, encoded))
        chunks.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype=np.int32))
    return np.concatenate(chunks), np.array(counts, dtype=np.int64)


def _assembled(segments: list[tuple[np.ndarray, np.ndarray, np.ndarray]], tokenizer) -> Rows:
    """Rows from one or two (ids, tokens of each text, tokens of each to keep), special tokens put around them."""
    lengths = 1 + sum(keep + 1 for _, _, keep in segments)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.full(
        starts[-1], tokenizer.sep_token_id, dtype=np.int32
    )  # what no text overwrites stays a [SEP]
    types = np.zeros(starts[-1], dtype=np.uint8)
    ids[starts[:-1]] = tokenizer.cls_token_id
    target = starts[:-1] + 1
    for number, (source, counts, keep) in enumerate(segments):
        ids[_spans(target, keep)] = source[_spans(np.cumsum(counts) - counts, keep)]
        types[_spans(target, keep + 1)] = number
        target = target + keep + 1
    return Rows(ids, types, starts)


def _spans(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (counts[0] of them), then the same from first[1], and so on."""
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _arrays(spec: GlueSpec, path: Path, tokenizer, max_length: int) -> dict[str, np.ndarray]:
    examples = read_examples(spec, path)
    rows = features(examples, tokenizer, max_length)
    return {
        "ids": rows.ids,
        "types": rows.types,
        "starts": rows.starts,
        "labels": examples.labels,
        "left_out": examples.left_out,
    }


def _sound(arrays: dict[str, np.ndarray]) -> bool:
    """Whether cached arrays fit together as rows and labels."""
    if set(arrays) != {"ids", "types", "starts", "labels", "left_out"} or any(
        np.ndim(a) != 1 for a in arrays.values()
    ):
        return False
    ids, types, starts, labels = (arrays[name] for name in ("ids", "types", "starts", "labels"))
    integers = all(array.dtype.kind in "iu" for array in (ids, types, starts))
    ends = len(starts) > 1 and starts[0] == 0 and starts[-1] == len(ids) == len(types)
    return bool(
        integers and ends and len(starts) == len(labels) + 1 and (np.diff(starts) > 0).all()
    )
