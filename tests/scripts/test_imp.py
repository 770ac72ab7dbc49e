"""LT_glue.py with its defaults: what each round of Algorithm 1 trains, prunes and writes."""

import json

import glue_runs
import numpy as np
import pytest
import torch
from glue_runs import (
    MODEL_FILES,
    PEAK,
    ROW,
    command,
    digests,
    dropped,
    mask_at,
    same,
    tickets,
    total,
    zeros,
)
from launch import done, fresh, results
from safetensors.torch import load_file
from scipy.stats import pearsonr
from transformers import BertForSequenceClassification, BertTokenizer

from utils.config import GlueConfig, ModelConfig, OutputConfig, TrainingConfig
from utils.data import glue
from utils.imp import SPARSITIES, ImpSchedule
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.tasks.glue import GlueTask
from utils.training.order import DataOrder, seed_round
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


@pytest.fixture(scope="module")
def ten_rounds(tmp_path_factory):
    return glue_runs.find_nine_tickets(tmp_path_factory)


def test_ten_rounds_leave_nine_masks_from_10_to_90_percent(ten_rounds):
    folder, _ = ten_rounds
    expected = [f"checkpoint-{4 * k}" for k in range(1, 11)]
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == sorted(expected)
    for k in range(1, 10):
        mask = mask_at(folder, 4 * k)
        assert len(mask) == 13 and all(m.dtype == torch.bool for m in mask.values())
        assert dropped(mask) == round(k / 10 * total(mask))
        origin = json.loads((folder / f"checkpoint-{4 * k}" / "mask.pt.json").read_text())
        assert origin == {
            "method": "imp",
            "task": "sts-b",
            "sparsity": round(masks.sparsity(mask), 9),
            "seed": 42,
            "rewind": "theta_i",
            "rewind_steps": 0,
            "rewind_fraction": 0.0,
            "as_released": False,
            "mask_sha256": masks.digest(mask),
        }
    assert not (folder / "checkpoint-40" / "mask.pt").exists()


def test_each_mask_drops_the_smallest_trained_weights_that_were_alive(ten_rounds):
    folder, _ = ten_rounds
    before = None
    for k in range(1, 10):
        mask = mask_at(folder, 4 * k)
        state = load_file(folder / f"checkpoint-{4 * k}" / "model.safetensors")
        sizes = np.concatenate(
            [state[key.removesuffix("_mask")].abs().numpy().ravel() for key in mask]
        )
        if before is not None:
            sizes[~before] = -1
        keep = np.ones(len(sizes), bool)
        keep[np.argsort(sizes, kind="stable")[: round(k / 10 * len(sizes))]] = False
        found = np.concatenate([m.numpy().ravel() for m in mask.values()])
        assert (found == keep).all()
        before = found


def test_each_subnetwork_is_trained_with_the_mask_before_it(ten_rounds):
    folder, _ = ten_rounds
    for k in range(1, 10):
        mask = mask_at(folder, 4 * k)
        assert zeros(folder / f"checkpoint-{4 * k + 4}", mask) == (dropped(mask), True)


def test_checkpoints_load_in_transformers_and_give_the_recorded_score(ten_rounds, data):
    folder, _ = ten_rounds
    examples = glue.read_examples(glue.find_spec("STS-B"), data / "STS-B" / "dev.tsv")
    for row in results(folder)[::3]:
        checkpoint = folder / f"checkpoint-{row['step']}"
        model, info = BertForSequenceClassification.from_pretrained(
            checkpoint, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        batch = BertTokenizer.from_pretrained(checkpoint)(
            examples.text_a,
            examples.text_b,
            truncation="longest_first",
            max_length=32,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            scores = model.eval()(**batch).logits[:, 0].numpy()
        pearson = row["metrics"]["pearson"]
        assert pearsonr(scores, examples.labels)[0] == pytest.approx(pearson, abs=1e-5)
        assert row["score"] == pytest.approx(100 * pearson)


def test_results_and_index_describe_what_was_scored(ten_rounds):
    folder, _ = ten_rounds
    rows, index = results(folder), tickets(folder)
    assert all(set(row) == ROW for row in rows)
    order = [(row["round"], row["step"], row["final"]) for row in rows]
    assert order == [(k, 4 * k, True) for k in range(1, 11)]
    # of the mask in training, not of the next
    assert [round(row["sparsity"], 3) for row in rows] == [k / 10 for k in range(10)]
    assert [round(ticket["sparsity"], 3) for ticket in index] == [k / 10 for k in range(1, 10)]
    for k, ticket in enumerate(index, 1):
        mask, row = mask_at(folder, 4 * k), rows[k]
        assert ticket == {
            "round": k,
            "mask": f"checkpoint-{4 * k}/mask.pt",
            "mask_sha256": masks.digest(mask),
            "score": row["score"],  # of the round that trained this ticket
            "sparsity": round(masks.sparsity(mask), 9),
        }
        assert row["mask"] == str(folder / ticket["mask"])
        assert row["mask_sha256"] == ticket["mask_sha256"]
        assert row["mask_info"]["sparsity"] == row["sparsity"] == ticket["sparsity"]


def test_the_first_row_is_the_dense_model(ten_rounds):
    folder, _ = ten_rounds
    row = results(folder)[0]
    of_mask = (row["sparsity"], row["mask"], row["mask_sha256"], row["mask_info"])
    assert of_mask == (0.0, None, None, None)
    of_run = (row["task"], row["script"], row["method"], row["init"])
    assert of_run == ("sts-b", "LT_glue.py", "imp", "pre")
    assert (row["seed"], row["device"], row["args"]["max_steps"]) == (42, "cpu", 40)
    assert row["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    last = results(folder)[-1]["metrics"]
    text = "".join(f"{key} = {last[key]}\n" for key in sorted(last))
    assert (folder / "eval_results.txt").read_text() == text
    found = json.loads((folder / "all_results.json").read_text())
    found.pop("train_samples", None)  # an evaluation in this folder may have written the file again
    assert found.pop("epoch", 8) == 8 and found.pop("eval_samples") == 16  # 40 steps, 5 an epoch
    seconds, speed = found.pop("eval_runtime"), found.pop("eval_samples_per_second")
    assert speed == pytest.approx(16 / seconds, rel=0.1)
    assert found == {f"eval_{key}": last[key] for key in last}


def test_stdout_shows_one_line_per_round_and_the_final_table(ten_rounds):
    folder, out = ten_rounds
    lines, rows = out.splitlines(), results(folder)
    for k, line in enumerate(lines[:10]):
        start = f"round {k + 1:2d}/10  sparsity {10 * k:5.1f}%  pearson {rows[k]['score']:6.2f}"
        assert line.startswith(start)
        mask = folder / f"checkpoint-{4 * k + 4}" / "mask.pt"
        assert (f"pruned to {10 * (k + 1)}.0%: {mask}" in line) == (k < 9)
        assert ("left)" in line) == (k < 9)
    assert lines[10].split() == ["round", "step", "sparsity", "pearson", "spearmanr", "corr"]
    table = [line.split()[:3] for line in lines[12:]]
    assert table == [[str(k), str(4 * k), f"{10 * k - 10}.0%"] for k in range(1, 11)]


def test_a_run_writes_these_files_and_no_others(ten_rounds):
    folder, _ = ten_rounds
    names = {p.name for p in folder.iterdir() if not p.name.startswith("checkpoint-")}
    records = {"results.jsonl", "eval_results.txt", "all_results.json", "tickets.json", "events"}
    outcomes = {f"predictions_{step}.npz" for step in range(4, 41, 4)}
    assert names == records | outcomes | {"run.json", ".lock"}
    for k in range(1, 11):
        inside = {p.name for p in (folder / f"checkpoint-{4 * k}").iterdir()}
        assert inside == MODEL_FILES | ({"mask.pt", "mask.pt.json"} if k < 10 else set())
    assert json.loads((folder / "run.json").read_text())["finished"] is True


def test_each_round_starts_from_theta_0_gamma_0_and_the_full_learning_rate(data, tmp_path, steps):
    out = tmp_path / "out"
    flags = ["--max_steps", 9, "--save_steps", 3, "--sparsities", 0.3, 0.6]
    done("LT_glue.py", *command(data, out, *flags))
    rates = [PEAK, PEAK * 2 / 3, PEAK / 3]
    assert [step["rate"] for step in steps] == pytest.approx(rates * 3, rel=1e-12)
    starts = steps[::3]
    assert all(same(start["weights"], starts[0]["weights"]) for start in starts)
    # a new optimizer in each round
    assert all(step["fresh"] == (at % 3 == 0) for at, step in enumerate(steps))
    assert not same(steps[2]["weights"], starts[0]["weights"], "classifier")
    found = [round(masks.sparsity(start["mask"]), 3) for start in starts]
    assert found == [0.0, 0.3, 0.6] == [round(row["sparsity"], 3) for row in results(out)]
    assert all(len(step["rows"]) == 8 for step in steps)
    assert len({tuple(step["rows"]) for step in steps}) == 9  # each round has its own data order
    pre_trained = load_file(data / "bert" / "model.safetensors")
    for name, value in starts[0]["weights"].items():
        if name.startswith("bert."):
            assert torch.equal(value, pre_trained[name])


# ---- determinism


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_masks(data, tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        flags = ["--max_steps", 6, "--save_steps", 3, "--seed", seed]
        done("LT_glue.py", *command(data, tmp_path / name, *flags))
    assert digests(tmp_path / "one") == digests(tmp_path / "two") != digests(tmp_path / "three")
    for file in ("checkpoint-6/model.safetensors", "checkpoint-3/mask.pt", "tickets.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_any_round_can_be_repeated_alone(data, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    number, source = 6, str(data / "bert")
    training = TrainingConfig(do_train=True, learning_rate=PEAK, per_gpu_train_batch_size=8)
    task = GlueTask.load(
        GlueConfig("STS-B", str(data / "STS-B"), 32, True),
        ModelConfig(model_name_or_path=source),
        training,
        OutputConfig(output_dir=str(tmp_path / "out")),
    )
    model = load_model(task.model_class, source, task.bert_config, 42)
    masks.attach(model, mask_at(folder, 4 * number))
    trainer = Trainer(model, task, training, Runtime(torch.device("cpu")))
    seed_round(42, number, 0)
    plan = ImpSchedule(training, DataOrder(40, 8, 1, 42), SPARSITIES, 4, 40).plan(number)
    model.train()
    for step in range(4):
        trainer.step(plan.batches(step), plan.learning_rate(step), (42, number, step))
    state = load_file(folder / f"checkpoint-{4 * number + 4}" / "model.safetensors")
    assert same(masks.dense_state(model), state)


# ---- nothing elsewhere


def test_a_run_prints_only_its_bar_on_stderr_and_writes_nothing_elsewhere(data, tmp_path):
    """A fresh process with its own home, temporary folder and working folder."""
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    environment = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(tmp_path / "home" / "hf"),
    }
    flags = ["--max_steps", 2, "--save_steps", 1, "--cache_dir", tmp_path / "cache"]
    before = sorted(data.rglob("*"))
    ended = fresh(
        "LT_glue.py",
        *command(data, tmp_path / "out", *flags),
        cwd=tmp_path / "work",
        environment=environment,
    )
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert len(ended.out.splitlines()) == 2 + 4
    elsewhere = ("work", "temporary", "home", "cache")
    assert [p for name in elsewhere for p in (tmp_path / name).rglob("*") if p.is_file()] == []
    assert sorted(data.rglob("*")) == before
