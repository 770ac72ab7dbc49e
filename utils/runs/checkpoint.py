"""Checkpoints to resume from: finding, writing and verifying them."""

import errno
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils import files, schema
from utils.errors import UserError

# What every checkpoint holds: the bytes of results.jsonl then and the wall time, beside its step
NUMBERS = ("round", "step", "results_bytes", "seconds")


class Checkpoint(NamedTuple):
    """A checkpoint file, described by its name; checkpoints sort by round and step."""

    round: int
    step: int
    digest: str  # the first 16 hex digits of the file's sha256
    path: Path

    def is_intact(self) -> bool:
        """Return whether the file holds what was written."""
        try:
            return files.file_digest(self.path).startswith(self.digest)
        except OSError:
            return False

    def load(self) -> dict[str, Any]:
        """Return the content. Raises UserError if it is not what `save` writes."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            schema.from_json(list[float], [content[key] for key in NUMBERS])
        except Exception as error:  # torch raises many kinds
            raise UserError(
                f"{self.path}: not a checkpoint of this program; remove it, then rerun the command"
            ) from error
        return dict(content)


def find(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in `folder`, oldest first."""
    found = []
    for path in folder.glob(f"{files.STATE}-*-*-*.pt"):
        if files.is_state(path.name):
            _, round_, step, digest = path.stem.split("-")
            found.append(Checkpoint(int(round_), int(step), digest, path))
    return sorted(found)


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write and verify `content`, then remove older checkpoints but one. Raises OSError."""
    new = folder / f"{files.STATE}-new.pt"
    with files.atomic_file(new) as temporary, files.open_for_torch(temporary) as stream:
        torch.save(content, stream)
    digest = stream.sha256.hexdigest()
    if files.file_digest(new) != digest:
        raise OSError(errno.EIO, "the disk does not return what was written", str(new))
    round_, step = content["round"], content["step"]
    path = folder / f"{files.STATE}-{round_}-{step}-{digest[:16]}.pt"
    new.replace(path)
    others = [other for other in find(folder) if other.path != path]
    kept = _fallback(round_, others)
    for other in others:
        if other.path != kept:
            other.path.unlink()


def _fallback(round_: int, others: list[Checkpoint]) -> Path | None:
    """Return the fallback: the start of this round, or the last checkpoint of an earlier one."""
    same_round = [other.path for other in others if round_ and other.round == round_]
    earlier = [other.path for other in others if other.round < round_]
    return next(iter(same_round[:1] or earlier[-1:]), None)
