"""Checkpoints to resume from: which are kept, which one is loaded, and with which results."""

import pytest
import torch

from utils.config import ModelConfig, OutputConfig, RunConfig, TrainingConfig
from utils.errors import UserError
from utils.modeling.runtime import Runtime
from utils.runs import checkpoint
from utils.runs.records import EvaluationRecord
from utils.runs.run import Experiment, Run


def opened(path, **flags):
    """A run in the folder `path` without task and model; `flags`: those of OutputConfig."""
    experiment = Experiment(
        task=None,
        model=None,
        config=RunConfig(
            ModelConfig(), TrainingConfig(do_train=True), OutputConfig(str(path), **flags)
        ),
        runtime=Runtime(torch.device("cpu")),
    )
    return Run.open(experiment)


def record(step):
    return EvaluationRecord(
        task="rte", method="train", init="pre", seed=1, sparsity=0.0, score=50.0, step=step
    )


def save(run, round_, step):
    weights = torch.full((1000,), float(10 * round_ + step))
    run.save_checkpoint({"round": round_, "step": step, "weights": weights})


def saved(folder):
    """Round and step of each checkpoint in the folder."""
    return [(found.round, found.step) for found in checkpoint.find(folder)]


def file_of(folder, round_, step):
    (path,) = folder.glob(f"state-{round_}-{step}-*.pt")
    return path


def test_one_checkpoint_within_a_round_is_kept_and_the_start_of_the_round(tmp_path):
    with opened(tmp_path / "out") as run:
        kept = []
        for round_, step in [(0, 2), (0, 4), (1, 0), (1, 1), (1, 3), (2, 0), (2, 2)]:
            save(run, round_, step)
            kept.append(saved(run.path))
    assert kept == [
        [(0, 2)],
        [(0, 4)],
        [(0, 4), (1, 0)],
        [(1, 0), (1, 1)],
        [(1, 0), (1, 3)],
        [(1, 3), (2, 0)],
        [(2, 0), (2, 2)],
    ]


def test_the_last_checkpoint_is_loaded_and_later_results_are_removed(tmp_path):
    with opened(tmp_path / "out") as run:
        run.append(record(1))
        save(run, 0, 2)
        run.append(record(2))
    with opened(tmp_path / "out") as run:
        content = run.load_checkpoint()
        assert (content["round"], content["step"], content["weights"][0]) == (0, 2, 2.0)
        assert run.records() == [record(1)]
        run.append(record(3))
        assert run.records() == [record(1), record(3)]


def test_wall_time_counts_all_processes_of_a_run(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("utils.runs.run.time.monotonic", lambda: now)
    with opened(tmp_path / "out") as run:
        now = 130.0
        save(run, 0, 2)
    now = 500.0
    with opened(tmp_path / "out") as run:
        run.load_checkpoint()
        now = 505.0
        assert run.seconds() == 35.0


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_a_corrupt_checkpoint_is_reported_and_the_earlier_one_loaded(tmp_path, capsys, damage):
    with opened(tmp_path / "out") as run:
        save(run, 1, 0)
        run.append(record(1))
        save(run, 1, 5)
    earlier = file_of(tmp_path / "out", 1, 0).name
    damage(file_of(tmp_path / "out", 1, 5))
    with opened(tmp_path / "out") as run:
        content = run.load_checkpoint()
        assert (content["round"], content["step"], run.records()) == (1, 0, [])
        (line,) = capsys.readouterr().err.splitlines()
        assert "state-1-5-" in line and f"corrupt checkpoint; resuming from {earlier}" in line
        save(run, 1, 3)
    assert saved(tmp_path / "out") == [(1, 0), (1, 3)]


def test_without_an_intact_checkpoint_a_run_starts_from_scratch_unless_it_must_continue(
    tmp_path, capsys
):
    with opened(tmp_path / "out") as run:
        run.append(record(1))
        save(run, 0, 5)
    truncate(file_of(tmp_path / "out", 0, 5))
    with (
        opened(tmp_path / "out", should_continue=True) as run,
        pytest.raises(UserError, match=r"--should_continue.*no intact"),
    ):
        run.load_checkpoint()
    with opened(tmp_path / "out") as run:
        assert run.load_checkpoint() is None and run.records() == []
    assert capsys.readouterr().err.count("corrupt checkpoint; starting from scratch") == 2
