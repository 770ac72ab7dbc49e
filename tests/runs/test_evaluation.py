"""What a run shows: the point from which it resumes, scores in percent points, TensorBoard."""

import os
import signal
from collections import Counter

import launch
import pytest
import tiny
from glue_runs import command, evaluation
from tensorboardX.proto.event_pb2 import Event, SessionLog

from utils.runs.monitor import Monitor
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    tiny.bert(folder / "bert")
    tiny.glue(folder / "STS-B", "STS-B", train=40, dev=16)
    return folder


def events(out):
    """The events of a run in the order of their writing."""
    for file in sorted((out / "events").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16


def points(out):
    """The (tag, step) that TensorBoard shows: a START event removes those of later steps."""
    shown = []
    for event in events(out):
        if event.session_log.status == SessionLog.START:
            shown = [(tag, step) for tag, step in shown if step < event.step]
        shown += [(value.tag, event.step) for value in event.summary.value]
    return shown


def test_a_run_killed_after_its_checkpoint_leaves_no_step_twice(data, tmp_path, monkeypatch):
    """Steps 4 to 6 of 12 are logged after the last checkpoint, and again after the resume."""
    out, flags = tmp_path / "out", ["--max_steps", 12, "--save_steps", 3, "--sparsities", 0.3, 0.6]
    flags += ["--logging_steps", 1, "--evaluate_during_training"]
    step, taken = Trainer.step, []

    def stop(self, *given):
        taken.append(given)
        if len(taken) == 7:
            raise KeyError("killed")
        return step(self, *given)

    save = Monitor.save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Trainer, "step", stop)
        patch.setattr(Monitor, "save_checkpoint", lambda *given: len(taken) < 6 and save(*given))
        launch.run("LT_glue.py", *command(data, out, *flags))
    ended = launch.run("LT_glue.py", *command(data, out, *flags))
    assert ended.notes() == ["resuming from step 3 of 9 (round 2)"] and ended.errors() == []
    twice = {point: count for point, count in Counter(points(out)).items() if count > 1}
    assert twice == {}
    assert {step for tag, step in points(out) if tag == "loss"} == set(range(1, 10))
    assert [step for tag, step in points(out) if tag == "sparsity"] == [1, 4, 7]


def test_a_fine_tuning_has_no_rounds_and_prints_each_evaluation(data, tmp_path, monkeypatch):
    flags = ["--dir", "pre", "--max_steps", 6, "--logging_steps", 2, "--evaluate_during_training"]
    flags = command(data, tmp_path / "out", *flags)
    step, taken = Trainer.step, []

    def stop(self, *given):
        taken.append(given)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert launch.run("glue_trans.py", *flags).code == 75
    ended = launch.run("glue_trans.py", *flags)
    assert ended.code == 0 and "round" not in ended.out + ended.err and "training:" in ended.err
    rows = launch.results(tmp_path / "out")
    lines = ended.out.splitlines()
    written = {
        event.step: value.simple_value
        for event in events(tmp_path / "out")
        for value in event.summary.value
        if value.tag == "eval_pearson"
    }
    assert written == {row["step"]: pytest.approx(row["metrics"]["pearson"]) for row in rows}
    assert ended.notes() == ["resuming from step 3 of 6"]
    assert lines[0].startswith(f"step 4  sparsity 0.0%  pearson {rows[1]['score']:.2f}  spearmanr ")
    assert [line.split()[:3] for line in lines[-3:]] == [
        [str(row["step"]), "0.0%", f"{row['score']:.2f}"] for row in rows
    ]


@pytest.mark.parametrize("every", [[], ["--eval_all_checkpoints"]])
def test_evaluations_alone_write_no_events(data, tmp_path, every):
    flags = ["--dir", "pre", "--max_steps", 4, "--save_steps", 2, "--logging_steps", 1]
    launch.done("glue_trans.py", *command(data, tmp_path / "out", *flags))
    files = sorted((tmp_path / "out" / "events").iterdir())
    shown = points(tmp_path / "out")
    for out in tmp_path / "out", tmp_path / "other":
        model = ["--dir", "pre", "--model_name_or_path", tmp_path / "out", *every]
        launch.done("glue_trans.py", *evaluation(data, out, *model))
    assert sorted((tmp_path / "out" / "events").iterdir()) == files
    assert points(tmp_path / "out") == shown and not (tmp_path / "other" / "events").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [("glue_trans.py", ["--dir", "pre"]), ("LT_glue.py", ["--sparsities", 0.3])],
)
def test_a_training_without_evaluations_prints_no_table(data, tmp_path, script, flags):
    flags = command(data, tmp_path / "out", "--max_steps", 20, *flags)
    printed = launch.done(script, *(flag for flag in flags if flag != "--do_eval"))
    assert "---" not in printed and "step" not in printed


def test_perplexity_is_no_score_in_percent(data, tmp_path):
    tiny.text(data / "text", train=30, valid=15)
    flags = ["--model_name_or_path", data / "bert", "--mlm", "--do_eval", "--dir", "pre"]
    flags += ["--eval_data_file", data / "text" / "en.valid", "--block_size", 24, "--no_cuda"]
    out = launch.done("pretrain_trans.py", *flags, "--output_dir", tmp_path / "out")
    (row,) = launch.results(tmp_path / "out")
    shown = f"{row['score']:.2f}", f"{row['metrics']['perplexity']:.2f}"
    assert tuple(out.splitlines()[-1].split()[2:]) == shown
