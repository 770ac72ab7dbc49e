"""Runs that are disturbed on purpose: their commands, their outcome, and the faults."""

import contextlib
import json
import os
import signal
import subprocess

import launch
import pytest

from utils.runs import checkpoint

ROUNDS = ["--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6, "--logging_steps", 2]


def glue(inputs):
    return (
        f"--model_name_or_path {inputs}/bert --task_name MRPC --data_dir {inputs}/MRPC "
        "--max_seq_length 32 --do_lower_case --do_train --do_eval --overwrite_output_dir "
        "--per_gpu_train_batch_size 6 --learning_rate 1e-3 --no_cuda"
    ).split()


def squad(inputs, data):
    return (
        f"--model_name_or_path {inputs}/bert --train_file {data}/train-v1.1.json "
        f"--predict_file {data}/dev-v1.1.json --do_train --do_eval --do_lower_case --no_cuda "
        "--max_seq_length 48 --doc_stride 16 --max_query_length 12 --per_gpu_train_batch_size 4"
    ).split() + ROUNDS


def mlm(inputs, data):
    return (
        f"--model_name_or_path {inputs}/bert --train_data_file {data}/en.train "
        f"--eval_data_file {data}/en.valid --mlm --do_train --do_eval --block_size 24 "
        "--per_gpu_train_batch_size 4 --no_cuda"
    ).split() + ROUNDS


def imp(inputs, out, *more):
    """An IMP run of three rounds of four steps each; it saves a checkpoint after every step."""
    flags = [*glue(inputs), *ROUNDS, "--checkpoint_minutes", 0, *more]
    return launch.run("LT_glue.py", "--output_dir", out, *flags)


def fine_tuning(inputs, out, *more):
    """A fine-tuning of six steps; it saves its model after every second step."""
    flags = [*glue(inputs), "--dir", "pre", "--max_steps", 6, "--save_steps", 2, *more]
    return launch.run("glue_trans.py", "--output_dir", out, *flags)


def one_shot(inputs, out, *more):
    """A mask of half the weights; its file."""
    given = f"--weight pre --model glue --rate 0.5 --model_name_or_path {inputs}/bert".split()
    launch.done("oneshot.py", *given, "--output_dir", out, *more)
    return out / "mask.pt"


def outcome(out):
    """What a run must leave: its rows, the names of its files, its masks and weights."""
    differing = {"output_dir": "", "cache_dir": "", "checkpoint_minutes": 0}
    rows = [
        {**row, "wall_seconds": 0, "args": {**row["args"], **differing}}
        for row in launch.results(out)
    ]
    rows = json.loads(json.dumps(rows).replace(str(out), "OUT"))
    files = (path for path in out.rglob("*") if "events" not in path.parts)
    names = sorted(str(path.relative_to(out)) for path in files)
    tensors = [name for name in names if name.endswith((".safetensors", "mask.pt"))]
    return rows, names, [(out / name).read_bytes() for name in tensors]


def newest(out):
    """The last checkpoint of a run."""
    return checkpoint.find(out)[-1].path


def is_intact(path):
    return next(each for each in checkpoint.find(path.parent) if each.path == path).is_intact()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(inputs, out, at_step, step, script=imp):
    """Run up to a step, stop by SIGTERM; the checkpoint that the run resumes from."""
    with at_step(step, terminate):
        assert script(inputs, out).code == 75
    return newest(out)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root and a kernel that allows it: {done.stderr.strip()}")


def unmount(folder):
    subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """The folder without write permission: by its mode, or for root, who ignores it, by a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        unmount(folder)


def fill(disk, left):
    """Fill the disk up to so many free bytes."""
    with (disk / "full").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    os.truncate(disk / "full", max(0, (disk / "full").stat().st_size - left))
