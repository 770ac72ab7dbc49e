"""Read the TSV files of the GLUE tasks and tokenize their rows."""

import codecs
import contextlib
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from transformers import BertTokenizer

from utils import files
from utils.config import task_key
from utils.data.rows import LabelledRows, Rows
from utils.errors import UserError

FLOAT32_MAX = float(np.finfo(np.float32).max)
CHUNK = 8192  # texts tokenized at a time: the tokenizer's own objects take kilobytes each

_FILES = {"train": "train.tsv", "dev": "dev.tsv"}
_MATCHED, _MISMATCHED = {"dev": "dev_matched.tsv"}, {"dev_mismatched": "dev_mismatched.tsv"}
_AX = "../diagnostic/diagnostic.tsv"
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("contradiction", "entailment", "neutral")
_NAMES = {  # of the classes 0 and 1, as in the data sets of run_glue
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
    "sst-2": ("negative", "positive"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}
Metric = Literal["acc", "mcc", "pearson"]
_COLA_COLUMNS = ("source", "label", "mark", "sentence")


@dataclass(frozen=True)
class GlueSpec:
    """A GLUE task: its columns, its files, and its classes in the order of the released code."""

    name: str
    labels: tuple[str, ...] | None  # None: the label is a score (regression)
    text_a: str = "sentence1"
    text_b: str | None = "sentence2"
    label: str = "label"
    header: tuple[str, ...] | None = None  # columns of files without a header line
    files: Mapping[str, str] = field(default_factory=lambda: _FILES)  # split -> file name
    metric: Metric = "acc"  # of the paper's tables; "pearson" for regression
    with_f1: bool = False  # F1 of the positive class beside the accuracy
    limits: tuple[float, float] = (-math.inf, math.inf)  # of a score in predictions
    torn: bool = False  # leave out rows with too few columns; the public files have a few

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the head's outputs in config.json."""
        return _NAMES.get(self.name, self.labels or ("LABEL_0",))

    def for_test(self, folder: Path | None) -> "GlueSpec":
        """Return the test sets: indices as labels, and AX if its folder is beside `folder`."""
        dev = {split: name for split, name in self.files.items() if split != "train"}
        found = {s.replace("dev", "test"): name.replace("dev", "test") for s, name in dev.items()}
        if self.name == "mnli" and folder and (folder / _AX).is_file():
            found["ax"] = _AX
        label = "id" if self.name == "qqp" else "index"
        return replace(self, labels=None, label=label, header=None, files=found, torn=False)


_ALL = (
    GlueSpec("cola", _BINARY, "sentence", None, header=_COLA_COLUMNS, metric="mcc"),
    GlueSpec("mnli", _MNLI, label="gold_label", files=_FILES | _MATCHED | _MISMATCHED),
    GlueSpec("mnli-mm", _MNLI, label="gold_label", files={"train": "train.tsv"} | _MISMATCHED),
    GlueSpec("mrpc", _BINARY, "#1 String", "#2 String", "Quality", with_f1=True),
    GlueSpec("sst-2", _BINARY, "sentence", None),
    GlueSpec("sts-b", None, label="score", metric="pearson", limits=(0, 5)),
    GlueSpec("qqp", _BINARY, "question1", "question2", "is_duplicate", with_f1=True, torn=True),
    GlueSpec("qnli", _ENTAILMENT, "question", "sentence"),
    GlueSpec("rte", _ENTAILMENT),
    GlueSpec("wnli", _BINARY),
)
SPECS = {spec.name: spec for spec in _ALL}


def namings(classes: Sequence[str]) -> list[Sequence[str]]:
    """Return the ways to name a task's classes: `classes`, and the labels in the task's files."""
    labels = {spec.labels for spec in _ALL if spec.labels and spec.classes == tuple(classes)}
    return [classes, *labels]


@dataclass
class GlueExamples:
    """The n rows of a file: texts, and labels as class numbers int64 [n] or scores float32 [n]."""

    text_a: list[str]
    text_b: list[str] | None
    labels: np.ndarray

    @classmethod
    def of(cls, spec: GlueSpec, texts: list[list[str]], labels: list[float]) -> Self:
        """Return the examples of a task from the texts of each row, one or two, and its label."""
        text_a, *text_b = (list(column) for column in zip(*texts, strict=True))
        values = np.array(labels, dtype=np.float32 if spec.labels is None else np.int64)
        return cls(text_a, text_b[0] if text_b else None, values)

    def first(self, count: int | None) -> "GlueExamples":
        """Return the first `count` rows, None for all."""
        text_b = self.text_b and self.text_b[:count]
        return GlueExamples(self.text_a[:count], text_b, self.labels[:count])


def find_spec(task_name: str) -> GlueSpec:
    """Return the task of this name in any spelling (STS-B, stsb). Raises UserError if unknown."""
    for spec in _ALL:
        if task_key(spec.name) == task_key(task_name):
            return spec
    near = difflib.get_close_matches(task_name.lower(), SPECS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    names = ", ".join(SPECS)
    raise UserError(f"--task_name {task_name}: no such GLUE task; {hint}(one of {names})")


def load(
    spec: GlueSpec,
    data_dir: Path,
    split: str,
    tokenizer: BertTokenizer,
    max_length: int,
    count: int | None = None,
) -> LabelledRows:
    """Return the first `count` rows of a split (a key of `spec.files`), cut to `max_length` tokens.

    Raises UserError if the file is missing or malformed.
    """
    path = data_dir / spec.files[split]
    if not path.is_file():
        expected = f"--data_dir must hold {' and '.join(spec.files.values())} of {spec.name}"
        raise UserError(f"{path}: no such file; {expected}")
    return tokenize(read_examples(spec, path).first(count), tokenizer, max_length)


def tokenize(examples: GlueExamples, tokenizer: BertTokenizer, max_length: int) -> LabelledRows:
    """Return the rows of examples, cut to `max_length` tokens, with their labels."""
    return LabelledRows(features(examples, tokenizer, max_length), examples.labels)


def read_examples(spec: GlueSpec, path: Path) -> GlueExamples:
    """Return the rows of a TSV file; a quote is a plain character and only a newline ends a row.

    A warning lists the torn rows of QQP. Raises UserError that names the file, the first malformed
    row (its line, from 1) and the remedy.
    """
    lines = enumerate(_read_lines(path), 1)
    header = list(spec.header or next(lines)[1].split("\t"))
    columns = [name for name in (spec.label, spec.text_a, spec.text_b) if name]
    for name in columns:
        if name not in header:
            missing = f"the header has no column {name!r} ({spec.name} needs it)"
            raise UserError(f"{path} row 1: {missing}, only {', '.join(map(repr, header))[:200]}")
    needed = [header.index(name) for name in columns]
    rows: list[list[str]] = []  # only the needed texts: MNLI has long columns without use
    labels: list[float] = []
    torn: list[int] = []
    wrong: dict[int, int] = {}  # columns of a row with too few or too many
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) == len(header):
            label, *texts = (cells[column] for column in needed)
            labels.append(parse_label(spec, label, f"{path} row {number}"))
            rows.append(texts)
        elif spec.torn and len(cells) < len(header):
            torn.append(number)
        else:
            wrong[number] = len(cells)
    if wrong:
        number, width = next(iter(wrong.items()))
        numbers = ", ".join(map(str, list(wrong)[:50]))
        others = f" ({len(wrong)} such rows: {numbers})" if len(wrong) > 1 else ""
        what = f"{width} columns instead of {len(header)}{others}"
        raise UserError(f"{path} row {number}: {what}; fix or delete it")
    if not rows:
        raise UserError(f"{path}: no rows below the header; {spec.name} needs at least one")
    if torn:
        what = "rows with too few columns are left out, as the released code does"
        files.warn(f"{path}: {what}: {', '.join(map(str, torn))}")
    return GlueExamples.of(spec, rows, labels)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file without byte-order mark, line ends and blank last lines."""
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = content.decode()
    except UnicodeDecodeError as error:
        row, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UserError(f"{path} row {row}: not UTF-8 (byte 0x{byte:02x}); convert it") from None
    # splitlines() would also split at vertical tabs and at U+0085
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" "):
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty; download it again")
    return lines


def parse_label(spec: GlueSpec, text: str, where: str) -> float:
    """Return the class number or the score, which must be finite in float32, the loss's type.

    Raises UserError that starts with `where`.
    """
    if spec.labels is None:
        with contextlib.suppress(ValueError):
            if abs(float(text)) <= FLOAT32_MAX:
                return float(text)
    elif text in spec.labels:
        return spec.labels.index(text)
    wanted = f"one of {', '.join(spec.labels)}" if spec.labels else "a finite number"
    raise UserError(f"{where}: {spec.label} is {text[:60]!r}, must be {wanted}")


def features(examples: GlueExamples, tokenizer: BertTokenizer, max_length: int) -> Rows:
    """Return [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with token types 0 and 1, for each example.

    A row has at most `max_length` tokens. Raises UserError if `max_length` leaves no room for text.
    """
    texts_a, texts_b = examples.text_a, examples.text_b
    room = max_length - (2 if texts_b is None else 3)
    if room < 1:
        raise UserError(f"--max_seq_length {max_length}: no room for text between special tokens")
    plain = tokenizer.backend_tokenizer
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def word_pieces(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in plain.encode_batch_fast(texts, add_special_tokens=False)]

    ids: list[np.ndarray] = []
    sizes: list[int] = []  # tokens of each row's two segments; the second may be empty
    for start in range(0, len(texts_a), CHUNK):
        chunk = slice(start, start + CHUNK)
        all_a = word_pieces(texts_a[chunk])
        all_b = [[]] * len(all_a) if texts_b is None else word_pieces(texts_b[chunk])
        segments: list[list[int]] = []
        for a, b in zip(all_a, all_b, strict=True):
            keep_a, keep_b = longest_first(len(a), len(b), room)
            segments.append([cls, *a[:keep_a], sep])
            segments.append([] if texts_b is None else [*b[:keep_b], sep])
        ids.append(np.fromiter(itertools.chain.from_iterable(segments), dtype=np.int32))
        sizes.extend(map(len, segments))
    types = np.repeat(np.tile(np.array([0, 1], dtype=np.uint8), len(sizes) // 2), sizes)
    return Rows(np.concatenate(ids), types, np.concatenate([[0], np.cumsum(sizes)[1::2]]))


def longest_first(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts fit into `room` if the longer text always loses its last.

    If both are equally long, the second loses, as in the 2020 code: room for 13 is 7 and 6.
    """
    keep_a = min(length_a, max(room - length_b, (room + 1) // 2))
    return keep_a, min(length_b, room - keep_a)
