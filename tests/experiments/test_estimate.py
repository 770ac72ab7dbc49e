"""plan.py LIST --estimate: steps and disk follow from the flags, times from steps timed once."""

import importlib
import json
import shlex

import pytest
import tiny
from glue_runs import command, make_data

from experiments import estimate, plan
from utils.errors import UserError


def listed(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def line(script, *flags):
    return shlex.join(["python", script, *map(str, flags)])


def rows(table):
    return [text.split() for text in table.splitlines()[2:]]


def test_steps_runs_and_disk_of_a_list(tmp_path, tmp_path_factory, monkeypatch):
    data = make_data(tmp_path_factory)
    imp = [*("--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6)]
    one_shot = ["--weight", "pre", "--model", "glue", "--rate", 0.5]
    epochs = ["--dir", "pre", "--num_train_epochs", 2, "--mask_dir", "made/later.pt"]
    path = listed(
        tmp_path / "a.list",
        line("LT_glue.py", *command(data, tmp_path / "imp", *imp, "--rewind_steps", 1)),
        line("oneshot.py", *one_shot, "--model_name_or_path", data / "bert"),
        "# stage 2",
        line("glue_trans.py", *command(data, tmp_path / "one", *epochs)),
        line("glue_trans.py", *command(data, tmp_path / "two", *epochs, "--seed", 2)),
        "# stage 3",
        line("experiments/connectivity.py", tmp_path / "one", tmp_path / "two"),
    )
    found = rows(estimate.table(path, 1.0))
    assert [row[:-4] for row in found] == [
        ["1", "LT_glue.py", "sts-b", "1", "10"],  # the later two of three rounds start at step 1
        ["1", "oneshot.py", "1", "0"],
        ["2", "glue_trans.py", "sts-b", "2", "20"],  # five batches an epoch
        ["3", "connectivity.py", "sts-b", "1", "0"],
        ["1", "all", "2", "10"],
        ["2", "all", "2", "20"],
        ["3", "all", "1", "0"],
        ["all", "all", "5", "30"],
    ]
    kept = json.loads((tmp_path / "a.list.estimate.json").read_text())
    assert [each["rows"] for each in kept.values()] == [40], "one task, model and batch"
    monkeypatch.setattr(estimate, "measure", lambda config: pytest.fail("timed again"))
    assert rows(estimate.table(path, 1.0)) == found


def test_a_new_bert_is_timed_without_a_model(tmp_path):
    tiny.bert(tmp_path / "bert")
    tiny.text(tmp_path / "text")
    flags = ["--output_dir", tmp_path / "out", "--mlm", "--do_train", "--block_size", 24]
    flags += ["--train_data_file", tmp_path / "text" / "en.train", "--max_steps", 10, "--no_cuda"]
    flags += ["--config_name", tmp_path / "bert", "--tokenizer_name", tmp_path / "bert"]
    path = listed(tmp_path / "a.list", line("LT_pretrain.py", *flags))
    assert rows(estimate.table(path, 1.0))[0][:-4] == ["1", "LT_pretrain.py", "mlm", "1", "10"]


@pytest.mark.parametrize(("limit", "models"), [([], 4), (["--save_total_limit", 1], 2)])
def test_an_imp_run_leaves_a_model_a_round_and_its_masks(tmp_path, tmp_path_factory, limit, models):
    data = make_data(tmp_path_factory)
    flags = ["--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6, "--rewind_steps", 1]
    words = list(map(str, command(data, tmp_path / "out", *flags, *limit)))
    path = listed(tmp_path / "a.list", line("LT_glue.py", *words))
    (job,) = estimate.joblist.read(path)
    config = estimate.cli.parse(importlib.import_module("LT_glue").Config, None, job.words)
    found = {"rows": 40, "load": 1.0, "step": 2.0, "evaluation": 5.0}
    found |= {"parameters": 1000, "weights": 100}
    cost = estimate.training_cost(config, found)
    assert cost["steps"] == 10 and cost["seconds"] == 1 + 10 * 2 + 3 * 5
    assert cost["bytes"] == 4 * 1000 * models + 2 * 100  # rounds or the limit, and theta_i


def test_another_command_is_refused_with_its_line(tmp_path):
    path = listed(tmp_path / "a.list", "python make_tea.py --output_dir cup")
    with pytest.raises(UserError, match=r"a\.list, line 1: make_tea\.py is none of the seven"):
        plan.main([str(path), "--estimate"])


def test_wrong_flags_and_data_are_refused(tmp_path):
    flags = ["--output_dir", tmp_path / "out", "--task_name", "RTE", "--do_train"]
    path = listed(tmp_path / "a.list", line("LT_glue.py", *flags, "--seed", -1))
    with pytest.raises(UserError, match="line 1: --seed -1"):
        plan.main([str(path), "--estimate"])
    tiny.bert(tmp_path / "bert")
    flags += ["--data_dir", tmp_path / "none", "--model_name_or_path", tmp_path / "bert"]
    path = listed(tmp_path / "a.list", line("LT_glue.py", *flags, "--max_seq_length", 32))
    with pytest.raises(UserError, match="none"):
        plan.main([str(path), "--estimate"])
    assert not (tmp_path / "out").exists()
