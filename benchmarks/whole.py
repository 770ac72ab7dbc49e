"""Whole processes from outside: wall time and peak memory of the scripts and of baseline.py."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = str(ROOT / "benchmarks" / "baseline.py")

# Runs a script until its first optimizer step, prints the seconds since sys.argv[1] and exits.
UNTIL_FIRST_STEP = """
import os, runpy, sys, time
began, sys.argv = float(sys.argv[1]), sys.argv[2:]
from utils.training import trainer
def first_step(*_):
    print(time.time() - began, flush=True)
    os._exit(0)
trainer.Trainer.step = first_step
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Record = Callable[..., None]


def timed(*arguments: object) -> dict:
    """Run Python; return wall and processor seconds and the peak of resident memory in bytes."""
    command = [sys.executable, *map(str, arguments)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    seconds = round(time.perf_counter() - began, 3)
    cpu_seconds = round(usage.ru_utime + usage.ru_stime, 3)
    peak_bytes = usage.ru_maxrss * 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes}


def alternately(
    args: argparse.Namespace,
    record: Record,
    what: str,
    ways: dict[str, list],
    folder: Path,
    **figures: object,
) -> None:
    """Run each way's command --repeats times, in turn; {out} in it is a new folder each time."""
    for repeat in range(args.repeats):
        for way, command in ways.items():
            out = folder / f"{what}-{way}-{repeat}"
            found = timed(*[str(part).replace("{out}", str(out)) for part in command])
            record(what, way, repeat, **found, files=sizes(out), **figures)


def sizes(folder: Path) -> dict[str, list[int]]:
    """Return the bytes of every mask and model file below `folder`, in the order of writing."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    by_name: dict[str, list[int]] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime):
        if path.name == "mask.pt" or path.name.startswith("model"):
            by_name.setdefault(path.name, []).append(path.stat().st_size)
    return dict(sorted(by_name.items()))


def our_imp(
    args: argparse.Namespace, task: str, model: str, rounds: int, steps: int, cache: Path
) -> list:
    """Return the command of LT_glue.py for `rounds` rounds of `steps` steps."""
    data = args.data.resolve() / "glue_data" / task
    words = ["LT_glue.py", "--task_name", task, "--data_dir", data, "--do_train", "--do_eval"]
    words += ["--do_lower_case", "--model_name_or_path", model, "--tokenizer_name", args.tokenizer]
    words += ["--max_steps", rounds * steps, "--save_steps", steps, "--logging_steps", 0]
    return [*words, "--output_dir", "{out}", "--cache_dir", cache, "--seed", 57]


def baseline_imp(args: argparse.Namespace, task: str, model: str, rounds: int, steps: int) -> list:
    """Return the command of the same rounds with the baseline."""
    data = args.data.resolve() / "glue_data" / task
    words = [BASELINE, "imp", "--task", task, "--data", data, "--model", model, "--out", "{out}"]
    words += ["--tokenizer", args.tokenizer, "--rounds", rounds, "--steps", steps]
    return [*words, "--evaluate"]


def oneshot(args: argparse.Namespace, record: Record, model: str, folder: Path) -> None:
    """Measure oneshot.py, the whole process."""
    ours = ["oneshot.py", "--weight", "pre", "--model", "glue", "--rate", 0.5]
    ours += ["--model_name_or_path", model, "--output_dir", "{out}"]
    baseline = [BASELINE, "one_shot", "--model", model, "--rate", 0.5, "--out", "{out}"]
    alternately(args, record, "oneshot", {"ours": ours, "baseline": baseline}, folder)


def imp(args: argparse.Namespace, record: Record, model: str, folder: Path) -> None:
    """Measure peak memory and files of two rounds of two steps on WNLI, padded in both ways."""
    ours = [*our_imp(args, "WNLI", model, 2, 2, folder), "--as_released"]
    baseline = baseline_imp(args, "WNLI", model, 2, 2)
    alternately(args, record, "imp", {"ours": ours, "baseline": baseline}, folder)


def rounds(args: argparse.Namespace, record: Record, model: str, folder: Path) -> None:
    """Measure ten rounds of --steps steps on GLUE, against padding to 128 and to the longest."""
    for task in (task for task in args.tasks if task != "SQuAD"):
        ours = our_imp(args, task, model, 10, args.steps, folder)
        baseline = baseline_imp(args, task, model, 10, args.steps)
        ways = {"ours": ours, "baseline": baseline, "longest": [*baseline, "--length", 0]}
        ways = {way: command for way, command in ways.items() if way in args.ways}
        alternately(args, record, "rounds", ways, folder / task, task=task, round_steps=args.steps)


def startup(args: argparse.Namespace, record: Record, model: str, folder: Path) -> None:
    """Measure the seconds from the start of LT_glue.py to its first step, with warm file caches."""
    for repeat in range(-1, args.repeats):  # the first warms them
        out = str(folder / f"startup{repeat}")
        words = our_imp(args, "CoLA", model, 1, 10, folder)
        words = [str(word).replace("{out}", out) for word in words]
        command = [sys.executable, "-c", UNTIL_FIRST_STEP, str(time.time()), *words]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        if repeat >= 0:
            record("startup", "ours", repeat, seconds=round(float(done.stdout.split()[-1]), 3))


MEASUREMENTS = {measure.__name__: measure for measure in (oneshot, imp, startup, rounds)}
