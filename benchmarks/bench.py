"""Measure this project against the baseline (baseline.py) on a CPU.

`bench.py WHAT` adds lines of JSON to --out; `bench.py table` prints their summary. All ways work
on the same inputs in turn, each in its own process; transformers' Trainer draws its own batches.
Every line has the load of the machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import table
import whole

ROOT = Path(__file__).resolve().parent.parent
INSIDE = str(ROOT / "benchmarks" / "inside.py")
PASSED_ON = ("tokenizer", "model", "threads", "bf16", "cache")  # flags that a worker needs
WHAT = ("step", "evaluation", "prune", "features", "text", "oneshot", "imp", "startup", "rounds")


class Recorder:
    """Appends measurements to a file of JSON lines and shows them on stderr."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        versions = {name: version(name) for name in ("torch", "transformers")}
        python = platform.python_version()
        self.machine = {"threads": threads, "cpu": cpu(), **versions, "python": python}
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, what: str, way: str, repeat: int, **figures: object) -> None:
        """Append one measurement."""
        row = {"what": what, "way": way, "repeat": repeat, **figures}
        row |= {"load": round(os.getloadavg()[0], 1), **self.machine}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(what, way, repeat, figures, file=sys.stderr, flush=True)


def cpu() -> str:
    """Return the processor's name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.processor()


class Worker:
    """A process that does one thing in one way (inside.py)."""

    def __init__(self, what: str, way: str, args: argparse.Namespace, **more: str) -> None:
        given = {key: value for key, value in vars(args).items() if key in PASSED_ON}
        given |= {"data": str(args.data.resolve()), **more}
        self.process = subprocess.Popen(
            [sys.executable, INSIDE, what, way, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __call__(self, number: int) -> dict:
        """Work on the input `number`; return the measured figures."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def in_turn(
    record: Recorder,
    args: argparse.Namespace,
    ways: Iterable[str],
    repeat: int | None = None,
    **more: str,
) -> None:
    """Let a worker of each way do `args.what` on the same inputs in turn.

    The inputs are 0 to --repeats, or for the repetition `repeat` the three prunes of a model.
    """
    workers = {way: Worker(args.what, way, args, **more) for way in ways}
    if args.what in ("step", "evaluation"):
        for worker in workers.values():
            worker(args.repeats)  # not recorded: it warms up
    for number in range(args.repeats if repeat is None else 3):
        for way, worker in workers.items():
            record(args.what, way, number if repeat is None else repeat, **worker(number))
    for worker in workers.values():
        worker.close()


def measure(args: argparse.Namespace, record: Recorder) -> None:
    """Take the measurements that `args.what` names."""
    both = ("ours", "baseline")
    if args.what in ("step", "evaluation"):
        for task in args.tasks:
            if args.what == "step" or task != "SQuAD":
                in_turn(record, args, args.ways, task=task)
    elif args.what == "prune":
        for repeat in range(args.repeats):
            in_turn(record, args, both, repeat)
    elif args.what == "features":
        in_turn(record, args, ("cold",), task="SST-2")
    elif args.what == "text":
        in_turn(record, args, ("cold", "cached"), text=make_text(args))
    else:
        model = args.model or make_model(args)
        whole.MEASUREMENTS[args.what](args, record, model, Path(args.cache))


def make_model(args: argparse.Namespace) -> str:
    """Write a BERT-base with random weights; return its folder."""
    worker = Worker("make", "ours", args)
    worker(0)
    worker.close()
    return f"{args.cache}/model"


def make_text(args: argparse.Namespace) -> str:
    """Write a text of 1 GB, repetitions of the given one; return its path."""
    sample = (args.data / "pretrain_data" / "en.train").read_bytes()
    path = f"{args.cache}/text"
    with open(path, "wb") as file:
        for _ in range(10**9 // len(sample) + 1):
            file.write(sample)
    return path


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("what", choices=[*WHAT, "table"], help="what to measure")
    out = ROOT / "docs" / "results" / "speed.jsonl"
    add("--out", type=Path, default=out, help="file of JSON lines to add to")
    add("--data", type=Path, help="folder with glue_data/, SQuAD/ and pretrain_data/")
    add("--tokenizer", help="folder with a BERT vocabulary")
    text = "model folder; left out, a BERT-base with random weights"
    add("--model", default=None, help=text)
    tasks = ["CoLA", "SST-2", "STS-B", "RTE", "SQuAD"]
    add("--tasks", nargs="+", default=tasks, help="step, evaluation (only of GLUE): tasks")
    ways = ["ours", "baseline", "longest", "peak"]
    text = "step, evaluation, rounds: ways to compare; for step also trainer (package accelerate)"
    add("--ways", nargs="+", choices=[*ways, "trainer"], default=ways, help=text)
    add("--repeats", type=int, default=5, help="measurements of each way")
    add("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    add("--bf16", action="store_true", help="step, evaluation: all ways under bfloat16 autocast")
    add("--steps", type=int, default=10, help="rounds: optimizer steps of a round")
    args = parser.parse_args()
    if args.what != "table" and not (args.data and args.tokenizer):
        parser.error("--data and --tokenizer are needed")
    return args


def main() -> None:
    """Measure, or print the table."""
    args = parse_args()
    if args.what == "table":
        print(table.markdown(args.out))
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as args.cache:
        measure(args, Recorder(args.out, args.threads))


if __name__ == "__main__":
    main()
