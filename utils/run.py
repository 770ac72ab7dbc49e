"""The output folder of one run: who owns it, what becomes of what lies there, its results."""

import contextlib
import fcntl
import itertools
import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from utils import distributed, files, states
from utils.errors import UserError

# Arguments that may change between a run and its continuation: they change no result.
NEUTRAL = {
    "overwrite_output_dir",
    "should_continue",
    "restart",
    "overwrite_cache",
    "cache_dir",
    "threads",
    "checkpoint_minutes",
    "local_rank",
    "verbose_logging",
    "save_total_limit",
    "output_dir",
}
MODELS = (
    "model_name_or_path",
    "config_name",
    "tokenizer_name",
)  # arguments that may name a model's folder
RESUME_EXIT_CODE = (
    75  # "temporary failure" of sysexits.h: stopped by a signal, state saved, run the command again
)


class Run:
    """An output folder held by this process. Use as a context manager: leaving it gives the lock back."""

    def __init__(self, folder: Path, arguments: dict):
        self.folder, self.arguments = Path(folder), arguments
        self.finished = False
        self._lock, self._insist, self._finds_tickets = None, False, False
        self._began = time.monotonic()
        self._seconds_before = 0.0

    @classmethod
    def open(
        cls,
        folder: str,
        arguments: dict,
        overwrite: bool,
        insist: bool = False,
        restart: bool = False,
        finds_tickets: bool = False,
    ) -> "Run":
        """Take the folder for a run with `arguments`: new, or the unfinished one of the same arguments.

        `overwrite` (--overwrite_output_dir) allows replacing another run's or a finished run's files; `insist`
        (--should_continue) fails without a checkpoint; `restart` (--restart) never continues. Tickets are replaced by a
        run that `finds_tickets` only; any other moves them out of its way. Raises UserError with nothing changed if the
        folder may not be used.
        """
        if not distributed.first():
            return Follower.of(folder, arguments, insist)
        try:
            run = cls._taken(folder, arguments, overwrite, insist, restart, finds_tickets)
        except UserError:
            distributed.from_first(None)
            raise
        distributed.from_first((run.finished,))
        return run

    @classmethod
    def _taken(
        cls,
        folder: str,
        arguments: dict,
        overwrite: bool,
        insist: bool,
        restart: bool,
        finds_tickets: bool,
    ) -> "Run":
        run = cls(Path(folder), arguments)
        run._finds_tickets = finds_tickets
        run._decide(
            overwrite, insist, restart
        )  # a refusal leaves no trace, not even the lock's file
        with run._creating():
            run._take_lock()
        try:
            run._settle(overwrite, insist, restart)
        except BaseException:
            run.close()
            raise
        return run

    @contextlib.contextmanager
    def _creating(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise UserError(
                f"--output_dir {self.folder}: cannot be written ({error.strerror}); choose another"
            ) from error

    def _take_lock(self) -> None:
        self._lock = open(self.folder / files.LOCK, "a")  # noqa: SIM115 - held until close
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"--output_dir {self.folder}: another process is writing there; "
                "wait for it or choose another folder"
            ) from None

    def _settle(self, overwrite: bool, insist: bool, restart: bool) -> None:
        """Act on the decision, now that no other process can change the folder."""
        decision = self._decide(overwrite, insist, restart)
        self.finished, self._insist = decision == "finished", insist
        if decision == "replace":
            self._clear()
            self._write_owner(finished=False)
        self._sweep()

    def _decide(self, overwrite: bool, insist: bool, restart: bool) -> str:
        """What to do with the folder: it is "finished", to "continue", or to "replace". Raises UserError."""
        owner = self.folder / files.RUN
        found = files.read_json(owner)
        if found is None and owner.exists() and not (restart and overwrite):
            raise UserError(
                f"{owner}: damaged, so whose run this is cannot be told; give --restart and "
                "--overwrite_output_dir to replace it, or another folder"
            )
        differing = self._differing(found)
        ours = found is not None and not differing
        if ours and found.get("finished") and not overwrite and not restart:
            return "finished"
        unfinished = ours and not found.get("finished")
        if insist and not (unfinished and states.found(self.folder)):
            raise UserError(
                f"--should_continue: {self.folder} holds no checkpoint of this command to go on from"
            )
        if unfinished and not restart:
            return "continue"
        if self._filled() and not overwrite and not (unfinished and restart):
            why = (
                f"holds a run with other arguments ({_few(differing)})"
                if differing
                else "is not empty"
            )
            raise UserError(
                f"--output_dir {self.folder} {why}; give --overwrite_output_dir to replace it, "
                "or another folder"
            )
        self._spare_inputs()
        return "replace"

    def _differing(self, found: dict | None) -> list[str]:
        return [] if found is None else _differing(found.get("arguments", {}), self.arguments)

    def _spare_inputs(self) -> None:
        """Raises UserError if this run reads a file or folder that it would remove."""
        going = [entry.resolve() for entry in self._going()]
        model_going = any(entry.name in files.MODEL_FILES for entry in going)
        for key, value in self.arguments.items():
            if key in NEUTRAL or not isinstance(value, str) or not os.path.exists(value):
                continue
            path = Path(value).resolve()
            own_model = key in MODELS and model_going and path == self.folder.resolve()
            if own_model or any(path.is_relative_to(entry) for entry in going):
                raise UserError(
                    f"--{_flag(key)} {value} is in --output_dir {self.folder}, whose run this one would replace; "
                    "give another --output_dir, or move it first"
                )

    def _filled(self) -> bool:
        return self.folder.is_dir() and any(
            entry.name != files.LOCK and not files.is_leftover(entry.name)
            for entry in self.folder.iterdir()
        )

    def _going(self) -> list[Path]:
        """An earlier run's files, by their names: anything else stays, and a model that no run put there."""
        kept = () if (self.folder / files.RUN).exists() else files.MODEL_FILES
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return [entry for entry in entries if files.is_ours(entry.name) and entry.name not in kept]

    def _clear(self) -> None:
        """Remove an earlier run's files, or move them where they are tickets and this run finds none."""
        going, aside = self._going(), None
        if (self.folder / files.TICKETS).exists() and not self._finds_tickets:
            aside = next(path for path in map(self._aside, itertools.count(1)) if not path.exists())
            aside.mkdir()
            print(
                f"{self.folder}: holds tickets; their run's files are now in {aside}",
                file=sys.stderr,
            )
        elif differing := self._differing(files.read_json(self.folder / files.RUN)):
            print(f"{self.folder}: the run there is replaced ({_few(differing)})", file=sys.stderr)
        # run.json first: half a run is nobody's, and never taken for a finished one; last what tells that there are tickets
        for entry in sorted(
            going, key=lambda entry: (entry.name != files.RUN, entry.name == files.TICKETS)
        ):
            entry.replace(aside / entry.name) if aside else files.remove(entry)

    def _aside(self, number: int) -> Path:
        return self.folder / files.REPLACED.format(number=number)

    def _sweep(self) -> None:
        """Remove what a process of this run that was killed left half made."""
        for entry in self.folder.iterdir():
            if files.is_leftover(entry.name) or (self.finished and files.is_state(entry.name)):
                files.remove(entry)

    def _write_owner(self, finished: bool) -> None:
        files.write_json(
            self.folder / files.RUN, {"arguments": self.arguments, "finished": finished}
        )

    def finish(self) -> None:
        """Mark the run finished and drop the checkpoints that it no longer needs."""
        self.check_held()
        self._write_owner(finished=True)
        self.finished = True
        self._sweep()

    def check_held(self) -> None:
        """Raises UserError if the folder, or the lock in it, is gone: what is written now would be half a run's."""
        if self._lock is not None and not self._held():  # None: not a folder of this process alone
            raise UserError(
                f"--output_dir {self.folder}: removed while this run was writing there; "
                "the same command begins the run anew"
            )

    def _held(self) -> bool:
        try:
            return os.path.samestat(
                os.fstat(self._lock.fileno()), os.stat(self.folder / files.LOCK)
            )
        except OSError:
            return False

    def close(self) -> None:
        """Give the lock back; the folder stays."""
        if self._lock:
            if self._held() and not self._filled():
                (self.folder / files.LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def seconds(self) -> float:
        """Wall time of this run so far, over all its processes."""
        return self._seconds_before + time.monotonic() - self._began

    def append_result(self, row: dict) -> None:
        """Add one evaluation to results.jsonl; a line that a crash cut short is ended first."""
        self.check_held()
        append_row(self.folder / files.RESULTS, row)

    def results(self) -> list[dict]:
        """The evaluations so far, oldest first."""
        return read_rows(self.folder / files.RESULTS)

    def save_state(self, state: dict) -> None:
        """Keep `state` to resume from, with how far the results were. Raises OSError if the disk does not take it."""
        self.check_held()
        results = self.folder / files.RESULTS
        size = results.stat().st_size if results.exists() else 0
        states.save(self.folder, {**state, "results_bytes": size, "seconds": self.seconds()})

    def load_state(self) -> dict | None:
        """The last intact state, or None for a run from the start; evaluations after it are taken back."""
        for at in reversed(states.found(self.folder)):
            if at.intact():
                state = at.load()
                self._take_back_results(state["results_bytes"])
                self._seconds_before = state["seconds"]
                return state
            if distributed.first():
                tqdm.write(
                    f"warning: {at.path}: this checkpoint is cut short or damaged; going back to the one before it, "
                    "or to the start",
                    file=sys.stderr,
                )
        if self._insist:
            raise UserError(
                f"--should_continue: {self.folder} holds no intact checkpoint; without the flag, "
                "this command begins the run anew"
            )
        self._take_back_results(0)
        return None

    def _take_back_results(self, size: int) -> None:
        path = self.folder / files.RESULTS
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)


class Follower(Run):
    """The run as all processes but the first see it: they read its state and write nothing."""

    @classmethod
    def of(cls, folder: str, arguments: dict, insist: bool) -> "Follower":
        """The run that the first process has opened; ends this process where the first could not."""
        outcome = distributed.from_first(None)
        if outcome is None:
            raise SystemExit(2)
        run = cls(Path(folder), arguments)
        run.finished, run._insist = outcome[0], insist
        return run

    def finish(self) -> None:
        """Nothing: the first process does it."""

    def append_result(self, row: dict) -> None:
        """Nothing: the first process does it."""

    def save_state(self, state: dict) -> None:
        """Nothing: the first process does it."""

    def _take_back_results(self, size: int) -> None:
        pass


def append_row(path: Path, row: dict) -> None:
    """Append `row` as one JSON line, on a line of its own even after a half-written one."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with files.telling(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict]:
    """The rows of a results file; a line that is not a row is reported on stderr and left out."""
    rows = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            print(f"warning: {path}, line {number}: not a whole row; left out", file=sys.stderr)
    return rows


def _differing(old: dict, new: dict) -> list[str]:
    """The arguments that differ; a flag that is off is like one that an earlier version did not have."""
    keys = sorted((old.keys() | new.keys()) - NEUTRAL)
    return [
        f"--{_flag(key)} {old.get(key)} there, {new.get(key)} here"
        for key in keys
        if _given(old, key) != _given(new, key)
    ]


def _few(told: list[str]) -> str:
    """The first four, and how many more: a run of another script differs in many."""
    return ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")


def _flag(argument: str) -> str:
    return "dir" if argument == "init" else argument


def _given(arguments: dict, key: str) -> object:
    value = arguments.get(key)
    if isinstance(value, str):
        return os.path.normpath(value)  # "data/" is "data"
    return None if value is False else value
