"""The output folder of a run: who owns it, what becomes of the files there, and its lock."""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import files
from utils.config import OutputConfig
from utils.errors import UserError
from utils.runs import checkpoint
from utils.runs.records import Owner, current_names, read_owner

# Flags that may differ between a run and its continuation: they change no result.
NEUTRAL_FLAGS = {
    *("overwrite_output_dir", "should_continue", "restart", "overwrite_cache", "cache_dir"),
    *("threads", "checkpoint_minutes", "local_rank", "verbose_logging", "save_total_limit"),
    "output_dir",
}
_MODEL_FLAGS = ("model_name_or_path", "config_name", "tokenizer_name")


def differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """List the flags that differ in effect; an absent flag of an earlier version is off."""
    recorded = current_names(dict(recorded))
    return [
        f"--{key} {recorded.get(key)} there, {given.get(key)} here"
        for key in sorted((recorded.keys() | given.keys()) - NEUTRAL_FLAGS)
        if _effective(recorded.get(key)) != _effective(given.get(key))
    ]


def _effective(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.normpath(value)  # "data/" is "data"
    if isinstance(value, tuple):
        return list(value)  # as JSON returns it
    return None if value is False else value


def summarize(items: list[str]) -> str:
    """Join the first four items; a run of another script differs in many flags."""
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more


class FolderLock:
    """The lock on an output folder, which it creates; the end of the process releases it too.

    Raises UserError if the folder cannot be written or another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / files.LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        except OSError as error:
            raise UserError(
                f"--output_dir {folder}: cannot be written ({error.strerror}); choose another"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"--output_dir {folder}: another process is writing there; wait for it or "
                "choose another folder"
            ) from None

    def is_held(self) -> bool:
        """Return whether the folder still holds the locked file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock."""
        self._file.close()


class OutputFolder:
    """An output folder held by this process until `close`.

    `finished` is True if the folder holds the finished run of the same arguments. Opening raises
    UserError, with nothing changed, if the folder may not be used. Files of an earlier run are
    removed, but its tickets are moved aside if this run finds none. Files that no run writes stay.
    """

    def __init__(
        self, output: OutputConfig, arguments: dict[str, Any], finds_tickets: bool
    ) -> None:
        self.path = Path(output.output_dir)
        self.arguments = arguments
        self._output = output
        self._decide()  # a refusal leaves no trace, not even the lock file
        self._lock = FolderLock(self.path)
        try:
            action = self._decide()  # now no other process can change the folder
            self.finished = action == "finished"
            if action == "replace":
                self._clear(finds_tickets)
                self._write_owner(finished=False)
            self._sweep()
        except BaseException:
            self.close()
            raise

    def finish(self) -> None:
        """Mark the run finished and remove the checkpoints that it no longer needs."""
        self.check_held()
        self._write_owner(finished=True)
        self.finished = True
        self._sweep()

    def check_held(self) -> None:
        """Raise UserError if the folder was removed: the earlier files of this run are lost."""
        if not self._lock.is_held():
            raise UserError(
                f"--output_dir {self.path}: removed while this run was writing there; the same "
                "command starts the run from scratch"
            )

    def close(self) -> None:
        """Release the lock; the folder stays unless it is empty."""
        if self._lock.is_held() and not self._occupied():
            (self.path / files.LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._lock.release()

    def _decide(self) -> str:
        """Return what to do: "finished", "continue" or "replace". Raises UserError."""
        output, owner = self._output, self.path / files.RUN
        found = read_owner(self.path)
        forced = output.restart and output.overwrite_output_dir
        if found is None and owner.exists() and not forced:
            raise UserError(
                f"{owner}: corrupt, so the owner of this folder is unknown; give --restart and "
                "--overwrite_output_dir to replace it, or another folder"
            )
        differing = self._differences(found)
        ours = found is not None and not differing
        unfinished = found is not None and ours and not found.finished
        if ours and not unfinished and not output.overwrite_output_dir and not output.restart:
            return "finished"
        if output.should_continue and not (unfinished and checkpoint.find(self.path)):
            raise UserError(
                f"--should_continue: {self.path} holds no checkpoint of this command to resume from"
            )
        if unfinished and not output.restart:
            return "continue"
        may_replace = output.overwrite_output_dir or (unfinished and output.restart)
        if self._occupied() and not may_replace:
            other = f"holds a run with other arguments ({summarize(differing)})"
            raise UserError(
                f"--output_dir {self.path} {other if differing else 'is not empty'}; give "
                "--overwrite_output_dir to replace it, or another folder"
            )
        self._spare_inputs()
        return "replace"

    def _differences(self, found: Owner | None) -> list[str]:
        return [] if found is None else differences(found.arguments, self.arguments)

    def _occupied(self) -> bool:
        names = (entry.name for entry in self._entries())
        return any(name != files.LOCK and not files.is_leftover(name) for name in names)

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def _files_to_remove(self) -> list[Path]:
        """List the files of an earlier run by their names; a model that no run put there stays."""
        kept = () if (self.path / files.RUN).exists() else files.MODEL_FILES
        names = (entry.name for entry in self._entries())
        return [self.path / name for name in names if files.is_ours(name) and name not in kept]

    def _spare_inputs(self) -> None:
        """Raise UserError if this run reads a file or folder that it would remove."""
        removed = [entry.resolve() for entry in self._files_to_remove()]
        removes_model = any(entry.name in files.MODEL_FILES for entry in removed)
        for key, value in self.arguments.items():
            if key in NEUTRAL_FLAGS or not isinstance(value, str) or not os.path.exists(value):
                continue
            path = Path(value).resolve()
            own_model = key in _MODEL_FLAGS and removes_model and path == self.path.resolve()
            if own_model or any(path.is_relative_to(entry) for entry in removed):
                raise UserError(
                    f"--{key} {value} is in --output_dir {self.path} and this run would replace "
                    "it; give another --output_dir, or move it first"
                )

    def _clear(self, finds_tickets: bool) -> None:
        """Remove the files of an earlier run, or move its tickets aside if this run finds none."""
        aside = None
        if (self.path / files.TICKETS).exists() and not finds_tickets:
            names = (files.REPLACED.format(number=number) for number in itertools.count(1))
            aside = next(self.path / name for name in names if not (self.path / name).exists())
            aside.mkdir()
            files.warn(f"{self.path}: holds tickets; the files of their run are now in {aside}")
        elif differing := self._differences(read_owner(self.path)):
            files.warn(f"{self.path}: replaces the run there ({summarize(differing)})")
        # run.json first: a half-removed run belongs to nobody.
        # tickets.json last: it shows that tickets are there.
        order = {files.RUN: 0, files.TICKETS: 2}
        for entry in sorted(self._files_to_remove(), key=lambda entry: order.get(entry.name, 1)):
            if aside:
                entry.replace(aside / entry.name)
            else:
                files.remove(entry)

    def _sweep(self) -> None:
        """Remove what a killed process of this run left half made."""
        for entry in self.path.iterdir():
            if files.is_leftover(entry.name) or (self.finished and files.is_state(entry.name)):
                files.remove(entry)

    def _write_owner(self, finished: bool) -> None:
        owner = Owner(self.arguments, finished)
        files.write_json(self.path / files.RUN, vars(owner))
