"""Names of every file a run leaves behind, and reading and writing them whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

RESULTS = "results.jsonl"  # one row per evaluation
EVAL_RESULTS = "eval_results.txt"  # the last evaluation, as the released code wrote it
TICKETS = "tickets.json"  # sparsity -> mask file and score
MASK = "mask.pt"  # the mask of a round, in its checkpoint folder
MASK_INFO_SUFFIX = ".json"  # mask.pt.json: where a mask or perturbed weights come from
EVENTS = "events"  # TensorBoard events, in a folder of their own
PREDICTIONS = "predictions_{prefix}.json"
NBEST = "nbest_predictions_{prefix}.json"
NULL_ODDS = "null_odds_{prefix}.json"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)  # a Hugging Face folder
REWIND_WEIGHTS = "rewind_weights.pt"  # theta_i of a run that rewinds to i > 0
RUN = "run.json"  # the arguments of the run that owns the folder, and whether it is finished
LOCK = ".lock"
STATE = "state"  # state-ROUND-STEP-DIGEST.pt: a checkpoint to resume from, and the first hex digits of its sha256


GLUE_CACHE = "cached_{split}_{task}_{max_length}_{digest}.npz"  # feature caches, beside the data or in --cache_dir
SQUAD_CACHE = "cached_{split}_squad_{max_length}_{digest}.npz"
TEXT_CACHE = "{text}.{tokenizer}.{mode}.ids"  # mode: stream or lines
TEXT_PARTIAL = ".{cache}.partial"  # a text cache in the making

RUN_FILES = (
    RESULTS,
    EVAL_RESULTS,
    TICKETS,
    EVENTS,
    RUN,
    *MODEL_FILES,
    REWIND_WEIGHTS,
    REWIND_WEIGHTS + MASK_INFO_SUFFIX,
)
REPLACED = "replaced-{number}"  # tickets of a run whose folder was taken by one that finds none
_STATE_NAME = re.compile(rf"{STATE}-(new|\d+-\d+(-[0-9a-f]{{16}})?)\.pt")
_NUMBERED = re.compile(r"checkpoint-\d+|((nbest_)?predictions|null_odds)_\d*\.json")


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint taken after optimizer step `step` (the released code's name)."""
    return f"checkpoint-{step}"


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on an error remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        with telling(path):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
            _flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`, on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        with telling(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            if path.exists():
                old = temporary.with_suffix(".old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            _flush_to_disk(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """An error of the disk as an OSError that names `path`: libraries in Rust tell it in words only, "(os error 28)"."""
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


class Stream:
    """An open file for libraries that write through `write`: digests what passes, and keeps the disk's error."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, data) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def streamed(path: Path) -> Iterator[Stream]:
    """Open `path` for torch.save, which raises a RuntimeError of its own for a full disk: the OSError comes out instead."""
    with open(path, "wb") as file:
        stream = Stream(file)
        try:
            yield stream
        except Exception as error:
            if stream.error is None:
                raise
            raise stream.error from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, None if there is no such file or it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)  # a folder too: its list of names is what a rename changes
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_ours(name: str) -> bool:
    """Whether a run of this project writes a file or folder of this name, so that replacing a run may remove it."""
    return (
        name in RUN_FILES or bool(_NUMBERED.fullmatch(name)) or is_state(name) or is_leftover(name)
    )


def is_state(name: str) -> bool:
    """Whether this is the name of a checkpoint to resume from."""
    return bool(_STATE_NAME.fullmatch(name))


def is_leftover(name: str) -> bool:
    """Whether a run that was killed left this: a file or folder of a run in the making, or on its way out."""
    whole, _, end = name.removeprefix(".").rpartition(".")
    if not name.startswith(".") or end not in ("tmp", "old"):
        return False
    return any(
        each in RUN_FILES or _NUMBERED.fullmatch(each) or is_state(each)
        for each in (whole, whole.rpartition(".")[0])
    )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in an output folder, by step."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def remove_folder(path: Path) -> None:
    """Remove a folder under a temporary name, so that no half of it is left under its own."""
    gone = path.with_name(f".{path.name}.old")
    os.replace(path, gone)
    shutil.rmtree(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
