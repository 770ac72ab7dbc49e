"""Measure this project beside the plain way (plain.py): `bench.py WHAT` adds JSON lines to --out, `bench.py table` sums them up.

Both ways work on the same inputs in turn, each in a process of its own; every line tells how busy the machine was.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import table
import whole

ROOT = Path(__file__).resolve().parent.parent
INSIDE = str(ROOT / "benchmarks" / "inside.py")


class Record:
    """Appends measurements to a file of JSON lines and tells of them on stderr."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        self.machine = {
            "threads": threads,
            "cpu": cpu(),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, what: str, way: str, repeat: int, **figures) -> None:
        row = {
            "what": what,
            "way": way,
            "repeat": repeat,
            **figures,
            "load": round(os.getloadavg()[0], 1),
            **self.machine,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(what, way, repeat, figures, file=sys.stderr, flush=True)


def cpu() -> str:
    """The processor's name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.processor()


class Worker:
    """A process that does one thing one way (inside.py)."""

    def __init__(self, what: str, way: str, args: argparse.Namespace, **more: str):
        given = {
            key: value
            for key, value in vars(args).items()
            if key in ("tokenizer", "model", "threads", "bf16", "cache")
        }
        command = [
            sys.executable,
            INSIDE,
            what,
            way,
            json.dumps({**given, "data": str(args.data.resolve()), **more}),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __call__(self, number: int) -> dict:
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def in_turn(
    record: Record,
    args: argparse.Namespace,
    what: str,
    ways: tuple[str, ...],
    numbers: list[int],
    repeat: int | None = None,
    warm: int | None = None,
    **more: str,
) -> None:
    """Let a worker of each way work on the inputs `numbers` in turn, after input `warm` unrecorded."""
    workers = {way: Worker(what, way, args, **more) for way in ways}
    for worker in workers.values():
        if warm is not None:
            worker(warm)
    for number in numbers:
        for way, worker in workers.items():
            record(what, way, number if repeat is None else repeat, **worker(number))
    for worker in workers.values():
        worker.close()


def measure(args: argparse.Namespace, record: Record) -> None:
    """Take the measurements that `args.what` names."""
    every, both = list(range(args.repeats)), ("ours", "plain")
    if args.what in ("step", "evaluation"):
        for task in (task for task in args.tasks if args.what == "step" or task != "SQuAD"):
            in_turn(record, args, args.what, both, every, warm=args.repeats, task=task)
    elif args.what == "prune":
        for repeat in every:
            in_turn(record, args, "prune", both, [0, 1, 2], repeat)
    elif args.what == "features":
        in_turn(record, args, "features", ("cold", "cached"), every, task="SST-2")
    elif args.what == "text":
        in_turn(record, args, "text", ("cold", "cached"), every, text=make_text(args))
    else:
        model = args.model or make_model(args)
        getattr(whole, args.what)(args, record, model, Path(args.cache))


def make_model(args: argparse.Namespace) -> str:
    """A BERT-base with random weights as a folder."""
    worker = Worker("make", "ours", args)
    worker(0)
    worker.close()
    return f"{args.cache}/model"


def make_text(args: argparse.Namespace) -> str:
    """A text of 1 GB, the one at hand repeated."""
    sample, big = (args.data / "pretrain_data" / "en.train").read_bytes(), f"{args.cache}/text"
    with open(big, "wb") as file:
        for _ in range(10**9 // len(sample) + 1):
            file.write(sample)
    return big


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "what",
        choices=[
            "step",
            "evaluation",
            "prune",
            "features",
            "text",
            "oneshot",
            "imp",
            "startup",
            "rounds",
            "table",
        ],
        help="what to measure",
    )
    add(
        "--out",
        type=Path,
        default=ROOT / "docs" / "results" / "speed.jsonl",
        help="file of JSON lines to add to",
    )
    add("--data", type=Path, help="folder with glue_data/, SQuAD/ and pretrain_data/")
    add("--tokenizer", help="folder with a BERT vocabulary")
    add("--model", default=None, help="model folder; left out, a BERT-base with random weights")
    add(
        "--tasks",
        nargs="+",
        default=["CoLA", "SST-2", "STS-B", "RTE", "SQuAD"],
        help="step, evaluation (of GLUE): tasks",
    )
    add("--repeats", type=int, default=5, help="measurements of each way")
    add("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    add("--bf16", action="store_true", help="step: both ways under bfloat16 autocast")
    add("--steps", type=int, default=10, help="rounds: optimizer steps of a round")
    args = parser.parse_args()
    if args.what != "table" and not (args.data and args.tokenizer):
        parser.error("--data and --tokenizer are needed")
    return args


def main() -> None:
    args = parse_args()
    if args.what == "table":
        print(table.markdown(args.out))
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as args.cache:
        measure(args, Record(args.out, args.threads))


if __name__ == "__main__":
    main()
