"""Run a list of commands as plan.py prints it: stage by stage, skipping what is finished, going on after a failure."""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/joblist.py` finds utils

from experiments import command, flags
from experiments.flags import Flags
from utils import files
from utils.errors import UserError

STAGE = "# stage"
STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGINT,
)  # SIGUSR1: SLURM's warning before a time limit
STOPPED = (
    os.EX_TEMPFAIL
)  # exit code of a script that was asked to stop: state saved, the same command goes on


@dataclass(frozen=True)
class Job:
    """One line of a list. `output` is what it leaves behind, `proof` the file that shows it came to its end, if known.

    `paths`: every word of the command as a path, and the folders these lie in; `given`: the flags behind the script.
    """

    line: int
    stage: int  # from 1
    text: str
    output: Path | None
    proof: Path | None
    paths: frozenset[Path]
    given: Flags

    def ended(self) -> bool:
        """Whether a run in this place came to its end: run.json says so, or the one file it makes is there."""
        if self.proof is None or self.proof.name != files.RUN:
            return self.proof is not None and self.proof.is_file()
        return (files.read_json(self.proof) or {}).get("finished") is True

    def differing(self) -> list[str]:
        """The flags of this command that what lies in its place was not made with, and both values."""
        if self.proof.name != files.RUN:
            info = self.proof.with_name(self.proof.name + files.MASK_INFO_SUFFIX)
            return [
                *flags.differing(self.given, flags.of_file(files.read_json(info) or {})).values()
            ]
        arguments = (files.read_json(self.proof) or {}).get("arguments")
        found = flags.differing(self.given, arguments if isinstance(arguments, dict) else {})
        if not found:
            return []
        from utils.run import NEUTRAL  # here, as it takes seconds: it brings torch

        return [told for name, told in found.items() if name not in NEUTRAL]

    def finished(self) -> bool:
        """Whether an earlier run of this very command came to its end."""
        return self.ended() and not self.differing()

    def needs(self, other: "Job") -> bool:
        """Whether a word of this command is, or lies in, the output of `other`."""
        return other.output in self.paths


def read(path: Path) -> list[Job]:
    """The commands of a list; lines that begin with # are comments, "# stage N" begins a stage.

    Raises UserError for an absent or empty list, a line with an open quotation, or two lines with one output.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: the list cannot be read ({error}); make one with experiments/plan.py"
        ) from error
    jobs, stage = [], 1
    for number, text in enumerate(lines, 1):
        if text.startswith(STAGE):
            stage += bool(jobs)
        elif text.strip() and not text.lstrip().startswith("#"):
            jobs.append(_job(path, number, stage, text))
    if not jobs:
        raise UserError(f"{path}: no command in it; make a list with experiments/plan.py")
    owners = Counter(job.output for job in jobs if job.output)
    for job in jobs:
        if owners[job.output] > 1:
            raise UserError(
                f"{path}, line {job.line}: another line writes to {job.output} too; give each its own folder"
            )
    return jobs


def _job(path: Path, number: int, stage: int, text: str) -> Job:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}; mend the quotation marks") from error
    following = dict(zip(words, words[1:], strict=False))
    output = proof = None
    if "--output_dir" in following:
        output = Path(following["--output_dir"])
        proof = output / (
            files.MASK if any(word.endswith("oneshot.py") for word in words) else files.RUN
        )
    elif "--output" in following:
        output = proof = Path(following["--output"])
    paths = frozenset(place for word in words for place in (Path(word), *Path(word).parents))
    return Job(number, stage, text, output, proof, paths, flags.given(words))


class Runner:
    """Runs jobs, one log a job in LIST.logs, and keeps what became of each."""

    def __init__(self, path: Path, jobs: list[Job], side_by_side: int, say: Callable[[str], None]):
        self.jobs, self.side_by_side, self.say = jobs, side_by_side, say
        self.logs = path.with_name(f"{path.name}.logs")
        self.ends: dict[Job, str] = {}
        self._wanted = len(jobs)
        self._children: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, jobs: list[Job]) -> int:
        """Run `jobs` stage by stage: 0 if all are finished now, STOPPED if interrupted, else 1."""
        self._wanted = len(jobs)
        for stage in sorted({job.stage for job in jobs}):
            with ThreadPoolExecutor(self.side_by_side) as pool:
                try:
                    list(pool.map(self._one, [job for job in jobs if job.stage == stage]))
                except KeyboardInterrupt:
                    self._stop()
        for job in jobs:
            self.ends.setdefault(job, "stopped")  # an interrupted pool drops those that waited
        self._summary(jobs)
        if "stopped" in self.ends.values():
            return STOPPED
        return 0 if all(self.ends[job] in ("done", "skipped") for job in jobs) else 1

    def _one(self, job: Job) -> None:
        began = time.monotonic()
        end, note = ("stopped", "") if self._stopped else self._end_of(job)
        self.ends[job] = end
        seconds = f" in {time.monotonic() - began:.0f} s" if end in ("done", "failed") else ""
        place = f"[{len(self.ends)}/{self._wanted}]"
        self.say(f"{place} line {job.line} {end}{seconds}: {job.output or job.text[:80]}{note}")

    def _end_of(self, job: Job) -> tuple[str, str]:
        if job.finished():
            return "skipped", " (finished before)"
        if (
            job.ended() and job.proof.name != files.RUN
        ):  # its script would overwrite what others may have been made with
            told = ", ".join(job.differing())
            return (
                "failed",
                f" (made with other arguments: {told}; remove it or give another place)",
            )
        missing = [
            other
            for other in self.jobs
            if other.line < job.line and job.needs(other) and not other.finished()
        ]
        if missing:
            return (
                "not started",
                f" (needs {missing[0].output}, line {missing[0].line}, which is not finished)",
            )
        code, log = self._call(job)
        if code == 0 and job.output and not job.ended():
            return "failed", f" (ended well, but {job.output} is not finished; see {log})"
        if code == STOPPED or (code and self._stopped):
            return "stopped", " (the same list goes on from here)"
        return ("done", "") if code == 0 else ("failed", f" (exit code {code}; see {log})")

    def _call(self, job: Job) -> tuple[int, Path]:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{job.line:04d}.log"
        with open(log, "ab") as file:
            file.write(f"$ {job.text}\n".encode())
            file.flush()
            child = subprocess.Popen(
                ["bash", "-c", job.text],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
            self._children.add(child)
            if self._stopped:  # between the look at it and the start of the child
                self._stop()
            code = child.wait()
            self._children.discard(child)
        return code, log

    def _environment(self) -> dict[str, str]:
        """Each of several jobs gets its share of the cores, unless the user says otherwise."""
        cores = max(1, len(os.sched_getaffinity(0)) // self.side_by_side)
        return ({"OMP_NUM_THREADS": str(cores)} if self.side_by_side > 1 else {}) | os.environ

    def _stop(self) -> None:
        """Ask the running jobs to stop: the scripts save their state on SIGTERM."""
        self._stopped = True
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.killpg(child.pid, signal.SIGTERM)

    def _summary(self, jobs: list[Job]) -> None:
        counts = Counter(self.ends[job] for job in jobs)
        self.say(
            ", ".join(
                f"{counts[end]} {end}"
                for end in ("done", "skipped", "failed", "stopped", "not started")
                if counts[end]
            )
        )
        for job in jobs:
            if self.ends[job] in ("failed", "not started"):
                self.say(f"{self.ends[job]}: line {job.line}: {job.text}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals to stop end the run as Ctrl-C does, here and not after; once one has come, no other changes how it ends."""
    before = {number: signal.signal(number, _interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, handler)


def _interrupt(_number, _frame) -> None:
    """End as Ctrl-C does, once: SLURM and a batch script may each send the same signal."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "list",
        type=Path,
        help="file of commands, one a line, with '# stage N' between those that wait for each other",
    )
    add("--jobs", type=int, default=1, help="commands that run side by side")
    add("--stage", type=int, help="this stage alone")
    add("--number", type=int, help="this command alone, counted from 0 (in --stage, if given)")
    add(
        "--count",
        action="store_true",
        help="print the number of commands in each stage and run nothing",
    )
    return parser.parse_args(argv)


def chosen(jobs: list[Job], stage: int | None, number: int | None) -> list[Job]:
    """All jobs, those of one stage, or one of them. Raises UserError if there is no such job."""
    found = [job for job in jobs if stage in (None, job.stage)]
    found = found if number is None else found[number : number + 1] if number >= 0 else []
    if not found:
        raise UserError(
            f"--stage {stage} --number {number}: the list has no such command; see --count"
        )
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the list; see Runner.run for the exit code."""
    args = parse(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    jobs = read(args.list)
    if args.count:
        print(*Counter(job.stage for job in jobs).values())
        return 0
    runner = Runner(args.list, jobs, args.jobs, say=lambda line: print(line, flush=True))
    with _interruptible():
        return runner.run(chosen(jobs, args.stage, args.number))


if __name__ == "__main__":
    command.run(main)
