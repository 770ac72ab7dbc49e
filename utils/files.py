"""Names of every file that a run writes, and atomic writing: whole or not at all."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger("lottery")  # what is no result; utils/cli.py prints it on stderr
warn = log.warning

RESULTS = "results.jsonl"  # one row per evaluation
EVAL_RESULTS = "eval_results.txt"  # the last evaluation, as the released code writes it
ALL_RESULTS = "all_results.json"  # the same, as Hugging Face's examples write it
TICKETS = "tickets.json"  # sparsity -> mask file and score
MASK = "mask.pt"  # the mask of a round, in its model folder
ORIGIN_SUFFIX = ".json"  # mask.pt.json: where a mask or perturbed weights come from
OVERLAPS = "overlaps.jsonl"  # of the masks of a study, instead of the masks
PACKED_MASK = "mask.safetensors"  # the mask of an exported ticket
EVENTS = "events"  # TensorBoard events, in a folder of their own
PREDICTIONS = "predictions_{prefix}.json"
OUTCOMES = "predictions_{prefix}.npz"  # of an evaluation, per example of the development set
CONNECTIVITY = "connectivity.jsonl"  # of experiments/connectivity.py
NBEST = "nbest_predictions_{prefix}.json"
NULL_ODDS = "null_odds_{prefix}.json"
SUBMISSIONS = {  # to gluebenchmark.com, by task or split
    **{"cola": "CoLA.tsv", "sst-2": "SST-2.tsv", "mrpc": "MRPC.tsv", "sts-b": "STS-B.tsv"},
    **{"qqp": "QQP.tsv", "mnli": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
    **{"qnli": "QNLI.tsv", "rte": "RTE.tsv", "wnli": "WNLI.tsv", "other": "predictions.tsv"},
}
MODEL_FILES = (  # a Hugging Face folder
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
REWIND_WEIGHTS = "rewind_weights.pt"  # theta_i of a run that rewinds to i > 0
RUN = "run.json"  # the arguments of the run that owns the folder, and whether it is finished
LOCK = ".lock"
STATE = "state"  # state-ROUND-STEP-DIGEST.pt: a checkpoint, the start of its sha256 in hex
REPLACED = "replaced-{number}"  # finished rounds that another run moved aside

SQUAD_CACHE = "cached_{split}_squad_{max_length}_{digest}.npz"  # beside the data or in --cache_dir

RUN_FILES = (
    *(RESULTS, EVAL_RESULTS, ALL_RESULTS, TICKETS, EVENTS, RUN, *MODEL_FILES),
    *(REWIND_WEIGHTS, REWIND_WEIGHTS + ORIGIN_SUFFIX, *SUBMISSIONS.values()),
)
_STATE_NAME = re.compile(rf"{STATE}-(new|\d+-\d+(-[0-9a-f]{{16}})?)\.pt")
_NUMBERED = re.compile(r"checkpoint-\d+|((nbest_)?predictions|null_odds)_\d*\.(json|npz)")


def model_folder_name(step: int) -> str:
    """Return the name of the model saved after `step`: checkpoint-STEP, as in the released code."""
    return f"checkpoint-{step}"


def model_folder_step(folder: Path) -> int:
    """Return the optimizer step in the name of a model folder."""
    return int(folder.name.removeprefix("checkpoint-"))


def model_folders(folder: Path) -> list[Path]:
    """Return the model folders in an output folder, by step."""
    found = [path for path in folder.glob("checkpoint-*") if _NUMBERED.fullmatch(path.name)]
    return sorted(found, key=model_folder_step)


def origin_path(path: Path) -> Path:
    """Return the file beside a mask or weight file that records its origin."""
    return path.with_name(path.name + ORIGIN_SUFFIX)


def is_state(name: str) -> bool:
    """Return whether `name` is the file name of a checkpoint to resume from."""
    return bool(_STATE_NAME.fullmatch(name))


def is_leftover(name: str) -> bool:
    """Return whether a killed run left this: a file or folder half written or half removed."""
    whole, _, end = name.removeprefix(".").rpartition(".")
    if not name.startswith(".") or end not in ("tmp", "old"):
        return False
    return any(_is_final(each) for each in (whole, whole.rpartition(".")[0]))


def is_ours(name: str) -> bool:
    """Return whether a run writes a file or folder of this name: replacing it may remove it."""
    return _is_final(name) or is_leftover(name)


def moved_aside(path: Path, below: Path) -> Path | None:
    """Return the folder below `below` to which another run moved `path`, None if none did."""
    inside = path.relative_to(below)
    found = (folder for folder in inside.parents if re.fullmatch(r"replaced-\d+", folder.name))
    return next((below / folder for folder in found), None)


def _is_final(name: str) -> bool:
    return name in RUN_FILES or bool(_NUMBERED.fullmatch(name)) or is_state(name)


def is_printing_process() -> bool:
    """Return whether this process prints: rank 0 of torchrun, or any process without torchrun."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or not os.environ.get("RANK", "0").strip("0")


def library_level() -> int:
    """Return the level for the loggers of libraries: errors, or with --log_level debug all."""
    return logging.DEBUG if log.isEnabledFor(logging.DEBUG) else logging.ERROR


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; success renames it to `path`, an error removes it."""
    temporary = _temporary(path)
    try:
        with naming_path(path):
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(path)
            _flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; success makes it replace `path`, an error removes it."""
    temporary = _temporary(path)
    try:
        with naming_path(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            old = temporary.with_suffix(".old")
            if path.exists():
                path.replace(old)
            temporary.replace(path)
            _flush_to_disk(path.parent)
            if old.exists():
                shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Raise disk errors as OSErrors that name `path`; Rust libraries raise "(os error 28)"."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


class DigestStream:
    """A binary file for torch.save: digests what is written and keeps the disk's error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write and digest `data`."""
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


@contextlib.contextmanager
def open_for_torch(path: Path) -> Iterator[Any]:
    """Yield a DigestStream for torch.save; a full disk raises OSError, not a RuntimeError."""
    with path.open("wb") as file:
        stream = DigestStream(file)
        try:
            yield stream
        except Exception as error:
            if stream.error is None:
                raise
            raise stream.error from error


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; a folder is renamed first, so its name goes at once."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    old = path if is_leftover(path.name) else path.with_name(f".{path.name}.old")
    path.replace(old)
    shutil.rmtree(old)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)  # also for a folder: a rename changes its list of names
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
