"""Checkpoints to resume from: written and read back, found again, dropped when superfluous."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

import torch

from utils import files
from utils.errors import UserError


class State(NamedTuple):
    """A checkpoint to resume from, by its file name; sorts by its place in the run."""

    round: int
    step: int
    digest: str  # the first 16 hex digits of the file's sha256
    path: Path

    @classmethod
    def of(cls, path: Path) -> "State | None":
        """The checkpoint at `path`, None if the name is not one's."""
        parts = path.stem.split("-")[1:]
        if [part.isdecimal() for part in parts[:2]] != [True, True] or [
            len(part) for part in parts[2:]
        ] != [16]:
            return None
        return cls(int(parts[0]), int(parts[1]), parts[2], path)

    def intact(self) -> bool:
        """Whether the file holds what was written."""
        try:
            return files.sha256(self.path).startswith(self.digest)
        except OSError:
            return False

    def load(self) -> dict:
        """What was saved. Raises UserError if the file holds anything but tensors and plain values, without running it."""
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise UserError(
                f"{self.path}: not a checkpoint that this program wrote; remove it and run the command again"
            ) from error


def found(folder: Path) -> list[State]:
    """The checkpoints in `folder`, in their order in the run."""
    return sorted(filter(None, map(State.of, folder.glob(f"{files.STATE}-*.pt"))))


def save(folder: Path, content: dict) -> None:
    """Write `content`, of a round and a step, and read it back before older ones go; one of them stays to fall back on.

    Raises OSError if the disk does not take it; the older ones stay then.
    """
    new = folder / f"{files.STATE}-new.pt"
    with files.written_whole(new) as temporary, files.streamed(temporary) as stream:
        torch.save(content, stream)
    digest = stream.sha256.hexdigest()
    if files.sha256(new) != digest:
        raise OSError(errno.EIO, "the disk does not give back what was written", str(new))
    path = folder / f"{files.STATE}-{content['round']}-{content['step']}-{digest[:16]}.pt"
    os.replace(new, path)
    for other in _superfluous(State.of(path), found(folder)):
        other.path.unlink()


def _superfluous(new: State, states: list[State]) -> list[State]:
    """The states older than `new` but the start of its round, or the last of the round before."""
    others = [state for state in states if state.path != new.path]
    same = [state for state in others if new.round and state.round == new.round]
    kept = same[:1] or [state for state in others if state.round < new.round][-1:]
    return [state for state in others if state not in kept]
