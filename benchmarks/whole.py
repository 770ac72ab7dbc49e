"""Whole processes, measured from outside: wall time and peak memory of the scripts and of plain.py."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAIN = str(ROOT / "benchmarks" / "plain.py")

# Runs a script until its first optimizer step begins, prints the seconds since sys.argv[1] and ends.
UNTIL_FIRST_STEP = """
import os, runpy, sys, time
began, sys.argv = float(sys.argv[1]), sys.argv[2:]
from utils import training
def first_step(*_):
    print(time.time() - began, flush=True)
    os._exit(0)
training.Trainer.step = first_step
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def timed(*command: object) -> dict:
    """Run Python with these arguments; its wall and processor seconds and the peak of its resident memory in bytes."""
    command = [sys.executable, *map(str, command)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def alternately(
    args: argparse.Namespace, record, what: str, ways: dict[str, list], folder: Path, **figures
) -> None:
    """Run each way's command --repeats times, one way after the other; {out} in it is a new folder each time."""
    for repeat in range(args.repeats):
        for way, command in ways.items():
            out = folder / f"{what}-{way}-{repeat}"
            found = timed(*[str(part).replace("{out}", str(out)) for part in command])
            record(what, way, repeat, **found, files=sizes(out), **figures)


def sizes(folder: Path) -> dict[str, list[int]]:
    """Bytes of every mask and model file below `folder`, in the order they were written."""
    found = sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_mtime,
    )
    named = {
        name: [path.stat().st_size for path in found if path.name == name]
        for name in {p.name for p in found}
    }
    return {
        name: named[name]
        for name in sorted(named)
        if name.startswith(("mask.pt", "model")) and name != "mask.pt.json"
    }


def lt_glue(
    args: argparse.Namespace, task: str, model: str, folder: Path, total: int, round_steps: int
) -> list:
    """The command of LT_glue.py."""
    data = args.data.resolve() / "glue_data" / task
    return [
        "LT_glue.py",
        "--task_name",
        task,
        "--data_dir",
        data,
        "--do_train",
        "--do_eval",
        "--do_lower_case",
        "--model_name_or_path",
        model,
        "--tokenizer_name",
        args.tokenizer,
        "--max_steps",
        total,
        "--save_steps",
        round_steps,
        "--logging_steps",
        0,
        "--output_dir",
        "{out}",
        "--cache_dir",
        folder,
        "--seed",
        57,
    ]


def plain_imp(
    args: argparse.Namespace, task: str, model: str, folder: Path, rounds: int, round_steps: int
) -> list:
    """The command of the same rounds the plain way."""
    data = args.data.resolve() / "glue_data" / task
    return [
        PLAIN,
        "imp",
        "--task",
        task,
        "--data",
        data,
        "--model",
        model,
        "--tokenizer",
        args.tokenizer,
        "--out",
        "{out}",
        "--cache",
        folder,
        "--rounds",
        rounds,
        "--steps",
        round_steps,
        "--evaluate",
    ]


def oneshot(args: argparse.Namespace, record, model: str, folder: Path) -> None:
    """oneshot.py, the whole process."""
    ours = [
        "oneshot.py",
        "--weight",
        "pre",
        "--model",
        "glue",
        "--rate",
        0.5,
        "--model_name_or_path",
        model,
        "--output_dir",
        "{out}",
    ]
    plain = [PLAIN, "one_shot", "--model", model, "--rate", 0.5, "--out", "{out}"]
    alternately(args, record, "oneshot", {"ours": ours, "plain": plain}, folder)


def imp(args: argparse.Namespace, record, model: str, folder: Path) -> None:
    """Two rounds of two steps on WNLI, every row padded to 128 tokens in both ways: peak memory and files."""
    ours = [*lt_glue(args, "WNLI", model, folder, 4, 2), "--as_released"]
    alternately(
        args,
        record,
        "imp",
        {"ours": ours, "plain": plain_imp(args, "WNLI", model, folder, 2, 2)},
        folder,
    )


def rounds(args: argparse.Namespace, record, model: str, folder: Path) -> None:
    """Ten rounds of --steps steps on CoLA, packed rows beside rows padded to 128."""
    ours = lt_glue(args, "CoLA", model, folder, 10 * args.steps, args.steps)
    plain = plain_imp(args, "CoLA", model, folder, 10, args.steps)
    alternately(
        args, record, "rounds", {"ours": ours, "plain": plain}, folder, round_steps=args.steps
    )


def startup(args: argparse.Namespace, record, model: str, folder: Path) -> None:
    """Seconds from the start of LT_glue.py until its first step begins, feature caches warm."""
    for repeat in range(-1, args.repeats):  # the first fills the caches
        command = [
            part.replace("{out}", str(folder / f"startup{repeat}"))
            if isinstance(part, str)
            else str(part)
            for part in lt_glue(args, "CoLA", model, folder, 10, 10)
        ]
        command = [sys.executable, "-c", UNTIL_FIRST_STEP, str(time.time()), *command]
        out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        if repeat >= 0:
            record("startup", "ours", repeat, seconds=round(float(out.split()[-1]), 3))
