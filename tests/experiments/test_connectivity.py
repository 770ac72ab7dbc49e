"""The line between two trainings of one ticket: its ends are the runs, its barrier is defined."""

import json

import numpy as np
import pytest
import tiny
import torch
from glue_runs import command
from launch import done, results, run
from safetensors.torch import load_file

from experiments import collect, connectivity, figures, tables
from utils.config import TrainingConfig
from utils.errors import UserError
from utils.modeling import bert
from utils.runs.run import start_runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, a mask, and trainings of MRPC with two data orders: one, other."""
    folder = tmp_path_factory.mktemp("connectivity")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.glue(folder / "MRPC", "MRPC", train=40, dev=16)
    flags = ["--model_name_or_path", folder / "bert", "--output_dir", folder / "mask"]
    done("oneshot.py", "--weight", "pre", "--model", "glue", "--rate", 0.5, *flags)
    for name, order in (("one", 1), ("other", 2)):
        train(folder, name, "--data_seed", order)
    return folder


def train(folder, name, *more, masked=True):
    mask = ["--mask_dir", folder / "mask" / "mask.pt"] if masked else []
    flags = ["--dir", "pre", *mask, "--max_steps", 6, *more]
    done("glue_trans.py", *command(folder, folder / name, *flags, task="MRPC"))


def line(folder, *names, points=3):
    output = folder / f"line-{'-'.join(names)}" / "connectivity.jsonl"
    words = [*(folder / name for name in names), "--output", output, "--points", points]
    connectivity.main(list(map(str, words)))
    return [json.loads(row) for row in output.read_text().splitlines()]


def test_the_ends_of_the_line_are_the_trainings(folder, capsys):
    rows = line(folder, "one", "other", points=5)
    assert [row["metrics"]["alpha"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    for row, name in ((rows[0], "one"), (rows[-1], "other")):
        (trained,) = results(folder / name)
        assert row["score"] == trained["score"] and row["mask_sha256"] == trained["mask_sha256"]
    assert {(row["method"], row["sparsity"], row["final"]) for row in rows} == {
        ("connectivity", 0.5, True)
    }
    losses, shown = np.array([row["metrics"]["loss"] for row in rows]), capsys.readouterr()
    assert len({f"{loss:.6f}" for loss in losses}) > 2 and all(0 < loss < 10 for loss in losses)
    above = losses - np.linspace(losses[0], losses[-1], 5)
    assert f"barrier {above.max():.4f} in loss" in shown.out
    assert "0/5" in shown.err and "point" in shown.err
    assert (folder / "line-one-other" / "connectivity.png").exists() == figures.INSTALLED


def test_the_output_replaces_its_own_line_only(folder, tmp_path):
    line(folder, "one", "other")
    line(folder, "one", "other")  # the same line
    user = tmp_path / "user.jsonl"
    user.write_text("mine")
    theirs = folder / "line-one-other" / "connectivity.jsonl"
    cases = [(user, "exists"), (theirs, "not the line of these runs")]
    for output, words in (*cases, (tmp_path, "jsonl"), (tmp_path / "x.png", "jsonl")):
        runs = [str(folder / name) for name in ("other", "one")]
        with pytest.raises(UserError, match=words):
            connectivity.main([*runs, "--output", str(output), "--points", "3"])
    assert user.read_text() == "mine" and not (tmp_path / "x.png").exists()


def test_the_lines_of_a_folder_have_a_table_and_a_figure(folder, tmp_path, capsys):
    rows = line(folder, "one", "other")
    collect.main([str(folder), str(tmp_path / "study")])
    capsys.readouterr()
    tables.main([str(tmp_path / "study"), "--only", "connectivity"])
    printed, losses = capsys.readouterr().out, [row["metrics"]["loss"] for row in rows]
    (found,) = (row for row in printed.splitlines() if row.startswith("| MRPC, one-shot, 50 % |"))
    assert found.split(" | ")[1] == f"{max(0, losses[1] - (losses[0] + losses[2]) / 2):.3f} (1)"
    if figures.INSTALLED:
        figures.main([str(tmp_path / "study"), "--only", "connectivity"])
        assert (tmp_path / "study" / "figures" / "connectivity.png").stat().st_size > 10_000


def test_the_loss_is_the_mean_over_the_development_set(folder):
    record = connectivity.load_record(folder / "one")
    runtime = start_runtime(TrainingConfig(do_eval=True, no_cuda=True))
    task = connectivity.load_task(record, folder / "one", runtime)
    model = bert.load_model(task.model_class, str(folder / "one"), task.bert_config, 0)
    (dev,) = task.dev.values()
    logits = torch.from_numpy(task.predict(model, dev.rows, runtime))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(dev.labels)).item()
    assert connectivity.dev_loss(task, model, runtime, {}) == pytest.approx(expected, rel=1e-5)


def test_the_order_of_rows_follows_data_seed_and_the_head_follows_seed(folder):
    train(folder, "default")
    train(folder, "same", "--data_seed", 42)  # the default of --seed
    (default,), (same,), (one,) = (results(folder / n) for n in ("default", "same", "one"))
    assert default["metrics"] == same["metrics"] and default["args"]["data_seed"] is None
    a, b, c = (load_file(folder / n / "model.safetensors") for n in ("default", "same", "one"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    assert one["args"]["data_seed"] == 1


def test_pairs_that_are_no_two_orders_of_one_training_are_refused(folder, tmp_path):
    train(folder, "longer", "--data_seed", 2, "--max_steps", 7)
    train(folder, "gone", "--data_seed", 2, "--save_total_limit", 0)
    train(folder, "dense", "--data_seed", 2, masked=False)
    for pair, words in (
        (("one", "one"), "nothing"),
        (("one", "longer"), "--max_steps"),
        (("one", "gone"), "--save_total_limit"),
        (("one", "dense"), "mask"),
        (("one", "missing"), "no finished training"),
    ):
        with pytest.raises(UserError, match=words):
            line(folder, *pair)
    ended = run(
        "glue_trans.py", *command(folder, tmp_path / "x", "--dir", "pre", "--data_seed", -1)
    )
    assert ended.code == 2 and "--data_seed -1" in ended.err


@pytest.mark.parametrize("script", ["squad_trans.py", "pretrain_trans.py"])
def test_squad_and_mlm_have_lines_too(folder, script):
    tiny.squad(folder / "SQuAD")
    tiny.text(folder / "text")
    data = {
        "squad_trans.py": [
            *("--train_file", folder / "SQuAD" / "train-v1.1.json"),
            *("--predict_file", folder / "SQuAD" / "dev-v1.1.json"),
            *("--do_lower_case", "--max_seq_length", 48, "--doc_stride", 16),
            *("--max_train_samples", 3),
        ],
        "pretrain_trans.py": [
            *("--mlm", "--train_data_file", folder / "text" / "en.train"),
            *("--eval_data_file", folder / "text" / "en.valid", "--block_size", 32),
        ],
    }[script]
    for order in (1, 2):
        words = ["--output_dir", folder / f"{script}{order}", "--data_seed", order, "--no_cuda"]
        words += ["--model_name_or_path", folder / "bert", "--max_steps", 4, "--dir", "pre"]
        done(script, *words, *data, "--do_train", "--do_eval", "--per_gpu_train_batch_size", 4)
    if script == "squad_trans.py":  # the loss is over the development set, whatever was trained on
        run_a, runtime = (
            folder / f"{script}1",
            start_runtime(TrainingConfig(do_eval=True, no_cuda=True)),
        )
        task = connectivity.load_task(connectivity.load_record(run_a), run_a, runtime)
        assert task.train_rows == task.dev_rows > 3
    rows = line(folder, f"{script}1", f"{script}2")
    for row, order in ((rows[0], 1), (rows[-1], 2)):
        (trained,) = results(folder / f"{script}{order}")
        assert row["score"] == trained["score"]
        assert row["metrics"]["loss"] > 0
