"""Corrupt files of a run cost the work since the last good one; files that hold code never run."""

import contextlib
import json
import os
import pickle
import shutil

import launch
import pytest
import tiny
import torch
from interrupted_runs import (
    fine_tuning,
    flip_a_bit,
    glue,
    halve,
    imp,
    interrupted,
    newest,
    one_shot,
    outcome,
    squad,
    terminate,
)
from refusals import content

from utils import files
from utils.runs.records import read_records

# ---- corrupt files of the run itself


@pytest.mark.parametrize("corrupt", [flip_a_bit, halve])
def test_a_corrupt_checkpoint_costs_the_round_and_not_the_run(
    inputs, tmp_path, at_step, undisturbed, corrupt
):
    out = tmp_path / "out"
    state = interrupted(inputs, out, at_step, step=7)
    corrupt(state)
    ended = imp(inputs, out)
    (line,) = ended.errors()
    assert ended.code == 0
    assert line.startswith(f"warning: {state}: corrupt checkpoint; resuming from state-1-0-")
    assert outcome(out) == undisturbed


def test_a_fine_tuning_with_a_corrupt_checkpoint_starts_from_scratch(inputs, tmp_path, at_step):
    assert fine_tuning(inputs, tmp_path / "undisturbed").code == 0
    state = interrupted(inputs, tmp_path / "out", at_step, step=4, script=fine_tuning)
    flip_a_bit(state)
    ended = fine_tuning(inputs, tmp_path / "out")
    (line,) = ended.errors()
    assert ended.code == 0
    assert line == f"warning: {state}: corrupt checkpoint; starting from scratch"
    assert outcome(tmp_path / "out") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("corrupt", [flip_a_bit, halve])
def test_corrupt_rewinding_weights_are_refused(inputs, tmp_path, at_step, corrupt):
    out = tmp_path / "out"
    with at_step(6, terminate):
        assert imp(inputs, out, "--rewind_steps", 1).code == 75
    corrupt(out / files.REWIND_WEIGHTS)
    ended = imp(inputs, out, "--rewind_steps", 1)
    (line,) = ended.errors()
    assert ended.code == 2
    assert f"{out / files.REWIND_WEIGHTS}: the weight file is truncated or corrupt" in line


def remove(path):
    path.unlink()


def replace_by_another(path):
    """A valid file with other values; tickets.json: a ticket less."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"tickets": []}))
        return
    tensors = torch.load(path, weights_only=True)
    key = next(iter(tensors))
    tensors[key] = ~tensors[key] if tensors[key].dtype == torch.bool else tensors[key] + 1
    torch.save(tensors, path)


FAULTS = [flip_a_bit, halve, remove, replace_by_another]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [files.REWIND_WEIGHTS, "checkpoint-4/mask.pt"])
def test_a_run_does_not_resume_with_another_file_of_its_own(inputs, tmp_path, at_step, name, fault):
    out = tmp_path / "out"
    with at_step(8, terminate):
        assert imp(inputs, out, "--rewind_steps", 1).code == 75
    good = (out / name).read_bytes()
    fault(out / name)
    before = content(out)
    ended = imp(inputs, out, "--rewind_steps", 1)
    (line,) = ended.errors()
    assert ended.code == 2 and f"error: {out / name}: " in line and "--restart" in line
    assert content(out) == before
    (out / name).write_bytes(good)
    assert imp(inputs, out, "--rewind_steps", 1).code == 0, "the same command resumes"


@pytest.mark.parametrize("fault", [halve, remove, replace_by_another])
def test_lost_tickets_are_restored_from_the_checkpoint(
    inputs, tmp_path, at_step, undisturbed, fault
):
    out = tmp_path / "out"
    interrupted(inputs, out, at_step, step=7)
    tickets = (out / files.TICKETS).read_bytes()
    fault(out / files.TICKETS)
    interrupted(inputs, out, at_step, step=1)
    assert (out / files.TICKETS).read_bytes() == tickets
    assert imp(inputs, out).errors() == []
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("fault", [remove, halve])
def test_lost_results_are_reported_and_the_run_resumes(
    inputs, tmp_path, at_step, undisturbed, fault
):
    out = tmp_path / "out"
    interrupted(inputs, out, at_step, step=10)
    fault(out / files.RESULTS)
    ended = imp(inputs, out)
    assert ended.code == 0
    assert f"warning: {out / files.RESULTS}: missing or truncated" in ended.errors()[0]
    records, _ = read_records(out / files.RESULTS)
    assert [record.round for _, record in records] == ([3] if fault is remove else [1, 3])
    (out / files.RESULTS).write_text("")
    assert outcome(out)[1:] == undisturbed[1:]


@pytest.mark.parametrize("checkpoints", ["state-*", "state-1-3-*"])
def test_a_resumed_run_keeps_the_evaluations_in_its_folder(inputs, tmp_path, at_step, checkpoints):
    """Rows of `--do_eval` alone, written while the run is stopped, are not the run's own."""
    out = tmp_path / "out"
    interrupted(inputs, out, at_step, step=7)
    rows = (out / files.RESULTS).read_bytes()
    flags = [flag for flag in glue(inputs) if flag != "--do_train"]
    model = tiny.classifier(inputs / "bert", tmp_path / "trained")
    launch.done("LT_glue.py", "--output_dir", out, *flags, "--model_name_or_path", model)
    evaluation = (out / files.RESULTS).read_bytes().removeprefix(rows)
    with (out / files.RESULTS).open("ab") as file:  # a killed run's: after its checkpoint
        file.write(rows + rows[:50])
    for state in out.glob(checkpoints):  # the run repeats the round, or starts from scratch
        state.unlink()
    assert imp(inputs, out).code == 0
    found = (out / files.RESULTS).read_bytes()
    assert found.count(evaluation) == 1
    rounds = [None, 1, 2, 3] if checkpoints == "state-*" else [1, None, 2, 3]
    assert [row["round"] for row in launch.results(out)] == rounds


@pytest.mark.parametrize("corrupt", [flip_a_bit, halve])
def test_a_corrupt_mask_is_refused(inputs, tmp_path, corrupt):
    mask = one_shot(inputs, tmp_path / "omp")
    corrupt(mask)
    ended = fine_tuning(inputs, tmp_path / "out", "--mask_dir", mask)
    (line,) = ended.errors()
    assert ended.code == 2 and f"{mask}: the mask file is truncated or corrupt" in line
    assert not (tmp_path / "out").exists()


def test_half_a_row_in_the_results_is_reported_and_the_next_row_gets_its_own_line(inputs, tmp_path):
    """As a power cut may leave it; a run that resumes drops it, evaluation appends rows to it.

    The row is reported once.
    """
    out = tmp_path / "out"
    flags = [flag for flag in glue(inputs) if flag != "--do_train"]
    flags += ["--model_name_or_path", tiny.classifier(inputs / "bert", tmp_path / "trained")]
    command = ["glue_trans.py", "--output_dir", out, *flags, "--dir", "pre"]
    assert launch.run(*command).code == 0
    results = out / "results.jsonl"
    with results.open("ab") as file:
        file.write(b'{"task": "mrpc", "sc')
    ended = launch.run(*command)
    assert ended.code == 0
    assert ended.errors() == [f"warning: {results}, line 2: half-written last line; left out"]
    whole, half, other = results.read_text().splitlines()
    assert half == '{"task": "mrpc", "sc'
    assert json.loads(whole)["metrics"] == json.loads(other)["metrics"]
    records, problems = read_records(results)
    assert len(records) == 2 and len(problems) == 1


# ---- files that would run code


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=["torch", "bare pickle"])
def hostile(request, tmp_path):
    """Writes a file that makes a folder when it is unpickled; then checks that it did not."""
    proof = tmp_path / "executed"

    def write(path):
        content = {"bert.pooler.dense.weight_mask": Payload(proof)}
        if request.param == "torch":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content, 2))
        return path

    yield write
    assert not proof.exists()
    with contextlib.suppress(Exception):
        torch.load(next(tmp_path.glob("hostile*")), weights_only=False)
        assert proof.exists(), "the file is as hostile as it should be"


@pytest.mark.parametrize("flag", ["--mask_dir", "--weight_pertub"])
def test_a_mask_or_weights_with_a_payload_are_refused(inputs, tmp_path, hostile, flag):
    path = hostile(tmp_path / "hostile.pt")
    ended = fine_tuning(inputs, tmp_path / "out", flag, path)
    (line,) = ended.errors()
    assert ended.code == 2 and str(path) in line
    assert "refused, none of its code was run" in line or "corrupt" in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_model_with_a_payload_is_refused(inputs, tmp_path, hostile, name):
    bert = shutil.copytree(inputs / "bert", tmp_path / "bert")
    (bert / "model.safetensors").unlink()
    shutil.copy(hostile(bert / name), tmp_path / "hostile.pt")
    ended = fine_tuning(inputs, tmp_path / "out", "--model_name_or_path", bert)
    (line,) = ended.errors()
    assert ended.code == 2 and f"{bert}: the model folder cannot be loaded" in line


def test_a_checkpoint_with_a_payload_is_refused(inputs, tmp_path, at_step, hostile):
    """Its name has the right digest, which does not happen by chance."""
    out = tmp_path / "out"
    state = interrupted(inputs, out, at_step, step=6)
    hostile(tmp_path / "hostile.pt")
    digest = files.file_digest(tmp_path / "hostile.pt")
    target = state.with_name(f"state-1-3-{digest[:16]}.pt")
    shutil.copy(tmp_path / "hostile.pt", target)
    assert newest(out) == target
    ended = imp(inputs, out)
    (line,) = ended.errors()
    assert ended.code == 2 and f"{target}: not a checkpoint of this program" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {},
        lambda content: [content],
        lambda content: content | {"results_bytes": "3"},
        lambda content: {k: v for k, v in content.items() if k != "optimizer"},
        lambda content: content | {"model": {"bert": torch.ones(1)}},
        lambda content: content | {"generators": []},
        lambda content: content | {"tickets": [{"round": 1}]},
    ],
    ids=["empty", "list", "type", "no optimizer", "model", "generators", "tickets"],
)
def test_a_checkpoint_of_other_content_is_refused(inputs, tmp_path, at_step, change):
    """Its name has the right digest, as a program that rewrites it would leave it."""
    out = tmp_path / "out"
    state = interrupted(inputs, out, at_step, step=6)
    torch.save(change(torch.load(state, weights_only=True)), tmp_path / "other.pt")
    digest = files.file_digest(tmp_path / "other.pt")
    state.unlink()
    (tmp_path / "other.pt").rename(target := state.with_name(f"state-1-2-{digest[:16]}.pt"))
    ended = imp(inputs, out)
    (line,) = ended.errors()
    assert ended.code == 2 and str(out) in line and "remove it" in line
    assert newest(out) == target


def test_a_squad_cache_with_a_payload_is_rebuilt(inputs, tmp_path, hostile):
    ignored = shutil.ignore_patterns("cached*")
    data = shutil.copytree(inputs / "squad", tmp_path / "data", ignore=ignored)
    flags = squad(inputs, data)
    launch.done("squad_trans.py", *flags, "--output_dir", tmp_path / "before")
    train, dev = sorted(data.glob("cached*"), key=lambda path: "dev" in path.name)
    good = train.read_bytes()
    for path in (train, dev):
        hostile(path)
    shutil.copy(train, tmp_path / "hostile.npz")
    ended = launch.run("squad_trans.py", *flags, "--output_dir", tmp_path / "after")
    assert ended.code == 0 and len(ended.errors()) == 2
    assert all("corrupt cache" in line and "rebuilding it" in line for line in ended.errors())
    assert outcome(tmp_path / "after") == outcome(tmp_path / "before")
    assert train.read_bytes() == good
