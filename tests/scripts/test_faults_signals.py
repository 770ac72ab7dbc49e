"""Signals, clocks, lost folders, losses that are not finite, and memory: each ends in one line."""

import ctypes
import os
import shutil
import signal
import time

import launch
import pytest
import tiny
import torch
from interrupted_runs import glue, imp, is_intact, newest, outcome, terminate

from utils.config import OutputConfig
from utils.errors import UserError
from utils.runs.folder import OutputFolder
from utils.tasks.glue import GlueTask
from utils.training.order import DataOrder
from utils.training.trainer import Trainer

# ---- signals, and checkpoints by the clock


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_a_signal_within_a_round_saves_a_checkpoint_after_the_step(
    inputs, tmp_path, at_step, undisturbed, name
):
    out = tmp_path / "out"
    with at_step(6, lambda: os.kill(os.getpid(), getattr(signal, name))):
        ended = imp(inputs, out, "--checkpoint_minutes", 10)
    (line,) = ended.errors()
    assert ended.code == 75
    assert line == f"{name}: checkpoint saved in {out}; the same command resumes from here"
    assert newest(out).name.startswith("state-1-2-"), "the sixth step was taken"
    assert imp(inputs, out).code == 0
    assert outcome(out) == undisturbed


def test_a_signal_before_training_ends_the_run_at_once(inputs, tmp_path, monkeypatch):
    def load(*_):
        terminate()
        time.sleep(60)

    monkeypatch.setattr(GlueTask, "load", load)
    ended = imp(inputs, tmp_path / "out")
    line = "SIGTERM: stopped; the same command resumes from what is saved\n"
    assert (ended.code, ended.err) == (75, line) and not (tmp_path / "out").exists()


def test_checkpoints_are_saved_every_so_many_minutes(inputs, tmp_path, monkeypatch):
    """Steps of four minutes: at ten minutes only the third of a round's four saves a checkpoint."""
    now, seen, original, out = [0.0], [], Trainer.step, tmp_path / "out"

    def step(self, *args):
        found = any(out.glob("state-*"))
        seen.append(tuple(map(int, newest(out).name.split("-")[1:3])) if found else None)
        now[0] += 240
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert imp(inputs, out, "--checkpoint_minutes", 10).code == 0
    expected = [None, None, None, (0, 3), (1, 0), (1, 0), (1, 0), (1, 3), (2, 0), (2, 0), (2, 0)]
    assert seen == [*expected, (2, 3)]


def test_a_clock_that_runs_backwards_changes_nothing(
    inputs, tmp_path, at_step, monkeypatch, undisturbed
):
    """An hour at every look, and a day between the two processes of the run."""
    now = [2e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    out = tmp_path / "out"
    with monkeypatch.context() as patch, at_step(6, terminate):
        patch.setattr(time, "time", backwards)
        assert imp(inputs, out).code == 75
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))  # as if written in the year 2096
    now[0] -= 86400
    monkeypatch.setattr(time, "time", backwards)
    ended = imp(inputs, out)
    assert ended.code == 0 and ended.errors() == []
    assert outcome(out) == undisturbed
    assert all(0 <= row["wall_seconds"] < 3600 for row in launch.results(out))


# ---- the output folder


@pytest.mark.parametrize("how", ["removed", "moved away", "replaced"])
def test_a_run_ends_if_its_folder_is_lost_and_does_not_recreate_part_of_it(
    inputs, tmp_path, at_step, undisturbed, how
):
    out, other = tmp_path / "out", tmp_path / "other"

    def lose():
        shutil.rmtree(out) if how == "removed" else out.rename(other)
        if how == "replaced":
            out.mkdir()
            (out / ".lock").touch()

    with at_step(6, lose):
        ended = imp(inputs, out)
    (line,) = ended.errors()
    assert ended.code == 2
    assert f"--output_dir {out}: removed while this run was writing there" in line
    if how == "replaced":
        assert [path.name for path in out.iterdir()] == [".lock"]
    else:
        assert not out.exists()
    if how != "removed":
        shutil.rmtree(out, ignore_errors=True)
        other.rename(out)
        assert is_intact(newest(out))
    assert imp(inputs, out).code == 0
    assert outcome(out) == undisturbed


def test_a_folder_in_use_is_refused(tmp_path):
    output = OutputConfig(output_dir=str(tmp_path), overwrite_output_dir=True)
    held = OutputFolder(output, {"seed": 1})
    with pytest.raises(UserError, match="another process"):
        OutputFolder(output, {"seed": 2})
    held.close()


# ---- losses that are not finite


def nan_loss(loss, model):
    return loss * float("nan")


def infinite_loss(loss, model):
    return loss + float("inf")


def nan_gradient(loss, model):
    """The loss does not change, its gradient is NaN."""
    return loss + (0 * model.classifier.bias.sum()).sqrt() * 0


@pytest.mark.parametrize(
    ("corrupt", "what"),
    [
        (nan_loss, "the loss is nan"),
        (infinite_loss, "the loss is inf"),
        (nan_gradient, "the gradient norm is nan"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(
    inputs, tmp_path, monkeypatch, undisturbed, corrupt, what
):
    losses, original = [], GlueTask.loss

    def loss(self, model, batch):
        losses.append(batch)
        value = original(self, model, batch)
        return corrupt(value, model) if len(losses) == 6 else value

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(GlueTask, "loss", loss)
        ended = imp(inputs, out)
    (line,) = ended.errors()
    (rows,) = DataOrder(20, 6, 1, seed=42).batches(1, 1)
    assert ended.code == 2 and len(losses) == 6
    rows = ", ".join(map(str, rows))
    assert f"{what} at step 2 of round 2 (training rows {rows})" in line
    assert "--learning_rate" in line and "the last good checkpoint is kept" in line
    assert newest(out).name.startswith("state-1-1-") and is_intact(newest(out))
    assert imp(inputs, out).code == 0
    assert outcome(out) == undisturbed


# ---- memory


def test_a_gpu_out_of_memory_ends_in_one_line_and_the_run_resumes(
    inputs, tmp_path, at_step, undisturbed
):
    def fail():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
        )

    with at_step(7, fail):
        ended = imp(inputs, tmp_path / "out")
    (line,) = ended.errors()
    assert ended.code == 1 and "CUDA out of memory. Tried to allocate 2.00 GiB; free" in line
    assert "--gradient_accumulation_steps" in line and newest(tmp_path / "out")
    assert imp(inputs, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == undisturbed


MEASURED = """
import ctypes, sys
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli, imp
publish = imp.TicketWriter.publish

def measured(self, round_, *rest):
    publish(self, round_, *rest)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # the run does not hold what the allocator keeps
    pages = int(open("/proc/self/statm").read().split()[1])
    print("resident", round_ + 1, pages, flush=True)

imp.TicketWriter.publish = measured
cli.run(LT_glue.main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc and /proc")
def test_ten_rounds_end_with_the_memory_of_the_second(tmp_path):
    """3 million prunable weights: one more copy of a mask or weights a round would add 12 MB."""
    tiny.bert(tmp_path / "bert", layers=4, width=256)
    tiny.glue(tmp_path / "MRPC", "MRPC", train=16, dev=8)
    (tmp_path / "measured.py").write_text(MEASURED.format(root=str(launch.ROOT)))
    launcher = launch.Launcher({"MALLOC_ARENA_MAX": "1"})
    sizes = ["--max_steps", 20, "--save_steps", 2, "--save_total_limit", 1]
    flags = [*glue(tmp_path), *sizes]
    script = str(tmp_path / "measured.py")
    ended = launcher(script, "--output_dir", tmp_path / "out", *flags, cwd=tmp_path)
    launcher.close()
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines() if line.startswith("resident")]
    pages = {int(round_): int(count) for _, round_, count in lines}
    assert len(pages) == 10 and pages[10] < 1.05 * pages[2], pages
