"""Run a list of commands from plan.py by stage; skip finished ones, continue after failures."""

if __name__ == "__main__":
    import _root  # noqa: F401

import argparse
import contextlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from utils import cli, files, schema
from utils.errors import UserError
from utils.pruning.origin import read_origin
from utils.runs import signals

STOPPED = os.EX_TEMPFAIL  # exit code of a script that saved a checkpoint and stopped on a signal
ORIGIN_FIELDS = {  # flag of a one-shot script -> field of the Origin that it records
    **{"--rate": "sparsity", "--model_name_or_path": "model"},
    **{flag: flag[2:] for flag in ("--method", "--weight", "--mode", "--seed", "--sigma")},
}
STATES = ("done", "skipped", "failed", "stopped", "not started")


class Job:
    """One command of a list: a run in a folder, or a mask or weights made in one shot.

    Raises ValueError for an open quotation mark.
    """

    def __init__(self, line: int, stage: int, text: str, log: Path) -> None:
        self.line, self.stage, self.text, self.log = line, stage, text, log
        self.state = "stopped"  # until it has run
        words = [os.path.expanduser(word) for word in shlex.split(os.path.expandvars(text))]
        self.paths = {path for word in words for path in (Path(word), *Path(word).parents)}
        self.flags = dict(itertools.pairwise(words))
        self.flags |= dict(word.split("=", 1) for word in words if re.match("--.*=", word))
        self.output: Path | None = None  # the folder or file that it writes
        self.tensors: Path | None = None  # the file, if it is made in one shot
        if "--output_dir" in self.flags:
            self.output = Path(self.flags["--output_dir"])
            if any(word.endswith("oneshot.py") for word in words):
                self.tensors = self.output / files.MASK
        elif "--output" in self.flags:
            self.output = self.tensors = Path(self.flags["--output"])

    def complete(self) -> bool:
        """Return whether the output is complete, made by this command or by another one."""
        if self.tensors:
            return self.tensors.is_file()
        if self.output is None:
            return False
        with contextlib.suppress(OSError, ValueError):
            run = schema.parse((self.output / files.RUN).read_bytes())
            return isinstance(run, dict) and run.get("finished") is True
        return False

    def finished(self) -> bool:
        """Return whether this very command is known to be finished."""
        if self.tensors:
            return self.complete() and not self.other_flags()
        logged = self.log.read_bytes() if self.log.is_file() else b""
        return self.complete() and logged.endswith(self._last_line())

    def log_finished(self) -> None:
        """End the log of a finished run; without this line, the script starts and compares."""
        if self.output and not self.tensors:
            with self.log.open("ab") as file:
                file.write(self._last_line())

    def _last_line(self) -> bytes:
        digest = files.file_digest(self.output / files.RUN) if self.output else ""
        return f"finished (run.json {digest}): {self.text}\n".encode()

    def other_flags(self) -> str:
        """Return the flags with which `tensors` was made, if they differ from these."""
        origin = read_origin(self.tensors) if self.tensors else None
        differing = []
        for flag, field in ORIGIN_FIELDS.items():
            made, given = getattr(origin, field, None), self.flags.get(flag)
            made = "magnitude" if made == "omp" else made
            if made is not None and given is not None and not _same(flag, made, given):
                differing.append(f"{flag} {made} there, {given} here")
        return ", ".join(differing)


def _same(flag: str, made: str | float, given: str) -> bool:
    if isinstance(made, str):
        return made == given
    tolerance = 1e-3 if flag == "--rate" else 0.0  # a mask removes a whole number of weights
    try:
        return abs(float(given) - made) <= tolerance
    except ValueError:
        return False


def read(path: Path) -> list[Job]:
    """Return the commands of a list: lines except comments (#); "# stage N" begins a stage.

    Raises UserError for an unreadable or empty list, open quotation marks, or a shared output.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list ({error}); make one with plan.py") from error
    jobs: list[Job] = []
    stage, logs = 1, path.with_name(f"{path.name}.logs")
    for number, text in enumerate(lines, 1):
        if text.startswith("# stage"):
            stage += bool(jobs)
        elif text.strip() and not text.lstrip().startswith("#"):
            try:
                jobs.append(Job(number, stage, text, logs / f"{number:04d}.log"))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; correct the quotes") from error
    if not jobs:
        raise UserError(f"{path}: no command in it; make a list with experiments/plan.py")
    users = Counter(job.output for job in jobs)
    for job in jobs:
        if job.output and users[job.output] > 1:
            reason = f"another line writes to {job.output} too; give each its own folder"
            raise UserError(f"{path}, line {job.line}: {reason}")
    return jobs


class Runner:
    """Runs jobs of a list, `parallel` at a time, until all have run or a signal stops it."""

    def __init__(self, jobs: list[Job], parallel: int) -> None:
        self.jobs, self.parallel = jobs, parallel
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

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
            head = f"[{next(number)}/{len(selected)}] line {job.line} {job.state}{seconds}"
            print(f"{head}: {job.output or job.text[:80]}{note}", flush=True)

        for _, stage in itertools.groupby(selected, lambda job: job.stage):
            with ThreadPoolExecutor(self.parallel) as pool:
                list(pool.map(run_one, stage))
        counts = Counter(job.state for job in selected)
        print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
        for job in selected:
            if job.state in ("failed", "not started"):
                print(f"{job.state}: line {job.line}: {job.text}")
        return STOPPED if counts["stopped"] else int(not counts.keys() <= {"done", "skipped"})

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal: stop the running jobs, which save a checkpoint, and start no more."""
        if not self._stopped:  # SLURM and a batch script may each send the same signal
            self._stopped = True
            for child in list(self._children):
                _terminate(child)

    def _run(self, job: Job) -> tuple[str, str]:
        """Run one job unless it is finished; return its state and a note."""
        if job.finished():
            return "skipped", " (finished before)"
        if other := job.other_flags():  # commands that are finished may have used the file
            remedy = "remove it or give another output"
            return "failed", f" (made with other arguments: {other}; {remedy})"
        for earlier in self.jobs[: self.jobs.index(job)]:
            if earlier.output in job.paths and not earlier.finished():
                needs = f"needs {earlier.output}, line {earlier.line}, which is not finished"
                return "not started", f" ({needs})"
        code = self._call(job)
        if code == STOPPED or (code and self._stopped):
            return "stopped", " (the same list resumes from here)"
        if code or (job.output and not job.complete()):
            problem = "" if code else f", but {job.output} is not finished"
            return "failed", f" (exit code {code}{problem}; see {job.log})"
        job.log_finished()
        return "done", ""

    def _call(self, job: Job) -> int:
        """Run the command in a shell, as a process group of its own; return its exit code."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        cores = max(1, len(os.sched_getaffinity(0)) // self.parallel)
        threads = {"OMP_NUM_THREADS": str(cores)} if self.parallel > 1 else {}
        with job.log.open("a", encoding="utf-8") as file:
            print(f"$ {job.text}", file=file, flush=True)
            child = subprocess.Popen(
                ["bash", "-c", job.text],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=threads | os.environ,
                start_new_session=True,
            )
            self._children.add(child)
            if self._stopped:  # a signal came while the child started
                _terminate(child)
            code = child.wait()
            self._children.discard(child)
        return code


def _terminate(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.killpg(child.pid, signal.SIGTERM)


def main(argv: list[str] | None = None) -> int:
    """Run the list; Runner.run explains the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("list", type=Path, help="file with one command per line; '# stage N' begins a stage")
    add("--jobs", type=int, default=1, help="number of commands that run in parallel")
    add("--stage", type=int, help="run only this stage")
    add("--number", type=int, help="run only this command, counted from 0 (in --stage, if given)")
    add("--count", action="store_true", help="print each stage's number of commands, run nothing")
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
    runner = Runner(jobs, args.jobs)
    signals.install(runner.stop)
    return runner.run(selected)


if __name__ == "__main__":
    cli.run(main)
