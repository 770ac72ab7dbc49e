"""Run a list of commands from plan.py by stage; skip finished ones, continue after failures."""

if __name__ == "__main__":
    import _root  # noqa: F401

import contextlib
import fcntl
import importlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import TextIO

from experiments import preloaded
from utils import cli, files
from utils.config import flag_values
from utils.errors import UserError
from utils.runs import signals
from utils.runs.records import Owner, read_owner
from utils.runs.signals import RESUME_EXIT_CODE as STOPPED

ROOT = Path(__file__).resolve().parent.parent
STATES = ("done", "skipped", "running", "failed", "stopped", "not started", "to come")
BAR = re.compile(r"^.*?%\|.*?\[.*?\]")  # a progress bar; an error may follow on its line
ENDED = re.compile(r"joblist: (\w+) after (\d+) s")  # the last line of an attempt in a log


class Job:
    """One command of a list: a run in a folder, or a mask or weights made in one shot.

    Raises ValueError for an open quotation mark, or if no word is left.
    """

    def __init__(self, line: int, stage: int, text: str, log: Path) -> None:
        self.line, self.stage, self.text, self.log = line, stage, text, log
        self.state = "to come"
        given = [os.path.expanduser(word) for word in shlex.split(os.path.expandvars(text))]
        words = [part for word in given for part in word.split("=", word.startswith("--"))]
        if not words:
            raise ValueError("its variables are empty")
        at = next((at for at, word in enumerate(words) if word.endswith(".py")), 0)
        self.script, self.words = words[at], words[at + 1 :]
        self.paths = {path for word in words for path in (Path(word), *Path(word).parents)}
        flags = dict(itertools.pairwise(words))
        self.output: Path | None = None  # the folder or file that it writes
        self.tensors: Path | None = None  # the file, if it is made in one shot
        if "--output_dir" in flags:
            self.output = Path(flags["--output_dir"])
            if self.script.endswith("oneshot.py"):
                self.tensors = self.output / files.MASK
        elif "--output" in flags:
            self.output = self.tensors = Path(flags["--output"])

    def our_script(self) -> list[str]:
        """Return one of our scripts and its flags, [] if the command is more than that."""
        words = shlex.split(self.text)
        plain = shlex.join(words) == self.text and words[0] == "python"  # a shell changes nothing
        words = words[1 + (words[1:2] == ["-u"]) :]
        ours = words[:1] == [self.script] and Path(self.script).resolve().parent == ROOT
        return words if plain and ours and Path(self.script).is_file() else []

    def complete(self) -> bool:
        """Return whether the output is complete, made by this command or by another one."""
        return self.tensors.is_file() if self.tensors else self._owner().finished

    def _owner(self) -> Owner:
        return (read_owner(self.output) if self.output else None) or Owner()

    def finished(self) -> bool:
        """Return whether this very command is finished.

        The arguments recorded in the folder show it for our runs, else the log shows it.
        """
        if not self.complete():
            return False
        script = Path(self.script)
        if not self.tensors and script.resolve().parent == ROOT:
            from utils.runs import folder  # imports torch

            config, owner = importlib.import_module(script.stem).Config, self._owner()
            with contextlib.suppress(UserError):  # more than flags, such as `&& python ...`
                given = flag_values(cli.parse(config, None, self.words))
                return not folder.differences(owner.arguments, given, {}, owner.directory)
        return self.ended()[0] == "done"

    def look(self) -> tuple[str, str]:
        """Return one of STATES without running the command, and a note."""
        if self.finished():
            return "done", ""
        if _locked(self.log) or (self.output and _locked(self.output / files.LOCK)):
            return "running", ""
        if self.ended()[0] == "failed":
            return "failed", f" ({self.reason()}; see {self.log})"
        return ("stopped" if self._attempt() else "to come"), ""

    def _attempt(self) -> list[str]:
        """Return the lines of the log's latest attempt, none if it is another command's."""
        text = self.log.read_text("utf-8", "replace") if self.log.is_file() else ""
        first, *lines = re.split(r"(?m)^\$ ", text)[-1].splitlines() or [""]
        return [line for line in lines if line.strip()] if first == self.text else []

    def ended(self) -> tuple[str, int]:
        """Return state and seconds at the end of the latest attempt, ("", 0) if it has no end."""
        found = ENDED.fullmatch("".join(self._attempt()[-1:]))
        return (found[1], int(found[2])) if found else ("", 0)

    def reason(self) -> str:
        """Return the last error line of the latest attempt, else its last line."""
        lines = [BAR.sub("", line) for line in self._attempt() if not ENDED.fullmatch(line)]
        lines = [line for line in lines if line.strip()] or ["no output"]
        return ([line for line in lines if "error:" in line] or lines)[-1].strip()[:300]


def read(path: Path) -> list[Job]:
    """Return the commands of a list: lines except comments (#); "# stage N" begins a stage.

    Raises UserError for an unreadable or empty list, a malformed line, a shared output, or a list
    that is for the repository's root, run elsewhere.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        if any("\0" in line for line in lines):
            raise ValueError("a null byte")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the list ({error}); make one with plan.py") from error
    jobs: list[Job] = []
    stage, logs = 1, path.with_name(f"{path.name}.logs")
    for number, text in enumerate(lines, 1):
        if text.startswith("# stage"):
            stage += bool(jobs) and jobs[-1].stage == stage  # an empty stage has no number
        elif text.strip() and not text.lstrip().startswith("#"):
            try:
                jobs.append(Job(number, stage, text, logs / f"{number:04d}.log"))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; correct the line") from error
    if not jobs:
        raise UserError(f"{path}: no command in it; make a list with experiments/plan.py")
    _check(path, jobs)
    return jobs


def _check(path: Path, jobs: list[Job]) -> None:
    users = Counter(job.output for job in jobs)
    for job in jobs:
        where, script = f"{path}, line {job.line}", Path(job.script)
        if (ROOT / script).is_file() and not script.exists() and "cd " not in job.text:
            raise UserError(f"{where}: no {script} in {Path.cwd()}; run the list in {ROOT}")
        if job.output and users[job.output] > 1:
            reason = f"another line writes to {job.output} too; give each its own folder"
            raise UserError(f"{where}: {reason}")


def _locked(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)  # else there is no such file
    return False


def report(jobs: list[Job], parallel: int, dry_run: bool) -> None:
    """Print the state of the jobs; for a dry run, with every command that has not run."""
    taken: dict[str, list[int]] = defaultdict(list)  # script -> seconds of finished commands
    for job in jobs:
        job.state, note = job.look()
        if job.state in ("running", "failed", "stopped") or (dry_run and job.state == "to come"):
            print(f"{job.state}: line {job.line}{note}: {job.text if dry_run else job.output}")
        elif job.ended()[0] == "done":
            taken[job.script].append(job.ended()[1])
    every = list(itertools.chain(*taken.values()))
    rest = [mean(taken.get(job.script, every)) for job in jobs if every and job.state != "done"]
    left = f"; about {timedelta(seconds=round(sum(rest) / parallel))} left" if rest else ""
    print(_counts(jobs) + left)


def _counts(jobs: list[Job]) -> str:
    counts = Counter(job.state for job in jobs)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


class Runner:
    """Runs jobs of a list, `parallel` at a time, until all have run or a signal stops it."""

    def __init__(self, jobs: list[Job], parallel: int) -> None:
        self.jobs, self.parallel = jobs, parallel
        cores = max(1, len(os.sched_getaffinity(0)) // parallel)
        threads = {"OMP_NUM_THREADS": str(cores)} if parallel > 1 else {}
        self._environment = threads | os.environ
        self.server = preloaded.Server(self._environment)
        self._children: set[preloaded.Forked | subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._printing = threading.Lock()  # print writes a line and its end separately

    def run(self, selected: list[Job]) -> int:
        """Run jobs by stage. Return 0 if all are finished, STOPPED if interrupted, else 1."""
        number = itertools.count(1)

        def run_one(job: Job) -> None:
            if self._stopped:
                return
            began = time.monotonic()
            job.state, note = self._run(job)
            ran = job.state in ("done", "failed")
            seconds = f" in {time.monotonic() - began:.0f} s" if ran else ""
            with self._printing:
                head = f"[{next(number)}/{len(selected)}] line {job.line} {job.state}{seconds}"
                print(f"{head}: {job.output or job.text[:80]}{note}", flush=True)

        for _, stage in itertools.groupby(selected, lambda job: job.stage):
            with ThreadPoolExecutor(self.parallel) as pool:
                list(pool.map(run_one, stage))
        print(_counts(selected))
        for job in selected:
            if job.state in ("failed", "not started"):
                print(f"{job.state}: line {job.line}: {job.text}")
        states = {job.state for job in selected} - {"done", "skipped"}
        return STOPPED if states & {"stopped", "to come"} else int(bool(states))

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal: stop the running jobs, which save a checkpoint, and start no more."""
        if not self._stopped:  # SLURM and a batch script may each send the same signal
            self._stopped = True
            for child in list(self._children):
                _terminate(child)
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping; each running command saves a checkpoint first\n")

    def _run(self, job: Job) -> tuple[str, str]:
        """Run one job unless it is finished; return its state and a note."""
        if job.finished():
            return "skipped", " (finished before)"
        for earlier in self.jobs[: self.jobs.index(job)]:
            if earlier.output in job.paths and not earlier.finished():
                needs = f"needs {earlier.output}, line {earlier.line}, which is not finished"
                return "not started", f" ({needs})"
        began = time.monotonic()
        with files.naming_path(job.log):
            return self._judge(job, self._call(job), began)

    def _judge(self, job: Job, code: int, began: float) -> tuple[str, str]:
        """Return the state of an ended job and a note; log the state."""
        state, note = "done", ""
        if code == STOPPED or (code and self._stopped):
            state, note = "stopped", " (the same list resumes from here)"
        elif code or (job.output and not job.complete()):
            name = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            problem = f": {job.reason()}" if code else f", but {job.output} is not finished"
            state, note = "failed", f" ({name}{problem}; see {job.log})"
        with job.log.open("a", encoding="utf-8") as file:
            file.write(f"\njoblist: {state} after {time.monotonic() - began:.0f} s\n")
        return state, note

    def _call(self, job: Job) -> int:
        """Run the command in a shell, as a process group of its own; return its exit code."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("a", encoding="utf-8") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the command inherits the lock
            print(f"\n$ {job.text}", file=file, flush=True)
            child = self._start(job, file)
            self._children.add(child)
            if self._stopped:  # a signal came while the child started
                _terminate(child)
            code = child.wait()
            self._children.discard(child)
        return code

    def _start(self, job: Job, log: TextIO) -> preloaded.Forked | subprocess.Popen[bytes]:
        words = job.our_script()
        if words and (forked := self.server.start(words, log)):
            return forked
        return subprocess.Popen(
            ["bash", "-c", job.text],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )


def _terminate(child: preloaded.Forked | subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.killpg(child.pid, signal.SIGTERM)


def main(argv: list[str] | None = None) -> int:
    """Run the list; Runner.run explains the exit code."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("list", type=Path, help="file with one command per line; '# stage N' begins a stage")
    add("--jobs", type=int, default=1, help="number of commands that run in parallel")
    add("--stage", type=int, help="run only this stage; stages without a command have no number")
    add("--number", type=int, help="run only this command, counted from 0 (in --stage, if given)")
    add("--count", action="store_true", help="print each stage's number of commands, run nothing")
    text = "print what is done, running, failed (with the reason) and to come, run nothing"
    add("--status", action="store_true", help=text)
    add("--dry_run", action="store_true", help="print the commands that would run, run nothing")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    jobs = read(args.list)
    if args.count:
        print(*Counter(job.stage for job in jobs).values())
        return 0
    selected = [job for job in jobs if args.stage in (None, job.stage)]
    if args.number is not None:
        selected = [job for at, job in enumerate(selected) if at == args.number]
    if not selected:
        asked = f"--stage {args.stage} --number {args.number}"
        raise UserError(f"{asked}: no such command; see --count")
    if args.status or args.dry_run:
        report(selected, args.jobs, args.dry_run)
        return 0
    runner = Runner(jobs, args.jobs)
    with signals.handled_by(runner.stop), contextlib.closing(runner.server):
        return runner.run(selected)


if __name__ == "__main__":
    cli.run(main)
