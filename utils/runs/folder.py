"""The output folder of a run: who owns it, what becomes of the files there, and its lock."""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils import files
from utils.config import OutputConfig, task_key
from utils.errors import UserError
from utils.runs import checkpoint
from utils.runs.records import Owner, current_names, read_owner

Flags = Mapping[str, Any]

# Flags that may differ between a run and its continuation: they change no result.
NEUTRAL_FLAGS = {
    *("overwrite_output_dir", "should_continue", "restart", "overwrite_cache", "cache_dir"),
    *("threads", "checkpoint_minutes", "local_rank", "verbose_logging", "save_total_limit"),
    *("output_dir", "model_type"),
}
_EFFECTIVE_WITH = {  # flag -> flags without which it changes no result
    "evaluate_during_training": ("do_eval", "logging_steps"),
    "logging_steps": ("do_eval", "evaluate_during_training"),
    "eval_all_checkpoints": ("do_eval", "dir", "save_steps"),  # IMP evaluates every round
    "per_gpu_eval_batch_size": ("do_eval", "as_released", "mlm"),
    "null_score_diff_threshold": ("do_eval", "version_2_with_negative"),
    **dict.fromkeys(("eval_data_file", "predict_file", "max_eval_samples"), ("do_eval",)),
    **dict.fromkeys(("n_best_size", "max_answer_length"), ("do_eval",)),
}
_MODEL_FLAGS = ("model_name_or_path", "config_name", "tokenizer_name")


def differences(recorded: Flags, given: Flags, defaults: Flags, directory: str = "") -> list[str]:
    """List the flags that differ in effect; an absent flag of an earlier version is off.

    `defaults`: what flags that are left out mean. `directory`: where `recorded` was given.
    """
    recorded = current_names(dict(recorded))
    there, here = _meaning(recorded, defaults, directory), _meaning(given, defaults)
    return [
        f"--{key} {recorded.get(key)} there, {given.get(key)} here"
        for key in sorted(there.keys() | here.keys())
        if recorded.get(key) != given.get(key) and there.get(key) != here.get(key)
    ]


def _meaning(flags: Flags, defaults: Flags, directory: str = "") -> dict[str, Any]:
    """Return what the flags mean, without those that are off or change no result."""
    values = dict.fromkeys(_MODEL_FLAGS, flags.get(_MODEL_FLAGS[0]))
    values |= {**defaults, **{key: v for key, v in flags.items() if v is not None}}
    idle = {flag for flag, others in _EFFECTIVE_WITH.items() if not all(map(values.get, others))}
    steps = values.get("max_steps")
    if not isinstance(steps, int) or steps <= 0:
        idle.add("max_steps")
    elif not values.get("as_released"):
        idle.add("num_train_epochs")
    if not torch.cuda.is_available():
        idle.add("no_cuda")
    keys = [key for key in values if values[key] and key not in idle | NEUTRAL_FLAGS]
    return {key: _normalize(key, values[key], directory) for key in keys}


def _normalize(key: str, value: Any, directory: str) -> Any:
    if isinstance(value, str):
        path = os.path.join(directory, value)
        real = os.path.realpath(path) if os.path.exists(path) else os.path.normpath(value)
        return task_key(value) if key == "task_name" else real
    return list(value) if isinstance(value, tuple) else value  # as JSON returns it


def summarize(items: list[str]) -> str:
    """Join the first four items; a run of another script differs in many flags."""
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + more


class HeldFolder:
    """An output folder, created if needed, that no other process can hold until `close`.

    Raises UserError if the folder cannot be written or another process holds it.
    """

    finished = False  # whether it holds the finished run of the same arguments

    def __init__(self, path: Path) -> None:
        self.path, self._lock_path = path, path / files.LOCK
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_path.open("a")
        except OSError as error:
            raise UserError(
                f"--output_dir {path}: cannot be written ({error.strerror}); choose another"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"--output_dir {path}: another process is writing there; wait for it or choose "
                "another folder"
            ) from None

    def check_held(self) -> None:
        """Raise UserError if the folder was removed: the earlier files of this run are lost."""
        if not self._is_held():
            raise UserError(
                f"--output_dir {self.path}: removed while this run was writing there; the same "
                "command starts the run from scratch"
            )

    def close(self) -> None:
        """Release the folder, as the end of the process does too; it stays unless it is empty."""
        if self._is_held() and not self._occupied():
            self._lock_path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._lock.close()

    def _is_held(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat())
        except OSError:
            return False

    def _occupied(self) -> bool:
        names = (entry.name for entry in self._entries())
        return any(name != files.LOCK and not files.is_leftover(name) for name in names)

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []


class OutputFolder(HeldFolder):
    """The output folder of a training run, held by this process until `close`.

    Opening raises UserError, with nothing changed, if the folder may not be used. Files of an
    earlier run are removed, but tickets are moved aside, unless --restart repeats the run of the
    same arguments. Files that no run writes stay. `defaults`: what flags that are left out mean.
    """

    def __init__(
        self, output: OutputConfig, arguments: dict[str, Any], defaults: Flags | None = None
    ) -> None:
        self.path = Path(output.output_dir)
        self.arguments = arguments
        self._output, self._defaults = output, defaults or {}
        self._decide()  # a refusal leaves no trace, not even the lock file
        super().__init__(self.path)
        try:
            action = self._decide()  # now no other process can change the folder
            self.finished = action == "finished"
            if action == "replace":
                self._clear()
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
        recorded = found or Owner(self.arguments)
        differing = differences(
            recorded.arguments, self.arguments, self._defaults, recorded.directory
        )
        ours = found is not None and not differing
        unfinished = ours and not recorded.finished
        self._ours, self._differing = ours, differing
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

    def _files_to_remove(self) -> list[Path]:
        """List the files of an earlier run by their names; a model that no run put there stays."""
        kept = () if (self.path / files.RUN).exists() else files.MODEL_FILES
        names = (entry.name for entry in self._entries())
        return [self.path / name for name in names if files.is_ours(name) and name not in kept]

    def _spare_inputs(self) -> None:
        """Raise UserError if this run reads a file or folder that it would remove."""
        removed = [entry.resolve() for entry in self._files_to_remove()]
        removes_model = any(entry.name in files.MODEL_FILES for entry in removed)
        for key, value in _meaning(self.arguments, {}).items():
            path = Path(value) if isinstance(value, str) else Path()
            own_model = key in _MODEL_FLAGS and removes_model and path == self.path.resolve()
            if own_model or any(path.is_relative_to(entry) for entry in removed):
                raise UserError(
                    f"--{key} {self.arguments[key]} is in --output_dir {self.path} and this run "
                    "would replace it; give another --output_dir, or move it first"
                )

    def _clear(self) -> None:
        """Remove the files of an earlier run; move them aside if they cost rounds of IMP."""
        other = f" ({summarize(self._differing)})" if self._differing else ""
        aside = None
        rounds = any((path / files.MASK).exists() for path in self._entries())
        found = rounds or (self.path / files.TICKETS).exists()
        if found and not (self._ours and self._output.restart):
            names = (files.REPLACED.format(number=number) for number in itertools.count(1))
            aside = next(self.path / name for name in names if not (self.path / name).exists())
            aside.mkdir()
        elif other:
            files.warn(f"{self.path}: replaces the run there{other}")
        # run.json first: a half-removed run belongs to nobody.
        # tickets.json last: it shows that tickets are there.
        order = {files.RUN: 0, files.TICKETS: 2}
        for entry in sorted(self._files_to_remove(), key=lambda entry: order.get(entry.name, 1)):
            if aside:
                entry.replace(aside / entry.name)
            else:
                files.remove(entry)
        if aside:
            size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
            files.warn(
                f"{self.path}: holds tickets; the files of their run{other} are now in {aside}; "
                f"remove that folder to free {size / 1e6:,.0f} MB"
            )

    def _sweep(self) -> None:
        """Remove what a killed process of this run left half made."""
        for entry in self.path.iterdir():
            if files.is_leftover(entry.name) or (self.finished and files.is_state(entry.name)):
                files.remove(entry)

    def _write_owner(self, finished: bool) -> None:
        owner = Owner(self.arguments, finished, os.getcwd())
        files.write_json(self.path / files.RUN, vars(owner))
