"""The output folder: which run owns it, what is replaced, moved aside, swept or kept."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from utils import files
from utils.config import OutputConfig
from utils.errors import UserError
from utils.runs.folder import OutputFolder, differences

ARGUMENTS = {"seed": 1, "checkpoint_minutes": 10.0, "data_dir": "glue_data/RTE"}


def opened(path, arguments=ARGUMENTS, **flags):
    """An output folder, closed at the end of a with statement; `flags`: those of OutputConfig."""
    folder = OutputFolder(OutputConfig(str(path), **flags), arguments)
    return contextlib.closing(folder)


def overwritten(path, arguments=ARGUMENTS, **flags):
    return opened(path, arguments, overwrite_output_dir=True, **flags)


def add_checkpoint(path, round_=0, step=5):
    (path / f"state-{round_}-{step}-0123456789abcdef.pt").write_bytes(b"a checkpoint")


def checkpoints(path):
    return [tuple(map(int, p.name.split("-")[1:3])) for p in path.glob("state-*.pt")]


def contents(path):
    return {p: p.is_file() and p.read_bytes() for p in path.rglob("*")}


# ---- which run owns the folder


@pytest.mark.parametrize(
    ("finished", "arguments", "flags", "end"),
    [
        (False, {}, {}, "resumes"),
        (False, {}, {"overwrite_output_dir": True}, "resumes"),  # all released commands give it
        (False, {}, {"should_continue": True}, "resumes"),
        (False, {"checkpoint_minutes": 1.0}, {}, "resumes"),  # changes no result
        (False, {"output_dir": "elsewhere/", "save_total_limit": 1}, {}, "resumes"),  # nor do these
        (False, {"data_dir": "glue_data//RTE/"}, {}, "resumes"),  # the same folder
        (
            False,
            {"data_dir": "glue_data/WNLI"},
            {},
            "--data_dir glue_data/RTE there, glue_data/WNLI here",
        ),
        (False, {}, {"restart": True}, "starts"),
        (False, {"seed": 2}, {"overwrite_output_dir": True}, "starts"),
        (
            False,
            {"seed": 2},
            {},
            r"holds a run with other arguments \(--seed 1 there, 2 here\); "
            "give --overwrite_output_dir",
        ),
        (False, {"seed": 2}, {"restart": True}, "--seed 1 there, 2 here"),
        (False, {"new_flag": False}, {}, "resumes"),  # started by a version that did not have it
        (False, {"new_flag": True}, {}, "--new_flag None there, True here"),
        (
            False,
            {"seed": 2},
            {"overwrite_output_dir": True, "should_continue": True},
            "no checkpoint of this command",
        ),
        (True, {}, {}, "is finished"),
        (True, {}, {"overwrite_output_dir": True}, "starts"),
        (True, {}, {"restart": True}, "is not empty; give --overwrite_output_dir"),
        (True, {}, {"should_continue": True}, "is finished"),
        (
            True,
            {},
            {"should_continue": True, "overwrite_output_dir": True},
            "no checkpoint of this command",
        ),
    ],
)
def test_what_happens_to_the_run_in_the_folder(tmp_path, finished, arguments, flags, end):
    out = tmp_path / "out"
    with opened(out) as folder:
        (out / files.RESULTS).write_text("a row\n")
        add_checkpoint(out)
        if finished:
            folder.finish()
    before = contents(out)
    if end not in ("resumes", "starts", "is finished"):
        with pytest.raises(UserError, match=end):
            opened(out, ARGUMENTS | arguments, **flags)
        assert contents(out) == before
        return
    with opened(out, ARGUMENTS | arguments, **flags) as folder:
        assert folder.finished == (end == "is finished")
        assert bool(checkpoints(out)) == (end == "resumes")
        assert (out / files.RESULTS).exists() == (end != "starts")


FINE_TUNING = {
    **{"task_name": "MRPC", "data_dir": "RTE", "dir": "pre", "do_eval": True, "max_steps": -1},
    **{"model_name_or_path": "hub/bert", "num_train_epochs": 3.0, "logging_steps": 500, "seed": 0},
    **{"evaluate_during_training": False, "as_released": False, "save_steps": None},
}


@pytest.mark.parametrize(
    ("recorded", "given"),
    [
        ({}, {"data_dir": "./RTE//"}),
        ({}, {"data_dir": "{base}/RTE"}),
        ({}, {"data_dir": "{base}/link"}),
        ({}, {"data_dir": "link/../RTE"}),
        ({"mask_dir": "{base}/RTE/mask.pt"}, {"mask_dir": "link/mask.pt"}),
        ({}, {"task_name": "mrpc"}),
        ({"task_name": "SST-2"}, {"task_name": "sst2"}),
        ({}, {"max_steps": -5}),
        ({"max_steps": 0}, {"max_steps": None}),
        ({"max_steps": 10}, {"max_steps": 10, "num_train_epochs": 9.0}),
        ({}, {"save_steps": 0}),
        ({}, {"eval_all_checkpoints": True}),  # no model is saved on the way
        ({}, {"logging_steps": 5}),
        ({}, {"logging_steps": 0, "evaluate_during_training": True}),
        ({"do_eval": False}, {"do_eval": False, "evaluate_during_training": True}),
        ({"do_eval": False}, {"do_eval": False, "predict_file": "dev.json", "n_best_size": 3}),
        ({"mlm": True}, {"mlm": True, "per_gpu_eval_batch_size": 4}),
        ({}, {"null_score_diff_threshold": 1.0}),
        ({}, {"config_name": "hub/bert", "tokenizer_name": "hub//bert"}),
        ({"tokenizer_name": "hub/bert"}, {}),
        ({}, {"model_type": "BERT", "threads": 3, "verbose_logging": True, "save_total_limit": 1}),
    ],
)
def test_a_command_spelled_differently_is_the_same_run(tmp_path, monkeypatch, recorded, given):
    assert found_differing(tmp_path, monkeypatch, recorded, given) == []


@pytest.mark.parametrize(
    ("recorded", "given", "flags"),
    [
        ({}, {"data_dir": "WNLI"}, ["data_dir"]),
        ({}, {"data_dir": "missing"}, ["data_dir"]),
        ({}, {"task_name": "RTE"}, ["task_name"]),
        ({}, {"max_steps": 10}, ["max_steps"]),
        ({"max_steps": 10}, {"max_steps": 11}, ["max_steps"]),
        ({}, {"num_train_epochs": 9.0}, ["num_train_epochs"]),
        ({}, {"max_train_samples": 8}, ["max_train_samples"]),
        ({}, {"max_eval_samples": 8}, ["max_eval_samples"]),
        ({}, {"do_eval": False}, ["do_eval"]),
        ({}, {"evaluate_during_training": True}, ["evaluate_during_training"]),
        (
            {"evaluate_during_training": True},
            {"evaluate_during_training": True, "logging_steps": 5},
            ["logging_steps"],
        ),
        ({}, {"save_steps": 5}, ["save_steps"]),
        ({}, {"predict_file": "dev.json"}, ["predict_file"]),
        ({}, {"model_name_or_path": "hub/other"}, ["model_name_or_path"]),
        ({}, {"config_name": "hub/other"}, ["config_name"]),
        (
            {"mlm": True, "as_released": True, "max_steps": 10},
            {"per_gpu_eval_batch_size": 4, "num_train_epochs": 9.0}
            | {"mlm": True, "as_released": True, "max_steps": 10},
            ["num_train_epochs", "per_gpu_eval_batch_size"],
        ),
        ({}, {"processes": 2}, ["processes"]),
    ],
)
def test_a_flag_with_an_effect_makes_another_run(tmp_path, monkeypatch, recorded, given, flags):
    found = found_differing(tmp_path, monkeypatch, recorded, given)
    assert [each.split()[0] for each in found] == [f"--{flag}" for flag in flags]


def found_differing(base, monkeypatch, recorded, given):
    """The differences between FINE_TUNING with `recorded` flags and, back from JSON, `given`."""
    for name in ("RTE", "WNLI"):
        (base / name).mkdir()
        (base / name / "mask.pt").touch()
    (base / "link").symlink_to("RTE")
    monkeypatch.chdir(base)
    both = [
        json.loads(json.dumps(FINE_TUNING | changes).replace("{base}", str(base)))
        for changes in (recorded, given)
    ]
    assert len(differences(*both, {})) == len(differences(*both[::-1], {}))
    return differences(*both, {})


@pytest.mark.parametrize("on_gpu", [False, True])
def test_no_cuda_matters_only_beside_a_gpu(monkeypatch, on_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    assert bool(differences({"no_cuda": False}, {"no_cuda": True}, {})) == on_gpu


@pytest.mark.parametrize(("here", "there"), [(".", "elsewhere"), ("elsewhere", ".")])
def test_a_relative_path_is_read_from_the_folder_of_its_command(tmp_path, monkeypatch, here, there):
    for folder in (".", "elsewhere"):
        (tmp_path / folder / "RTE").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    with opened(tmp_path / "out", {"data_dir": "RTE"}):
        pass
    monkeypatch.chdir(tmp_path / there)
    absolute = str((tmp_path / here / "RTE").resolve())
    with opened(tmp_path / "out", {"data_dir": absolute}, should_continue=False) as folder:
        assert folder.arguments == {"data_dir": absolute}
    with pytest.raises(UserError, match="--data_dir RTE there"):
        opened(tmp_path / "out", {"data_dir": str(tmp_path / there / "RTE")})


def test_a_moved_tree_with_the_same_relative_paths_is_the_same_run(tmp_path, monkeypatch):
    (tmp_path / "old" / "RTE").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    with opened(Path("out"), {"data_dir": "RTE"}):
        add_checkpoint(Path("out"))
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    with opened(Path("out"), {"data_dir": "RTE"}):
        assert checkpoints(Path("out")) == [(0, 5)]


def test_a_default_that_is_given_changes_nothing(tmp_path):
    defaults = {"save_steps": 12, "sparsities": [0.1, 0.2]}
    for recorded, given in [({}, defaults), (defaults, {}), ({"save_steps": None}, defaults)]:
        assert differences(recorded, given, defaults) == []
    (found,) = differences({}, {"save_steps": 13}, defaults)
    assert found == "--save_steps None there, 13 here"


def test_a_run_with_a_corrupt_owner_file_is_not_removed(tmp_path):
    out = tmp_path / "out"
    with opened(out):
        add_checkpoint(out)
    owner = out / files.RUN
    owner.write_text(owner.read_text()[:-20])
    message = "run.json: corrupt.*--restart and --overwrite_output_dir"
    for flags in ({}, {"overwrite_output_dir": True}, {"restart": True}):
        with pytest.raises(UserError, match=message):
            opened(out, **flags)
    assert checkpoints(out) == [(0, 5)]
    with opened(out, restart=True, overwrite_output_dir=True):
        assert checkpoints(out) == []
    assert json.loads(owner.read_text())["arguments"] == ARGUMENTS


def test_two_processes_never_write_one_folder(tmp_path):
    with opened(tmp_path / "out"):
        with pytest.raises(UserError, match="another process is writing there"):
            opened(tmp_path / "out")
        with pytest.raises(UserError, match="another process is writing there"):
            opened(tmp_path / "out", overwrite_output_dir=True, restart=True)
    with opened(tmp_path / "out"):
        pass


# ---- what a killed process leaves


def test_half_written_files_are_removed_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    with opened(out):
        add_checkpoint(out)
    for name in (".checkpoint-4.abc.tmp", ".checkpoint-4.old"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"half")
    kept = {".notes.tmp", "thesis.txt", ".cached_train_mrpc.npz.abc.tmp"}
    for name in (".state-new.pt.abc.tmp", ".run.json.abc.tmp", *kept):
        (out / name).write_bytes(b"half")
    with opened(out):
        names = {path.name for path in out.iterdir()} - {path.name for path in out.glob("state-*")}
        assert names == kept | {".lock", "run.json"}


def test_a_folder_with_only_half_written_files_is_free(tmp_path):
    (tmp_path / ".run.json.abc.tmp").write_text("{")
    with opened(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}


def test_checkpoints_of_a_run_killed_at_its_very_end_are_removed_later(tmp_path):
    out = tmp_path / "out"
    with opened(out):
        add_checkpoint(out)
    files.write_json(out / files.RUN, {"arguments": ARGUMENTS, "finished": True})  # and killed here
    with opened(out) as folder:
        assert folder.finished
    assert checkpoints(out) == []


# ---- what a run replaces


def test_only_files_with_names_that_a_run_writes_are_replaced(tmp_path):
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
    with overwritten(tmp_path) as folder:
        kept = {Path(name).parts[0] for name in others}
        assert {p.name for p in tmp_path.iterdir()} == kept | {".lock", "run.json", "replaced-1"}
        aside = {
            str(p.relative_to(tmp_path / "replaced-1")) for p in contents(tmp_path / "replaced-1")
        }
        assert aside >= set(ours)
        folder.finish()
    assert all((tmp_path / name).read_text() == name for name in others)


@pytest.mark.parametrize("index", [True, False], ids=["with tickets.json", "without"])
@pytest.mark.parametrize(
    ("owner", "arguments", "flags", "aside"),
    [
        ("finished", {"seed": 2}, {}, True),
        ("interrupted", {"seed": 2}, {}, True),
        ("unknown", {}, {}, True),
        ("finished", {}, {}, True),  # the same command, repeated by mistake
        ("corrupt", {}, {"restart": True}, True),
        ("finished", {"seed": 2}, {"restart": True}, True),
        ("finished", {}, {"restart": True}, False),
        ("interrupted", {}, {"restart": True}, False),
    ],
)
def test_finished_rounds_are_deleted_only_by_a_restart_of_their_run(
    tmp_path, capsys, *, owner, arguments, flags, aside, index
):
    out = tmp_path / "out"
    with opened(out) as folder:
        for name in ["checkpoint-20/mask.pt", "results.jsonl", *["tickets.json"] * index]:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(name)
        if owner == "finished":
            folder.finish()
    if owner == "unknown":
        (out / "run.json").unlink()
    elif owner == "corrupt":
        (out / "run.json").write_text("{")
    with overwritten(out, ARGUMENTS | arguments, **flags):
        assert not (out / "checkpoint-20").exists() and not (out / "results.jsonl").exists()
        moved = out / "replaced-1" / "checkpoint-20" / "mask.pt"
        assert moved.exists() == aside == bool(capsys.readouterr().err)


def test_tickets_are_moved_aside_by_a_run_that_finds_none(tmp_path, capsys):
    out = tmp_path / "out"
    for number in (1, 2):
        with overwritten(out) as folder:
            for name in ("tickets.json", "results.jsonl", "checkpoint-20/mask.pt"):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text(f"{name} {number}")
            folder.finish()
        capsys.readouterr()
        with overwritten(out, ARGUMENTS | {"dir": "pre"}) as folder:
            names = {".lock", "run.json", "replaced-1", f"replaced-{number}"}
            assert {p.name for p in out.iterdir()} == names
            folder.finish()
        aside = out / f"replaced-{number}"
        (warning,) = capsys.readouterr().err.splitlines()
        assert f"{out}: holds tickets; the files of their run (--dir None" in warning
        assert f"are now in {aside}; remove that folder to free 0 MB" in warning
        mask = aside / "checkpoint-20" / "mask.pt"
        assert mask.read_text() == f"checkpoint-20/mask.pt {number}"
        owner = json.loads((aside / "run.json").read_text())
        assert owner["arguments"] == ARGUMENTS and owner["finished"]


def test_an_interrupted_move_loses_no_ticket(tmp_path, monkeypatch):
    out = tmp_path / "out"
    names = ("tickets.json", "checkpoint-20", "checkpoint-40")
    with opened(out) as folder:
        for name in names:
            (out / name).write_text(name)
        folder.finish()
    moved, replace = [], Path.replace

    def killed(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(path.name)
        return replace(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        overwritten(out, ARGUMENTS | {"dir": "pre"})
    with overwritten(out, ARGUMENTS | {"dir": "pre"}):
        aside = [path for path in out.glob("replaced-*/*") if path.name != "run.json"]
        assert {path.name: path.read_text() for path in aside} == {name: name for name in names}
    assert moved[0] == "run.json"


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("mask_dir", "checkpoint-20/mask.pt"),
        ("weight_pertub", "rewind_weights.pt"),
        ("model_name_or_path", ""),
        ("model_name_or_path", "checkpoint-20/"),
    ],
)
def test_a_run_does_not_remove_what_it_reads(tmp_path, flag, name):
    out = tmp_path / "out"
    with opened(out) as folder:
        for file in ("checkpoint-20/mask.pt", "rewind_weights.pt", "model.safetensors"):
            (out / file).parent.mkdir(exist_ok=True)
            (out / file).write_text("precious")
        folder.finish()
    before = contents(tmp_path)
    given = f"{out}/{name}"
    message = f"--{flag} {given} is in --output_dir .*give another --output_dir"
    with pytest.raises(UserError, match=message):
        overwritten(out, ARGUMENTS | {flag: given})
    assert contents(tmp_path) == before
