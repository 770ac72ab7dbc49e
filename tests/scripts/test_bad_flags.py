"""Wrong flags and output folders: exit code 2, one line on stderr, and nothing is written."""

from pathlib import Path

import launch
import pytest
import tiny
from refusals import assert_refused, check, content, flags


@pytest.mark.parametrize("rate", [1, 1.5, -0.1, "nan", "half"])
def test_rates_outside_0_to_1(offline_start, good_inputs, tmp_path, rate):
    check(offline_start, good_inputs, tmp_path, "oneshot.py", ["--rate", rate], rate=rate)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"save_steps": 5}, ["--save_steps 5", "longer than the run of 4 steps"]),
        ({"save_steps": 0}, ["--save_steps", "at least 1"]),
        ({"save_steps": -1}, ["--save_steps -1", ">= 0"]),
        ({}, ["--max_steps is too low", "at least 1"]),  # a tenth of 4 steps
        ({"save_steps": 2, "rewind_steps": 2}, ["--rewind_steps 2", "2 steps"]),
        ({"save_steps": 2, "sparsities": "0"}, ["--sparsities"]),
        ({"save_steps": 2, "sparsities": "1.1"}, ["--sparsities"]),
        ({"save_steps": 2, "sparsities": "nan"}, ["--sparsities"]),
        (
            {"save_steps": 2, "rewind_steps": 1, "no_rewind": True},
            ["--no_rewind and --rewind_steps"],
        ),
        (
            {"save_steps": 2, "as_released": True, "no_rewind": True},
            ["--as_released rewinds", "--no_rewind"],
        ),
    ],
    ids=str,
)
def test_wrong_flags_of_imp(offline_start, good_inputs, tmp_path, given, parts):
    check(offline_start, good_inputs, tmp_path, "LT_glue.py", parts, **given)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"do_train": None, "do_eval": None}, ["--do_train", "--do_eval"]),
        ({"max_seq_length": 65}, ["--max_seq_length 65", "64 positions"]),
        ({"max_seq_length": 2}, ["--max_seq_length 2"]),
        ({"learning_rate": "nan"}, ["--learning_rate"]),
        ({"learning_rate": -1}, ["--learning_rate"]),
        ({"weight_decay": -1}, ["--weight_decay"]),
        ({"warmup_steps": -1}, ["--warmup_steps"]),
        ({"warmup_steps": -0.5}, ["--warmup_steps", "share below 1"]),
        ({"warmup_steps": 1.5}, ["--warmup_steps", "1.5", "share below 1"]),
        ({"warmup_steps": "nan"}, ["--warmup_steps"]),
        ({"warmup_steps": "inf"}, ["--warmup_steps"]),
        ({"logging_steps": -1}, ["--logging_steps"]),
        ({"save_steps": -1}, ["--save_steps"]),
        ({"save_total_limit": -1}, ["--save_total_limit"]),
        ({"per_gpu_train_batch_size": 0}, ["--per_gpu_train_batch_size 0"]),
        ({"max_train_samples": 0}, ["--max_train_samples 0", ">= 1"]),
        ({"max_eval_samples": -1}, ["--max_eval_samples -1", ">= 1"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"seed": 2**63}, ["--seed 9223372036854775808"]),
        ({"logging_steps": 10**20}, ["--logging_steps 1", "< 2147483648"]),
        ({"max_steps": 10**30}, ["--max_steps 1", "< 2147483648"]),
        ({"weight_decay": 1e300}, ["--weight_decay 1e+300", "< 1000"]),
        ({"adam_epsilon": "inf"}, ["--adam_epsilon inf"]),
        ({"should_continue": True, "restart": True}, ["--should_continue and --restart"]),
        ({"data_dir": "caf\udce9"}, ["caf", "not UTF-8"]),
        ({"num_train_epochs": 0}, ["--num_train_epochs"]),
        ({"checkpoint_minutes": "nan"}, ["--checkpoint_minutes"]),
        ({"fp16": True}, ["--fp16"]),
        ({"dir": None}, ["--dir"]),
        ({"dir": "post"}, ["--dir", "post"]),
        ({"colour": "red"}, ["--colour"]),
    ],
    ids=ascii,
)
def test_wrong_flags_of_fine_tuning(offline_start, good_inputs, tmp_path, given, parts):
    check(offline_start, good_inputs, tmp_path, "glue_trans.py", parts, **given)


def test_a_wrong_seed_of_one_shot_pruning(offline_start, good_inputs, tmp_path):
    check(offline_start, good_inputs, tmp_path, "oneshot.py", ["--seed -1"], seed=-1)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"data_dir": "nowhere"}, ["nowhere", "no such file", "--data_dir"]),
        ({"task_name": "SST3"}, ["--task_name SST3", "did you mean sst-2?"]),
        ({"task_name": None}, ["--task_name"]),
    ],
    ids=["no folder", "misspelt task", "no task"],
)
def test_wrong_data_flags(offline_start, good_inputs, tmp_path, given, parts):
    check(offline_start, good_inputs, tmp_path, "LT_glue.py", parts, **given)


@pytest.mark.parametrize(
    ("script", "given", "parts"),
    [
        ("LT_glue.py", {"task_name": "MRPCC"}, ["did you mean mrpc?"]),
        ("glue_trans.py", {"mask_dir": "no/mask.pt"}, ["no/mask.pt: no such mask file"]),
    ],
)
def test_new_processes_as_users_start_them(good_inputs, tmp_path, script, given, parts):
    command = flags(good_inputs, script, output_dir=tmp_path / "out", **given)
    ended = launch.fresh(script, *command, cwd=tmp_path)
    assert_refused(ended, script, *parts)
    assert ended.out == "" and list(tmp_path.iterdir()) == []


# ---- the output folder


@pytest.mark.parametrize("script", ["LT_glue.py", "glue_trans.py"])
def test_a_full_output_folder_without_permission(offline_start, good_inputs, tmp_path, script):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    before = content(out)
    command = flags(good_inputs, script, output_dir=out, save_steps=1)
    ended = offline_start(script, *command, cwd=tmp_path)
    parts = [f"--output_dir {out} is not empty", "--overwrite_output_dir"]
    assert_refused(ended, script, *parts)
    assert content(out) == before


def test_an_output_folder_that_is_a_file(offline_start, good_inputs, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    command = flags(good_inputs, "glue_trans.py", output_dir=out)
    ended = offline_start("glue_trans.py", *command, cwd=tmp_path)
    assert_refused(ended, "glue_trans.py", f"--output_dir {out}")
    assert out.read_text() == "mine"


@pytest.mark.parametrize("script", ["glue_trans.py", "oneshot.py"])
@pytest.mark.parametrize("name", ["out", "out/deeper", 300 * "x"])
def test_an_output_folder_that_cannot_be_made(
    offline_start, good_inputs, tmp_path, tmp_path_factory, script, name
):
    (tmp_path / "out").write_text("mine")
    evaluating = {}
    if script == "glue_trans.py":
        model = tmp_path_factory.mktemp("trained") / "bert"
        tiny.classifier(good_inputs / "bert2", model)
        evaluating = {"do_train": None, "model_name_or_path": model}
    command = flags(good_inputs, script, output_dir=tmp_path / name, **evaluating)
    ended = offline_start(script, *command, cwd=tmp_path)
    assert_refused(ended, script, tmp_path / Path(name).parts[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "mine"


def test_continuing_a_run_that_was_never_started(offline_start, good_inputs, tmp_path):
    out = tmp_path / "deep" / "out"
    command = flags(good_inputs, "glue_trans.py", output_dir=out, should_continue=True)
    ended = offline_start("glue_trans.py", *command, cwd=tmp_path)
    assert_refused(ended, "glue_trans.py", "--should_continue", out)
    assert not out.parent.exists()


@pytest.mark.parametrize("script", ["LT_glue.py", "glue_trans.py"])
def test_a_learning_rate_that_diverges_stops_the_run(offline_start, good_inputs, tmp_path, script):
    out = tmp_path / "out"
    command = flags(good_inputs, script, output_dir=out, save_steps=4, learning_rate=1e30)
    ended = offline_start(script, *command, cwd=tmp_path)
    (line,) = ended.errors()
    name = " of round 1" if script == "LT_glue.py" else ""
    start = f"{script}: error: the loss is nan at step 2{name} (training rows "
    assert ended.code == 2 and line.startswith(start) and "lower --learning_rate" in line
    left = {path.name for path in out.iterdir()}
    assert left - {"run.json", "events", ".lock"} == set()
