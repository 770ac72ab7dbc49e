"""The rows of results.jsonl, and run.json: one schema, one writer, one reader."""

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils import files, schema
from utils.errors import UserError
from utils.pruning.origin import Origin


@dataclass(frozen=True)
class MaskInfo:
    """The mask of the subnetwork that a record scores; the default describes the dense model."""

    sparsity: float = 0.0
    file: str | None = None
    sha256: str | None = None
    origin: Origin | None = None


DENSE = MaskInfo()


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation. Scores are percent points, metrics are as the task computes them."""

    task: str
    script: str = ""
    method: str  # "imp" (a round of IMP), "train" (a fine-tuning) or "evaluate" (no training)
    init: str  # initial weights: "pre", "rand" or the mode of the perturbation
    init_info: Origin | None = None
    seed: int
    args: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    sparsity: float  # of the mask that the subnetwork is trained and scored with
    mask: str | None = None
    mask_sha256: str | None = None
    mask_info: Origin | None = None
    step: int = 0
    round: int | None = None  # counted from 1
    final: bool = True  # the end of a training or of a round
    metrics: dict[str, float | None] = field(default_factory=dict)
    score: float | None  # None if it is not defined, as the correlation of constant outputs
    wall_seconds: float = 0.0

    @classmethod
    def from_json(cls, content: Any) -> "EvaluationRecord":
        """Return the record that a JSON value holds. Raises ValueError that says what is wrong."""
        record = schema.from_json(cls, content)
        return dataclasses.replace(record, args=current_names(record.args))

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {k: v.to_json() if isinstance(v, Origin) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Owner:
    """The run that owns an output folder."""

    arguments: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    directory: str = ""  # from which relative paths in the arguments count


def read_owner(folder: Path) -> Owner | None:
    """Return the owner of an output folder, None if run.json is missing or corrupt."""
    with contextlib.suppress(UserError):
        return schema.read(folder / files.RUN, Owner)
    return None


def current_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename recorded arguments to today's flags; earlier versions stored --dir as "init"."""
    return {("dir" if key == "init" else key): value for key, value in arguments.items()}


def append_record(path: Path, record: EvaluationRecord) -> None:
    """Append one row; it starts a new line even after a half-written row."""
    line = json.dumps(record.to_json(), ensure_ascii=False) + "\n"
    with files.naming_path(path), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def remove_later_rows(path: Path, size: int) -> None:
    """Remove what begins after `size` bytes, except rows of evaluations without training."""
    kept, start = [], 0
    with path.open("rb") as lines:
        for line in lines:
            if start < size or b'"method": "evaluate"' in line:
                kept.append(line)
            start += len(line)
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(kept))


def read_records(path: Path) -> tuple[list[tuple[int, EvaluationRecord]], list[str]]:
    """Return the rows of a results file with line numbers from 1, and why others are left out."""
    records, problems = [], []
    if not path.exists():
        return [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append((number, EvaluationRecord.from_json(schema.parse(line))))
        except (json.JSONDecodeError, UnicodeDecodeError):
            why = "half-written last line" if number == len(lines) else "not JSON"
            problems.append(f"{path}, line {number}: {why}; left out")
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}; left out")
    return records, problems
