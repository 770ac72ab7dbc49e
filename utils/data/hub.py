"""Datasets of the Hugging Face Hub and local dataset folders, read with the library `datasets`."""

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from utils import files, hub
from utils.config import DataConfig, SquadConfig, TextConfig, task_key
from utils.data.glue import GlueExamples, GlueSpec, parse_label
from utils.data.squad import Questions, check_questions
from utils.data.text import Text
from utils.errors import UserError, first_line

GLUE, SQUAD, SQUAD_V2 = "nyu-mll/glue", "rajpurkar/squad", "rajpurkar/squad_v2"
WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
VALIDATION_PERCENT = 5.0  # of the training rows, if a text has no validation split

_ROWS = 1000  # read at a time
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_MNLI = ("mnli", "mnli-mm")
_CLASSES = dict.fromkeys(_MNLI, ("entailment", "neutral", "contradiction"))  # of nyu-mll/glue
_TEXTS = dict.fromkeys(_MNLI, ("premise", "hypothesis")) | {"mrpc": ("sentence1", "sentence2")}


@dataclass(frozen=True)
class Split:
    """A split of a dataset: its rows (a `datasets.Dataset`) and their name in messages and caches.

    `first` counts the rows of the dataset's split that come before.
    """

    name: str
    rows: Any
    first: int = 0

    @property
    def folder(self) -> Path:
        """The folder of its Arrow files."""
        return Path(self.rows.cache_files[0]["filename"]).parent

    def row(self, number: int) -> str:
        """Name a row in a message; rows count from 0, as in `datasets`."""
        return f"{self.name} row {self.first + number}"

    def read(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield the values of the columns, row by row. Raises UserError."""
        for name in columns:
            if name not in self.rows.column_names:
                found = ", ".join(map(repr, self.rows.column_names))[:200]
                raise UserError(f"{self.name}: has no column {name!r}, only {found}; rename one")
        try:
            for table in self.rows.with_format("arrow").iter(batch_size=_ROWS):
                yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name}: a text is not UTF-8; write the file again") from error

    def texts(self, column: str) -> Iterator[str]:
        """Yield the texts of a column. Raises UserError."""
        for number, (value,) in enumerate(self.read(column)):
            if not isinstance(value, str):
                kind = type(value).__name__
                raise UserError(f"{self.row(number)}: {column!r} is {kind}; give a text")
            yield value


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset: its name with the configuration, and its splits."""

    name: str
    splits: dict[str, Any]

    def split(self, name: str) -> Split:
        """Return a split that must be there and have rows. Raises UserError."""
        if name not in self.splits or not len(self.splits[name]):
            lacks = "no rows in" if name in self.splits else "no split"
            found = ", ".join(self.splits)
            raise UserError(f"{self.name}: has {lacks} {name!r} (splits: {found}); give another")
        return Split(f"{self.name} {name}", self.splits[name])


def load(
    data: DataConfig,
    default: tuple[str, str | None],
    cache_dir: str | None,
    splits: tuple[str, ...] = ("train", "validation"),
) -> Dataset:
    """Return the dataset that the flags name, or the `default` (name, configuration).

    Of a folder, files NAME.parquet or NAME-*.parquet are the split NAME, if all `splits` are there.
    Raises UserError if the dataset cannot be had, OSError if the disk is full.
    """
    name, config = data.dataset_name or default[0], data.dataset_config_name or default[1]
    is_folder = os.path.isdir(name)
    if os.path.isabs(name) and not is_folder:
        raise UserError(f"--dataset_name {name}: no such folder; give another")
    if (Path(name) / "state.json").is_file():
        raise UserError(
            f"--dataset_name {name}: one split alone; save a DatasetDict with all splits"
        )
    offline = "" if is_folder else hub.connect()
    try:
        try:
            found = _load(name, config, cache_dir, splits)
        except ValueError:
            if data.dataset_name is None or data.dataset_config_name or not config:
                raise
            config = None  # not named like the configuration of the default
            found = _load(name, None, cache_dir, splits)
    except Exception as error:  # datasets, pyarrow and the hub client have their own kinds
        _raise_disk_error(error)
        remedy = "rerun the command, or give a local dataset folder or files"
        reason = first_line(error)[:300]
        if is_folder or isinstance(error, ValueError):
            remedy = "see --dataset_config_name, or give another folder or dataset"
        elif offline:
            reason = f"no such folder, not in the cache, and {offline}"
            remedy = "connect, or give a local dataset folder or files"
        elif isinstance(error, FileNotFoundError):
            remedy = "check the name, or log in if it is private"
        raise UserError(f"--dataset_name {name}: {reason}; {remedy}") from error
    shows_config = config and (data.dataset_config_name or not is_folder)
    return Dataset(f"{name} {config}" if shows_config else name, dict(found))


def _load(name: str, config: str | None, cache_dir: str | None, splits: tuple[str, ...]) -> Any:
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # statistics of the hub
    datasets.logging.set_verbosity(files.library_level())
    if not (sys.stderr.isatty() and files.is_printing_process()):
        datasets.disable_progress_bars()
    folder = Path(name)
    is_saved = (folder / "dataset_dict.json").is_file()
    parquet = {each: sorted(map(str, folder.glob(f"{each}[.-]*parquet"))) for each in splits}
    if config and (is_saved or all(parquet.values())):
        raise ValueError(f"has no configuration {config!r}, nor any other; leave it out")
    if is_saved:
        return datasets.load_from_disk(name)
    if all(parquet.values()):  # each alone: together, all would get the class names of the first
        read = functools.partial(datasets.load_dataset, "parquet", cache_dir=cache_dir)
        return {each: read(data_files={each: paths}, split=each) for each, paths in parquet.items()}
    return datasets.load_dataset(name, config, cache_dir=cache_dir)


def _raise_disk_error(error: BaseException | None) -> None:
    """Raise the error of a disk that led to `error`, if one did."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            error.filename = error.filename or "the cache of the library datasets (--cache_dir)"
            raise error
        error = error.__cause__ or error.__context__


def load_glue(spec: GlueSpec, data: DataConfig, cache_dir: str | None) -> Dataset:
    """Return the dataset of a GLUE task, by default from nyu-mll/glue. Raises UserError."""
    config = task_key(spec.name.removesuffix("-mm"))
    splits = tuple(_glue_split(spec, split) for split in spec.files)
    return load(data, (GLUE, config), cache_dir, splits)


def _glue_split(spec: GlueSpec, split: str) -> str:
    """Return the hub's name of a split: validation_matched for dev_matched.tsv."""
    return Path(spec.files[split]).stem.replace("dev", "validation")


def read_glue(spec: GlueSpec, dataset: Dataset, split: str) -> GlueExamples:
    """Return the rows of a split (a key of `spec.files`); classes are matched by their names.

    Integers without names are classes in the order of nyu-mll/glue. Raises UserError that names
    the first malformed row; rows of QQP without a text are left out with a warning, as from files.
    """
    text_a, text_b = _TEXTS.get(spec.name, (spec.text_a, spec.text_b))
    label = "idx" if split.startswith("test") else "label"
    spec = dataclasses.replace(spec, text_a=text_a, text_b=text_b, label=label)
    found = dataset.split(_glue_split(spec, split))
    columns = [name for name in (spec.label, text_a, text_b) if name]
    names = getattr(found.rows.features.get(spec.label), "names", ())
    texts: list[list[str]] = []
    labels: list[float] = []
    torn: list[int] = []
    for number, (label, *row) in enumerate(found.read(*columns)):
        if not all(isinstance(text, str) for text in row):
            if not spec.torn:
                raise UserError(f"{found.row(number)}: {text_a} or {text_b} is no text; delete it")
            torn.append(number)
            continue
        texts.append(row)
        labels.append(parse_label(spec, _label_text(spec, names, label), found.row(number)))
    if torn:
        what = "rows without a text are left out"
        files.warn(f"{found.name}: {what}: {', '.join(map(str, torn))}")
    return GlueExamples.of(spec, texts, labels)


def _label_text(spec: GlueSpec, names: tuple[str, ...], label: Any) -> str:
    """Return a label as the task's files write it; a wrong one as it is."""
    text = str(label)
    if spec.labels is None:
        return text
    ours = _CLASSES.get(spec.name, spec.classes)
    names = names or ours
    if isinstance(label, int) and 0 <= label < len(names):
        text = names[label]
    return str(ours.index(text)) if text in ours and text not in spec.labels else text


def load_squad(data: SquadConfig, v2: bool, cache_dir: str | None) -> Dataset:
    """Return the dataset of SQuAD 1.1, or with `v2` 2.0. Raises UserError."""
    return load(data, (SQUAD_V2 if v2 else SQUAD, None), cache_dir)


def read_squad(dataset: Dataset, split: str, v2: bool) -> Questions:
    """Return the questions of a split; with `v2`, those without answers are impossible.

    Raises UserError as reading a file does.
    """
    found = dataset.split(split)
    columns = ("id", "question", "context", "answers")

    def questions() -> Iterator[tuple[str, str, Any]]:
        for number, (name, question, context, answers) in enumerate(found.read(*columns)):
            listed = _answers(found.row(number), answers)
            entry = {"id": name, "question": question, "answers": listed}
            entry["is_impossible"] = listed == []
            if not isinstance(context, str):
                raise UserError(f"{found.row(number)}: 'context' is no text; delete the row")
            yield found.row(number), context, entry

    examples = check_questions(found.name, questions(), v2)
    digest = hashlib.sha256(json.dumps([vars(each) for each in examples]).encode())
    return Questions(found.name, found.folder, digest.hexdigest(), examples)


def _answers(where: str, value: Any) -> Any:
    """Return {"text": [...], "answer_start": [...]} as a list of answers; others as they are.

    Raises UserError if the lists differ in length.
    """
    if not isinstance(value, dict):
        return value
    texts, starts = value.get("text"), value.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list)):
        return value
    if len(texts) != len(starts):
        counts = f"{len(texts)} text and {len(starts)} answer_start"
        raise UserError(f"{where}: 'answers' has {counts}; give one of each per answer")
    return [{"text": text, "answer_start": at} for text, at in zip(texts, starts, strict=True)]


@dataclass(kw_only=True)
class HubText(Text):
    """The column `text` of a dataset: what a file would hold with a row on each line."""

    split: Split

    @classmethod
    def of(cls, split: Split, tokenizer: BertTokenizer, by_lines: bool, threads: int) -> "HubText":
        """Return the text of a split; its cache lies beside the Arrow files."""
        name = re.sub(r"\W+", "-", f"{split.name} {split.first} {len(split.rows)}").strip("-")
        return cls(split.folder / name, tokenizer, by_lines, threads, split=split)

    @property
    def name(self) -> str:
        """Name of the split in messages."""
        return self.split.name

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the rows, one on a line, in chunks of at most `size` bytes."""
        texts = self.split.texts("text")
        while rows := list(itertools.islice(texts, _ROWS)):
            content = "".join(f"{text}\n" for text in rows).encode()
            yield from (content[at : at + size] for at in range(0, len(content), size))

    def state(self) -> dict[str, Any]:
        """Return the Arrow files' size, a digest of their sizes and times, and the rows."""
        rows = self.split.rows
        found = [os.stat(file["filename"]) for file in rows.cache_files]
        stamps = json.dumps([(each.st_size, each.st_mtime_ns) for each in found])
        return {
            "bytes": sum(each.st_size for each in found),
            "files": hashlib.sha256(stamps.encode()).hexdigest()[:16],
            "rows": [self.split.first, len(rows)],
        }


def load_text(data: TextConfig, cache_dir: str | None) -> dict[str, Split]:
    """Return the splits "train" and "validation" of a dataset, by default WikiText-103.

    Without a validation split, the first rows of the training split become one, as in run_mlm.
    Raises UserError.
    """
    dataset = load(data, WIKITEXT, cache_dir)
    train = dataset.split("train")
    if "validation" in dataset.splits:
        return {"train": train, "validation": dataset.split("validation")}
    percent, total = data.validation_split_percentage or VALIDATION_PERCENT, len(train.rows)
    count = max(1, round(total * percent / 100))
    if count >= total:
        raise UserError(
            f"{train.name}: has {total} rows, too few to evaluate on {percent:g} % of them; give a "
            "dataset with a validation split"
        )
    head, tail = train.rows.select(range(count)), train.rows.select(range(count, total))
    return {"train": Split(train.name, tail, first=count), "validation": Split(train.name, head)}
