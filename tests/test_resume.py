"""Runs that are killed go on to the same end; which checkpoint they go on from, and what they keep of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import launch
import pytest
import tiny
import torch

from utils import files, run
from utils.errors import UserError

ARGUMENTS = {"seed": 1, "checkpoint_minutes": 10.0, "data_dir": "glue_data/RTE"}


def kill_test(*flags):
    command = [sys.executable, launch.ROOT / "benchmarks" / "kill_test.py", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **launch.ONE_THREAD}
    )


def test_killed_runs_of_every_task_end_as_undisturbed_ones():
    """Two kills each of IMP and fine-tuning on GLUE, SQuAD and MLM; `python benchmarks/kill_test.py` does a hundred."""
    ended = kill_test("--kills", "2", "--seed", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    table = [line.rsplit(maxsplit=5) for line in ended.stdout.splitlines()[1:-1]]
    assert len(table) == 8
    for _, kills, _, _, runs, same in table:
        assert int(kills) == 2 and same == runs
    assert ended.stdout.splitlines()[-1] == "all the same after 16 kills"


@pytest.fixture
def comparison():
    sys.path.insert(0, str(launch.ROOT))
    from benchmarks import kill_test

    yield kill_test
    sys.path.remove(str(launch.ROOT))


def test_the_comparison_sees_every_kind_of_difference(comparison):
    row = {"score": 1.0}
    whole = {
        "results.jsonl": [row, row],
        "checkpoint-3/mask.pt": b"m",
        "model.safetensors": b"w",
        "run.json": {},
    }
    assert comparison.differences(whole, dict(whole)) == []
    for change, told in [
        ({"results.jsonl": [row, {"score": 1.5}]}, "results.jsonl, row 2"),
        ({"results.jsonl": [row]}, "results.jsonl: 1 rows, not 2"),
        ({"checkpoint-3/mask.pt": b"n"}, "checkpoint-3/mask.pt"),
        ({".state-new.pt.x.tmp": b""}, ".state-new.pt.x.tmp"),
    ]:
        assert comparison.differences(whole, whole | change) == [told]
    assert comparison.differences(
        whole, {k: v for k, v in whole.items() if k != "model.safetensors"}
    ) == ["model.safetensors"]


# ---- which checkpoints are kept, and which one is taken


def opened(folder, arguments=ARGUMENTS, **flags):
    return run.Run.open(str(folder), arguments, **{"overwrite": False, **flags})


def save(held, round_, step):
    held.save_state(
        {"round": round_, "step": step, "weights": torch.full((1000,), float(10 * round_ + step))}
    )


def places(folder):
    """Round and step of every checkpoint in the folder."""
    return sorted(tuple(map(int, path.name.split("-")[1:3])) for path in folder.glob("state-*.pt"))


def state_file(folder, round_, step):
    (path,) = folder.glob(f"state-{round_}-{step}-*.pt")
    return path


def test_one_checkpoint_within_a_round_is_kept_and_the_start_of_the_round(tmp_path):
    with opened(tmp_path / "out") as held:
        kept = []
        for place in [(0, 2), (0, 4), (1, 0), (1, 1), (1, 3), (2, 0), (2, 2)]:
            save(held, *place)
            kept.append(places(held.folder))
    assert kept == [
        [(0, 2)],
        [(0, 4)],
        [(0, 4), (1, 0)],
        [(1, 0), (1, 1)],
        [(1, 0), (1, 3)],
        [(1, 3), (2, 0)],
        [(2, 0), (2, 2)],
    ]


def test_the_last_checkpoint_is_taken_with_the_results_up_to_it(tmp_path):
    with opened(tmp_path / "out") as held:
        held.append_result({"row": 1})
        save(held, 0, 2)
        held.append_result({"row": 2})
    with opened(tmp_path / "out") as held:
        state = held.load_state()
        assert (state["round"], state["step"], state["weights"][0]) == (0, 2, 2.0)
        assert held.results() == [{"row": 1}]
        held.append_result({"row": "again"})
        assert held.results() == [{"row": 1}, {"row": "again"}]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [flip_a_bit, cut])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_taken(tmp_path, capsys, spoil):
    with opened(tmp_path / "out") as held:
        save(held, 1, 0)
        held.append_result({"row": 1})
        save(held, 1, 5)
    spoil(state_file(tmp_path / "out", 1, 5))
    with opened(tmp_path / "out") as held:
        state = held.load_state()
        assert (state["round"], state["step"], held.results()) == (1, 0, [])
        (line,) = capsys.readouterr().err.splitlines()
        assert "state-1-5-" in line and "cut short or damaged" in line and "the one before" in line
        save(held, 1, 3)
    assert places(tmp_path / "out") == [(1, 0), (1, 3)]


def test_without_an_intact_checkpoint_the_run_begins_anew_unless_it_must_continue(tmp_path, capsys):
    with opened(tmp_path / "out") as held:
        held.append_result({"row": 1})
        save(held, 0, 5)
    cut(state_file(tmp_path / "out", 0, 5))
    with (
        opened(tmp_path / "out", insist=True) as held,
        pytest.raises(UserError, match="--should_continue.*no intact"),
    ):
        held.load_state()
    with opened(tmp_path / "out") as held:
        assert held.load_state() is None and held.results() == []
    assert capsys.readouterr().err.count("cut short or damaged") == 2


def test_a_run_whose_owner_cannot_be_read_is_not_wiped(tmp_path):
    with opened(tmp_path / "out") as held:
        save(held, 0, 5)
    owner = tmp_path / "out" / files.RUN
    owner.write_text(owner.read_text()[:-20])
    for flags in ({}, {"overwrite": True}, {"restart": True}):
        with pytest.raises(
            UserError, match="run.json: damaged.*--restart and --overwrite_output_dir"
        ):
            opened(tmp_path / "out", **flags)
    assert places(tmp_path / "out") == [(0, 5)]
    with opened(tmp_path / "out", restart=True, overwrite=True) as held:
        assert held.load_state() is None
    assert (
        json.loads(owner.read_text())["arguments"] == ARGUMENTS and places(tmp_path / "out") == []
    )


def test_what_a_killed_process_left_half_made_goes_and_the_rest_stays(tmp_path):
    with opened(tmp_path / "out") as held:
        save(held, 0, 5)
    out = tmp_path / "out"
    for name in (".checkpoint-4.abc.tmp", ".checkpoint-4.old"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"half")
    for name in (
        ".state-new.pt.abc.tmp",
        ".run.json.abc.tmp",
        ".notes.tmp",
        "thesis.txt",
        ".cached_train_mrpc.npz.abc.tmp",
    ):
        (out / name).write_bytes(b"half")
    with opened(out):
        names = {path.name for path in out.iterdir()} - {path.name for path in out.glob("state-*")}
        assert names == {
            ".lock",
            "run.json",
            ".notes.tmp",
            "thesis.txt",
            ".cached_train_mrpc.npz.abc.tmp",
        }


def test_a_folder_with_nothing_but_leftovers_is_a_new_run_s(tmp_path):
    (tmp_path / ".run.json.abc.tmp").write_text("{")
    with opened(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}


def test_checkpoints_left_when_the_end_was_cut_off_go_with_the_next_look(tmp_path):
    with opened(tmp_path / "out") as held:
        save(held, 0, 5)
        held._write_owner(finished=True)  # and killed here
    with opened(tmp_path / "out") as held:
        assert held.finished
    assert places(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("finished", "arguments", "flags", "end"),
    [
        (False, {}, {}, "continues"),
        (False, {}, {"overwrite": True}, "continues"),  # it stands in every released command
        (False, {}, {"insist": True}, "continues"),
        (False, {"checkpoint_minutes": 1.0}, {}, "continues"),  # changes no result
        (
            False,
            {"output_dir": "elsewhere/", "save_total_limit": 1},
            {},
            "continues",
        ),  # nor do these
        (False, {"data_dir": "glue_data//RTE/"}, {}, "continues"),  # the same folder
        (
            False,
            {"data_dir": "glue_data/WNLI"},
            {},
            "--data_dir glue_data/RTE there, glue_data/WNLI here",
        ),
        (False, {}, {"restart": True}, "begins"),
        (False, {"seed": 2}, {"overwrite": True}, "begins"),
        (
            False,
            {"seed": 2},
            {},
            r"holds a run with other arguments \(--seed 1 there, 2 here\); give --overwrite_output_dir",
        ),
        (False, {"seed": 2}, {"restart": True}, "--seed 1 there, 2 here"),
        (False, {"new_flag": False}, {}, "continues"),  # begun by a version that did not have it
        (False, {"new_flag": True}, {}, "--new_flag None there, True here"),
        (False, {"seed": 2}, {"overwrite": True, "insist": True}, "no checkpoint of this command"),
        (True, {}, {}, "is finished"),
        (True, {}, {"overwrite": True}, "begins"),
        (True, {}, {"restart": True}, "is not empty; give --overwrite_output_dir"),
        (True, {}, {"insist": True}, "is finished"),
        (True, {}, {"insist": True, "overwrite": True}, "no checkpoint of this command"),
    ],
)
def test_what_becomes_of_the_run_in_the_folder(tmp_path, finished, arguments, flags, end):
    with opened(tmp_path / "out") as held:
        held.append_result({"row": 1})
        save(held, 0, 5)
        if finished:
            held.finish()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if end not in ("continues", "begins", "is finished"):
        with pytest.raises(UserError, match=end):
            opened(tmp_path / "out", ARGUMENTS | arguments, **flags)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        return
    with opened(tmp_path / "out", ARGUMENTS | arguments, **flags) as held:
        assert held.finished == (end == "is finished")
        assert held.finished or (held.load_state() is not None) == (end == "continues")
        assert held.results() == ([] if end == "begins" else [{"row": 1}])


def test_only_files_of_the_names_that_a_run_gives_are_replaced(tmp_path):
    ours = [
        "results.jsonl",
        "tickets.json",
        "predictions_.json",
        "predictions_20.json",
        "nbest_predictions_20.json",
        "null_odds_20.json",
        "checkpoint-20/mask.pt",
        "state-0-5.pt",
        "state-0-5-0123456789abcdef.pt",
        ".run.json.x_1.tmp",
    ]
    others = [
        "state-of-the-art.md",
        "predictions_final.csv",
        "checkpoint-best/model.bin",
        "state-0-5.pt.bak",
        "results.jsonl.gz",
        ".checkpoint-20.swp",
        "notes.txt",
    ]
    for name in [*ours, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with opened(tmp_path, overwrite=True, finds_tickets=True) as held:
        assert {p.name for p in tmp_path.iterdir()} == {Path(name).parts[0] for name in others} | {
            ".lock",
            "run.json",
        }
        held.finish()
    assert all((tmp_path / name).read_text() == name for name in others)


def test_tickets_are_moved_out_of_the_way_of_a_run_that_finds_none(tmp_path, capsys):
    out = tmp_path / "out"
    for number in (1, 2):
        with opened(out, overwrite=True, finds_tickets=True) as held:
            for name in ("tickets.json", "results.jsonl", "checkpoint-20/mask.pt"):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text(f"{name} {number}")
            held.finish()
        capsys.readouterr()
        with opened(out, ARGUMENTS | {"init": "pre"}, overwrite=True) as held:
            assert {p.name for p in out.iterdir()} == {
                ".lock",
                "run.json",
                "replaced-1",
                f"replaced-{number}",
            }
            held.finish()
        aside = out / f"replaced-{number}"
        assert (
            capsys.readouterr().err
            == f"{out}: holds tickets; their run's files are now in {aside}\n"
        )
        assert (
            aside / "checkpoint-20" / "mask.pt"
        ).read_text() == f"checkpoint-20/mask.pt {number}"
        assert json.loads((aside / "run.json").read_text()) == {
            "arguments": ARGUMENTS,
            "finished": True,
        }


def test_a_move_that_was_cut_off_leaves_no_ticket_to_be_removed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with opened(out, finds_tickets=True) as held:
        for name in ("tickets.json", "checkpoint-20", "checkpoint-40"):
            (out / name).write_text(name)
        held.finish()
    moved, replace = [], Path.replace

    def killed(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(path.name)
        return replace(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        opened(out, ARGUMENTS | {"init": "pre"}, overwrite=True)
    with opened(out, ARGUMENTS | {"init": "pre"}, overwrite=True):
        kept = {
            path.name: path.read_text()
            for path in out.glob("replaced-*/*")
            if path.name != "run.json"
        }
    assert moved[0] == "run.json" and kept == {
        name: name for name in ("tickets.json", "checkpoint-20", "checkpoint-40")
    }


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        ("mask_dir", "checkpoint-20/mask.pt"),
        ("weight_pertub", "rewind_weights.pt"),
        ("model_name_or_path", ""),
        ("model_name_or_path", "checkpoint-20/"),
    ],
)
def test_what_a_run_reads_is_not_removed_by_it(tmp_path, flag, place):
    with opened(tmp_path / "out") as held:
        for name in ("checkpoint-20/mask.pt", "rewind_weights.pt", "model.safetensors"):
            (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "out" / name).write_text("precious")
        held.finish()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    given = f"{tmp_path}/out/{place}"
    with pytest.raises(
        UserError, match=f"--{flag} {given} is in --output_dir .*give another --output_dir"
    ):
        opened(tmp_path / "out", ARGUMENTS | {flag: given}, overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_two_processes_never_write_one_folder(tmp_path):
    with opened(tmp_path / "out"):
        with pytest.raises(UserError, match="another process is writing there"):
            opened(tmp_path / "out")
        with pytest.raises(UserError, match="another process is writing there"):
            opened(tmp_path / "out", overwrite=True, restart=True)
    with opened(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_the_data_is_read_ends_as_one_in_training(tmp_path, monkeypatch, name):
    """Nothing is saved yet, but the batch script must see that the run was stopped, not that it failed."""
    import signal

    from utils import models

    def stop(*args, **kwargs):
        os.kill(os.getpid(), getattr(signal, name))
        raise AssertionError("the signal was not heard")

    tiny.glue(tmp_path / "MRPC", "MRPC", train=4, dev=4)
    monkeypatch.setattr(models, "load_config", stop)
    before = signal.getsignal(getattr(signal, name))
    ended = launch.run(
        "LT_glue.py",
        "--output_dir",
        tmp_path / "out",
        "--task_name",
        "MRPC",
        "--data_dir",
        tmp_path / "MRPC",
        "--do_train",
        "--model_name_or_path",
        tmp_path / "bert",
        "--no_cuda",
    )
    assert ended.code == run.RESUME_EXIT_CODE and not (tmp_path / "out").exists()
    assert signal.getsignal(getattr(signal, name)) == before, "the handler from before is back"
