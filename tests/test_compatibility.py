"""Runs of an earlier version: finished ones are recognised, interrupted ones continue."""

import sys
import tarfile
from pathlib import Path

import launch
import pytest
import reference_adapter as adapter
import torch
from launch import results
from reference_runs import read_json

FIXTURES = Path(__file__).resolve().parent / "fixtures"
sys.path.insert(0, str(FIXTURES))

from commands import COMMANDS, STOPPED_AFTER, TOTAL  # noqa: E402

TRAINING = list(STOPPED_AFTER)
STEPS = read_json(FIXTURES / "steps.json")
IGNORED = {"versions", "device", "wall_seconds", "metrics", "score"}
NEAR_TIES = 4  # weights of a mask that another CPU may swap


def unpack(work: Path, *names: str) -> Path:
    """Lay the named fixtures in `work`; returns its output folder."""
    for name in names:
        with tarfile.open(FIXTURES / f"{name}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return work / "out"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(name: str, *more: str) -> tuple[launch.Ended, list[dict]]:
    """Run a recorded command in the current folder; how it ended and the steps it took."""
    script, flags = COMMANDS[name]
    with adapter.recorded() as recording:
        ended = launch.run(script, *flags, *more)
    return ended, recording.steps


def given(args: dict) -> dict:
    """The flags by their current names, without those that are off: earlier versions lack some."""
    given = adapter.current_names(args).items()
    return {key: value for key, value in given if value not in (None, False)}


def assert_same_rows(found: list[dict], expected: list[dict], exact: bool) -> None:
    """The same results up to versions, device, time and rounding."""
    assert len(found) == len(expected)
    for pair in zip(found, expected, strict=True):
        ours, theirs = (row | {"args": given(row["args"])} for row in pair)
        for key in theirs.keys() - (IGNORED if exact else {*IGNORED, "mask_sha256"}):
            assert ours[key] == theirs[key], key
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-4)


def assert_same_masks(found: Path, expected: Path, exact: bool) -> None:
    """The same mask files; up to near ties where the losses differ by rounding."""
    names = [str(path.relative_to(expected)) for path in sorted(expected.rglob("mask.pt"))]
    assert names == [str(path.relative_to(found)) for path in sorted(found.rglob("mask.pt"))]
    for name in names:
        ours, theirs = (adapter.read_mask(folder / name) for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        apart = sum(int((ours[key] != theirs[key]).sum()) for key in theirs)
        assert apart <= (0 if exact else NEAR_TIES), name
        origins = [read_json(folder / f"{name}.json") for folder in (found, expected)]
        if exact:
            assert {k: origins[0].get(k) for k in origins[1]} == origins[1]


@pytest.mark.parametrize("name", TRAINING)
def test_a_finished_run_is_recognised(name, tmp_path, monkeypatch):
    out = unpack(tmp_path, "inputs", f"{name}-finished")
    monkeypatch.chdir(tmp_path)
    before = contents(out)
    ended, steps = run(name)
    assert (ended.code, ended.errors(), steps) == (0, [], [])
    assert "this run is finished" in ended.notes()[-1]
    assert contents(out) == before


@pytest.mark.parametrize("name", TRAINING)
def test_an_interrupted_run_continues_from_its_checkpoint(name, tmp_path, monkeypatch):
    out = unpack(tmp_path, "inputs", f"{name}-interrupted")
    reference = unpack(tmp_path / "reference", f"{name}-finished")
    monkeypatch.chdir(tmp_path)
    ended, steps = run(name)
    assert ended.code == 0, ended.err
    expected = STEPS[name][STOPPED_AFTER[name] :]
    assert len(steps) == len(expected) == TOTAL[name] - STOPPED_AFTER[name]
    for found, wanted in zip(steps, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    exact = steps == expected  # False on a CPU that rounds differently
    assert_same_masks(out, reference, exact)
    assert_same_rows(results(out), results(reference), exact)
    assert read_json(out / "run.json")["finished"]
    assert not list(out.glob("state-*"))
    if (reference / "tickets.json").exists():
        ours, theirs = (
            read_json(folder / "tickets.json")["tickets"] for folder in (out, reference)
        )
        assert len(ours) == len(theirs)
        for found, wanted in zip(ours, theirs, strict=True):
            assert (found["round"], found["mask"]) == (wanted["round"], wanted["mask"])
            assert found["sparsity"] == pytest.approx(wanted["sparsity"], abs=1e-9)
            assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)
    again, steps = run(name)
    assert (again.code, steps) == (0, [])


def test_another_command_does_not_replace_an_interrupted_run(tmp_path, monkeypatch):
    out = unpack(tmp_path, "inputs", "LT_glue-interrupted")
    monkeypatch.chdir(tmp_path)
    before = contents(out)
    ended, _ = run("LT_glue", "--learning_rate", "2e-3")
    assert ended.code == 2 and "--learning_rate" in ended.err
    assert contents(out) == before


def test_one_shot_masks_are_made_and_read_as_before(tmp_path, monkeypatch):
    recorded = unpack(tmp_path / "reference", "oneshot")
    unpack(tmp_path, "inputs")
    monkeypatch.chdir(tmp_path)
    ended, _ = run("oneshot")
    assert ended.code == 0, ended.err
    assert_same_masks(tmp_path / "out", recorded, exact=True)


def test_perturbed_weights_are_made_and_read_as_before(tmp_path, monkeypatch):
    recorded = unpack(tmp_path / "reference", "pertub_weight")
    unpack(tmp_path, "inputs")
    monkeypatch.chdir(tmp_path)
    ended, _ = run("pertub_weight")
    assert ended.code == 0, ended.err
    read = [
        adapter.read_perturbed(folder / "shuffled.pt", tmp_path / "inputs" / "bert")
        for folder in (tmp_path / "out", recorded)
    ]
    plain = adapter.read_perturbed(None, tmp_path / "inputs" / "bert")
    assert [key for key in plain if not torch.equal(read[0][key], read[1][key])] == []
    assert any(not torch.equal(read[1][key], plain[key]) for key in plain)


def test_rewind_weights_are_read_as_before(tmp_path):
    out = unpack(tmp_path, "inputs", "LT_glue-finished")
    weights = adapter.read_perturbed(out / "rewind_weights.pt", tmp_path / "inputs" / "bert")
    plain = adapter.read_perturbed(None, tmp_path / "inputs" / "bert")
    assert any(not torch.equal(weights[key], plain[key]) for key in plain)
