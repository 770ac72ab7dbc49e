"""One output folder, several commands: finished, replaced, stopped, crashed and killed runs."""

import os
import signal
import subprocess
import sys

import glue_runs
import launch
import pytest
import tiny
import torch
from glue_runs import command, digests, outcome
from launch import done, results, run

from utils.modeling import bert
from utils.runs.signals import RESUME_EXIT_CODE
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of `LT_glue.py --max_steps 40`."""
    return glue_runs.find_nine_tickets(tmp_path_factory)[0]


SPELLED_OUT = [
    *("--save_steps", 4, "--sparsities", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *("--task_name", "sts-b", "--num_train_epochs", 7, "--logging_steps", 3),
]


@pytest.mark.parametrize("more", [[], SPELLED_OUT], ids=["as before", "spelled out"])
def test_a_finished_run_is_reported_and_not_changed(data, finished, more):
    def states():
        files = (p for p in finished.rglob("*") if p.is_file())
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before = states()
    ended = run("LT_glue.py", *command(data, finished, "--max_steps", 40, *more))
    remedy = "give --overwrite_output_dir to repeat it"
    assert ended.notes() == [f"{finished}: this run is finished; {remedy}"] and ended.out == ""
    assert states() == before


def test_another_command_is_refused_and_replaces_the_run_with_overwrite(data, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "out" / "notes.txt"
    done("LT_glue.py", *command(data, out, "--max_steps", 6, "--save_steps", 2))
    mine.write_text("mine")
    other = command(data, out, "--max_steps", 4, "--save_steps", 2)
    refused = launch.run("LT_glue.py", *other)
    assert refused.code == 2 and "--max_steps 6 there, 4 here" in refused.err
    assert len(digests(out)) == 3
    (warning,) = launch.run("LT_glue.py", *other, "--overwrite_output_dir").errors()
    assert "(--max_steps 6 there, 4 here) are now in" in warning
    assert len(digests(out)) == 2 and not (out / "checkpoint-6").exists() and len(results(out)) == 2
    assert len(digests(out / "replaced-1")) == len(results(out / "replaced-1")) == 3
    assert mine.read_text() == "mine"


def test_a_model_in_the_output_folder_that_no_run_wrote_is_not_removed(data, tmp_path):
    model = tiny.bert(tmp_path / "bert")
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    flags = ["--max_steps", 2, "--save_steps", 1, "--overwrite_output_dir"]
    done("LT_glue.py", *command(data, model, *flags, "--model_name_or_path", model))
    assert all((model / name).read_bytes() == content for name, content in before.items())
    assert len(digests(model)) == 2


REWINDING = [
    *("--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6),
    *("--rewind_steps", 1),
]
AS_RELEASED = [
    *("--max_steps", 8, "--save_steps", 2, "--as_released"),
    *("--evaluate_during_training", "--logging_steps", 1),
]
FINE_TUNING = [
    *("--max_steps", 5, "--save_steps", 2, "--dir", "rand", "--eval_all_checkpoints"),
    *("--evaluate_during_training", "--logging_steps", 1),
]


@pytest.mark.parametrize(
    ("script", "flags", "stops"),
    [
        ("LT_glue.py", REWINDING, {1: "stop", 4: "stop", 6: "stop", 9: "crash", 11: "stop"}),
        ("LT_glue.py", AS_RELEASED, {3: "stop", 6: "crash", 9: "stop"}),
        ("glue_trans.py", FINE_TUNING, {2: "stop", 5: "crash", 8: "stop"}),
    ],
    ids=["rewinding", "as released", "fine-tuning"],
)
def test_a_stopped_or_crashed_run_resumes_to_the_same_bytes(
    data, tmp_path, monkeypatch, script, flags, stops
):
    """`stops`: after which step, counted over all processes, SIGTERM comes or the process fails."""
    out = tmp_path / "out"
    flags = command(data, out, *flags)
    done(script, *flags)
    undisturbed = outcome(out)
    out.rename(tmp_path / "undisturbed")
    taken, original = [], Trainer.step

    def step(self, batches, learning_rate, path):
        result = original(self, batches, learning_rate, path)
        taken.append(learning_rate)
        if stops.get(len(taken)) == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif stops.get(len(taken)) == "crash":
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(Trainer, "step", step)
    for stop in stops.values():
        torch.manual_seed(99)  # a new process has other generator states than the old one
        if stop == "crash":
            with pytest.raises(ZeroDivisionError):
                launch.run(script, *flags)
            continue
        ended = launch.run(script, *flags)
        assert ended.code == 75, ended.err
        (line,) = ended.errors()
        assert "SIGTERM: checkpoint saved" in line
    torch.manual_seed(99)
    done(script, *flags)
    monkeypatch.undo()
    found = outcome(out)
    assert list(found) == list(undisturbed)
    assert [name for name in found if found[name] != undisturbed[name]] == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_the_data_is_read_ends_as_one_in_training(data, tmp_path, monkeypatch, name):
    """Nothing is saved yet, but a batch script must see that the run was stopped, not failed."""

    def stop(*args, **kwargs):
        os.kill(os.getpid(), getattr(signal, name))
        raise AssertionError("the signal had no effect")

    monkeypatch.setattr(bert, "load_config", stop)
    before = signal.getsignal(getattr(signal, name))
    ended = launch.run("LT_glue.py", *command(data, tmp_path / "out"))
    assert ended.code == RESUME_EXIT_CODE and not (tmp_path / "out").exists()
    assert signal.getsignal(getattr(signal, name)) == before, "the earlier handler is back"


# ---- killed runs


def run_kill_test(*flags):
    command = [sys.executable, launch.ROOT / "benchmarks" / "kill_test.py", *flags]
    environment = {**os.environ, **launch.ONE_THREAD}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_killed_runs_of_all_tasks_end_as_undisturbed_ones():
    """Two kills each of IMP and fine-tuning on GLUE, SQuAD and MLM.

    `python benchmarks/kill_test.py` does a hundred.
    """
    ended = run_kill_test("--kills", "2", "--seed", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    table = [line.rsplit(maxsplit=5) for line in lines[1:-1]]
    assert len(table) == 8
    for _, kills, _, _, runs, same in table:
        assert int(kills) == 2 and same == runs
    assert lines[-1] == "all the same after 16 kills"


@pytest.fixture
def kill_test(monkeypatch):
    monkeypatch.syspath_prepend(str(launch.ROOT))
    from benchmarks import kill_test

    return kill_test


def test_the_comparison_finds_each_kind_of_difference(kill_test):
    row = {"score": 1.0}
    whole = {
        "results.jsonl": [row, row],
        "checkpoint-3/mask.pt": b"m",
        "model.safetensors": b"w",
        "run.json": {},
    }
    assert kill_test.differences(whole, dict(whole)) == []
    for change, found in [
        ({"results.jsonl": [row, {"score": 1.5}]}, "results.jsonl, row 2"),
        ({"results.jsonl": [row]}, "results.jsonl: 1 rows, not 2"),
        ({"checkpoint-3/mask.pt": b"n"}, "checkpoint-3/mask.pt"),
        ({".state-new.pt.x.tmp": b""}, ".state-new.pt.x.tmp"),
    ]:
        assert kill_test.differences(whole, whole | change) == [found]
    without = {name: value for name, value in whole.items() if name != "model.safetensors"}
    assert kill_test.differences(whole, without) == ["model.safetensors"]
