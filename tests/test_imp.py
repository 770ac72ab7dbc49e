"""IMP and fine-tuning through the scripts, on a tiny BERT: what each round starts from, trains, prunes and leaves behind."""

import json
import os
import shutil
import signal

import launch
import numpy as np
import pytest
import tiny
import torch
from launch import done, results
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from transformers import BertForSequenceClassification, BertTokenizer

from utils import glue_data, imp, masks, models, seeds
from utils.glue import GlueTask
from utils.training import Recipe, Trainer

PEAK = 1e-3
MODEL_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}
ROW = {
    "task",
    "script",
    "method",
    "init",
    "init_info",
    "seed",
    "args",
    "versions",
    "device",
    "sparsity",
    "mask",
    "mask_sha256",
    "mask_info",
    "step",
    "round",
    "final",
    "metrics",
    "score",
    "wall_seconds",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the tiny BERT, two tasks, and nothing else."""
    folder = tmp_path_factory.mktemp("imp")
    tiny.bert(folder / "bert")
    for task in ("STS-B", "MRPC"):
        tiny.glue(folder / task, task, train=40, dev=16)
    return folder


def command(place, out, *more, task="STS-B"):
    """Flags of a run: five batches of eight rows an epoch."""
    return [
        "--output_dir",
        out,
        "--model_name_or_path",
        place / "bert",
        "--task_name",
        task,
        "--data_dir",
        place / task,
        "--do_train",
        "--do_eval",
        "--do_lower_case",
        "--max_seq_length",
        32,
        "--per_gpu_train_batch_size",
        8,
        "--learning_rate",
        PEAK,
        "--no_cuda",
        *more,
    ]


def tickets(folder):
    return json.loads((folder / "tickets.json").read_text())["tickets"]


def mask_at(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / "mask.pt", weights_only=True)


def digests(folder):
    return [entry["mask_sha256"] for entry in tickets(folder)]


def dropped(mask):
    return sum(int((~m).sum()) for m in mask.values())


def total(mask):
    return sum(m.numel() for m in mask.values())


def zeros(folder, mask):
    """How many prunable weights of the saved model are 0, and whether they are those that `mask` drops."""
    state = load_file(folder / "model.safetensors")
    weights = {key: state[key.removesuffix("_mask")] for key in mask}
    return sum(int((w == 0).sum()) for w in weights.values()), all(
        (weights[key][~mask[key]] == 0).all() for key in mask
    )


def same(one, other, prefix=""):
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(prefix))


# ---- Algorithm 1 with its defaults


@pytest.fixture(scope="module")
def ten_rounds(place):
    """LT_glue.py for 40 steps, everything else left out: its folder and its stdout."""
    return place / "ten", done("LT_glue.py", *command(place, place / "ten", "--max_steps", 40))


def test_ten_rounds_leave_nine_masks_from_10_to_90_percent(ten_rounds):
    folder, _ = ten_rounds
    expected = [f"checkpoint-{4 * k}" for k in range(1, 11)]
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == sorted(expected)
    for k in range(1, 10):
        mask = mask_at(folder, 4 * k)
        assert len(mask) == 13 and all(m.dtype == torch.bool for m in mask.values())
        assert dropped(mask) == round(k / 10 * total(mask))
        info = json.loads((folder / f"checkpoint-{4 * k}" / "mask.pt.json").read_text())
        assert info == {
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


def test_each_mask_drops_the_smallest_of_the_trained_weights_that_were_alive(ten_rounds):
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


def test_each_subnetwork_is_the_one_trained_with_the_mask_before(ten_rounds):
    folder, _ = ten_rounds
    for k in range(1, 10):
        mask = mask_at(folder, 4 * k)
        count, all_there = zeros(folder / f"checkpoint-{4 * k + 4}", mask)
        assert all_there and count == dropped(mask)


def test_checkpoints_load_with_plain_transformers_and_give_the_recorded_score(ten_rounds, place):
    folder, _ = ten_rounds
    spec = glue_data.find_spec("STS-B")
    examples = glue_data.read_examples(spec, place / "STS-B" / "dev.tsv")
    for row in results(folder)[::3]:
        checkpoint = folder / f"checkpoint-{row['step']}"
        model, info = BertForSequenceClassification.from_pretrained(
            checkpoint, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        tokenizer = BertTokenizer.from_pretrained(checkpoint)
        batch = tokenizer(
            examples.text_a,
            examples.text_b,
            truncation="longest_first",
            max_length=32,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            scores = model.eval()(**batch).logits[:, 0].numpy()
        assert pearsonr(scores, examples.labels)[0] == pytest.approx(
            row["metrics"]["pearson"], abs=1e-5
        )
        assert row["score"] == pytest.approx(100 * row["metrics"]["pearson"])


def test_results_and_index_say_what_was_scored(ten_rounds):
    folder, _ = ten_rounds
    rows, entries = results(folder), tickets(folder)
    assert all(set(row) == ROW for row in rows)
    assert [(row["round"], row["step"], row["final"]) for row in rows] == [
        (k, 4 * k, True) for k in range(1, 11)
    ]
    assert [round(row["sparsity"], 3) for row in rows] == [
        k / 10 for k in range(10)
    ]  # not its next mask's
    assert [round(entry["sparsity"], 3) for entry in entries] == [k / 10 for k in range(1, 10)]
    for k, entry in enumerate(entries, 1):
        mask = mask_at(folder, 4 * k)
        assert entry == {
            "round": k,
            "mask": f"checkpoint-{4 * k}/mask.pt",
            "mask_sha256": masks.digest(mask),
            "score": rows[k]["score"],
            "sparsity": round(masks.sparsity(mask), 9),
        }  # the ticket's own
        assert (
            rows[k]["mask"] == str(folder / entry["mask"])
            and rows[k]["mask_sha256"] == entry["mask_sha256"]
        )
        assert rows[k]["mask_info"]["sparsity"] == rows[k]["sparsity"] == entry["sparsity"]
    row = rows[0]
    assert (row["sparsity"], row["mask"], row["mask_sha256"], row["mask_info"]) == (
        0.0,
        None,
        None,
        None,
    )
    assert (row["task"], row["script"], row["method"], row["init"]) == (
        "sts-b",
        "LT_glue.py",
        "imp",
        "pre",
    )
    assert (row["seed"], row["device"], row["args"]["max_steps"]) == (42, "cpu", 40)
    assert (
        row["versions"]["torch"] == torch.__version__.split("+")[0]
        or row["versions"]["torch"] == torch.__version__
    )
    last = rows[-1]["metrics"]
    assert (folder / "eval_results.txt").read_text() == "".join(
        f"{key} = {last[key]}\n" for key in sorted(last)
    )


def test_the_screen_shows_a_line_a_round_and_the_final_table(ten_rounds):
    folder, out = ten_rounds
    lines = out.splitlines()
    rounds, rows = lines[:10], results(folder)
    for k, line in enumerate(rounds):
        assert line.startswith(
            f"round {k + 1:2d}/10  sparsity {10 * k:5.1f}%  pearson {rows[k]['score']:6.2f}"
        )
        assert (
            f"pruned to {10 * (k + 1)}.0%: {folder / f'checkpoint-{4 * k + 4}' / 'mask.pt'}" in line
        ) == (k < 9)
        assert ("left)" in line) == (k < 9)
    assert (
        lines[10].split() == ["round", "step", "sparsity", "pearson", "spearmanr", "corr"]
        and len(lines) == 22
    )
    assert [line.split()[:3] for line in lines[12:]] == [
        [str(k), str(4 * k), f"{10 * k - 10}.0%"] for k in range(1, 11)
    ]


def test_a_run_leaves_the_files_it_says_and_no_others(ten_rounds):
    folder, _ = ten_rounds
    names = {p.name for p in folder.iterdir() if not p.name.startswith("checkpoint-")}
    assert names == {
        "results.jsonl",
        "eval_results.txt",
        "tickets.json",
        "events",
        "run.json",
        ".lock",
    }
    for k in range(1, 11):
        inside = {p.name for p in (folder / f"checkpoint-{4 * k}").iterdir()}
        assert inside == MODEL_FILES | ({"mask.pt", "mask.pt.json"} if k < 10 else set())
    assert json.loads((folder / "run.json").read_text())["finished"] is True


def test_every_round_starts_from_theta_0_gamma_0_and_the_whole_schedule(place, tmp_path, steps):
    done(
        "LT_glue.py",
        *command(
            place, tmp_path / "out", "--max_steps", 9, "--save_steps", 3, "--sparsities", 0.3, 0.6
        ),
    )
    assert [step["rate"] for step in steps] == pytest.approx(
        [PEAK, PEAK * 2 / 3, PEAK / 3] * 3, rel=1e-12
    )
    starts = steps[::3]
    assert all(same(start["weights"], starts[0]["weights"]) for start in starts)
    assert all(
        step["fresh"] == (at % 3 == 0) for at, step in enumerate(steps)
    )  # a new optimizer every round
    assert not same(steps[2]["weights"], starts[0]["weights"], "classifier")
    found = [round(masks.sparsity(start["mask"]), 3) for start in starts]
    assert (
        found == [0.0, 0.3, 0.6] == [round(row["sparsity"], 3) for row in results(tmp_path / "out")]
    )
    assert all(len(step["rows"]) == 8 for step in steps)
    assert len({tuple(step["rows"]) for step in steps}) == 9  # every round has an order of its own
    pre_trained = load_file(place / "bert" / "model.safetensors")
    for name, value in starts[0]["weights"].items():
        if name.startswith("bert."):
            assert torch.equal(value, pre_trained[name.replace("weight_orig", "weight")])


# ---- other schedules


def test_sparsities_replace_the_schedule(place, tmp_path):
    out = done(
        "LT_glue.py",
        *command(place, tmp_path / "out", "--max_steps", 40, "--sparsities", 0.25, 0.9),
    )
    assert [round(entry["sparsity"], 3) for entry in tickets(tmp_path / "out")] == [0.25, 0.9]
    assert [row["step"] for row in results(tmp_path / "out")] == [4, 8, 12]
    assert out.count("round  ") == 4


def test_rewinding_to_step_i_goes_on_from_theta_i_and_its_place_in_the_schedule(
    place, tmp_path, steps
):
    done(
        "LT_glue.py",
        *command(
            place,
            tmp_path / "out",
            "--max_steps",
            12,
            "--save_steps",
            4,
            "--sparsities",
            0.3,
            0.6,
            "--rewind_steps",
            1,
        ),
    )
    rates = [PEAK, PEAK * 3 / 4, PEAK / 2, PEAK / 4]
    assert [step["rate"] for step in steps] == pytest.approx(
        rates + rates[1:] + rates[1:], rel=1e-12
    )
    theta_i = steps[1]["weights"]
    assert same(steps[4]["weights"], theta_i) and same(steps[7]["weights"], theta_i)
    assert not same(steps[0]["weights"], theta_i, "bert") and not same(
        steps[0]["weights"], theta_i, "classifier"
    )
    assert [at for at, step in enumerate(steps) if step["fresh"]] == [0, 1, 4, 7]
    assert [row["step"] for row in results(tmp_path / "out")] == [4, 8, 12]
    kept = torch.load(tmp_path / "out" / "rewind_weights.pt", weights_only=True)
    assert all(
        torch.equal(kept[name.replace("weight_orig", "weight")], value)
        for name, value in theta_i.items()
    )
    info = json.loads((tmp_path / "out" / "checkpoint-4" / "mask.pt.json").read_text())
    assert (info["rewind_steps"], info["rewind_fraction"]) == (1, 0.25)


def test_the_weights_a_run_rewound_to_can_be_trained_by_the_other_script(place, tmp_path, steps):
    done(
        "LT_glue.py",
        *command(place, tmp_path / "imp", "--max_steps", 4, "--save_steps", 2, "--rewind_steps", 1),
    )
    theta_i = steps[1]["weights"]
    steps.clear()
    mask, weights = (
        tmp_path / "imp" / "checkpoint-2" / "mask.pt",
        tmp_path / "imp" / "rewind_weights.pt",
    )
    done(
        "glue_trans.py",
        *command(
            place,
            tmp_path / "out",
            "--max_steps",
            1,
            "--dir",
            "pre",
            "--mask_dir",
            mask,
            "--weight_pertub",
            weights,
        ),
    )
    assert same({k: v for k, v in steps[0]["weights"].items() if k.startswith("bert.")}, theta_i)
    row = results(tmp_path / "out")[0]
    assert row["init"] == "rewound" and row["init_info"]["rewind_steps"] == 1


def test_without_rewinding_each_round_goes_on_from_the_last(place, tmp_path, steps):
    done(
        "LT_glue.py",
        *command(
            place,
            tmp_path / "out",
            "--max_steps",
            6,
            "--save_steps",
            2,
            "--sparsities",
            0.3,
            0.6,
            "--no_rewind",
        ),
    )
    assert [step["rate"] for step in steps] == pytest.approx([PEAK, PEAK / 2] * 3, rel=1e-12)
    state = load_file(
        tmp_path / "out" / "checkpoint-2" / "model.safetensors"
    )  # dense: the mask was all ones
    for name, value in steps[2]["weights"].items():
        assert torch.equal(value, state[name.replace("weight_orig", "weight")])
    assert not same(steps[2]["weights"], steps[0]["weights"], "bert.encoder")


def test_as_released_keeps_the_head_runs_on_and_prunes_to_nothing(place, tmp_path, steps):
    flags = command(place, tmp_path / "out", "--max_steps", 20, "--save_steps", 2, "--as_released")
    done("LT_glue.py", *flags)
    assert [round(entry["sparsity"], 3) for entry in tickets(tmp_path / "out")] == [
        k / 10 for k in range(1, 11)
    ]
    assert [step["rate"] for step in steps] == pytest.approx(
        [PEAK, PEAK * 19 / 20] * 10, rel=1e-12
    )  # over the whole run
    starts = steps[::2]
    assert all(same(start["weights"], starts[0]["weights"], "bert.") for start in starts)
    heads = [start["weights"]["classifier.weight"] for start in starts]
    assert not any(torch.equal(a, b) for a, b in zip(heads, heads[1:], strict=False))
    epoch = [
        row for step in steps[:5] for row in step["rows"]
    ]  # the third round takes up the epoch of the first
    assert sorted(epoch) == list(range(40))


def test_evaluation_within_rounds_is_logged_and_changes_nothing(place, tmp_path):
    flags = ["--max_steps", 6, "--save_steps", 3, "--sparsities", 0.5]
    done("LT_glue.py", *command(place, tmp_path / "plain", *flags))
    done(
        "LT_glue.py",
        *command(
            place, tmp_path / "out", *flags, "--evaluate_during_training", "--logging_steps", 2
        ),
    )
    found = [
        (row["step"], row["round"], row["final"], row["sparsity"])
        for row in results(tmp_path / "out")
    ]
    assert found == [(2, 1, False, 0.0), (3, 1, True, 0.0), (4, 2, False, 0.5), (6, 2, True, 0.5)]
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")
    events = b"".join(p.read_bytes() for p in (tmp_path / "out" / "events").iterdir())
    assert all(tag in events for tag in (b"loss", b"lr", b"eval_pearson"))


def test_without_do_eval_rounds_have_no_scores(place, tmp_path):
    flags = [
        f
        for f in command(place, tmp_path / "out", "--max_steps", 4, "--save_steps", 2)
        if f != "--do_eval"
    ]
    done("LT_glue.py", *flags)
    assert [entry["score"] for entry in tickets(tmp_path / "out")] == [None, None]
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_old_subnetworks_go_and_masks_stay_with_a_limit(place, tmp_path):
    flags = ["--max_steps", 8, "--save_steps", 2, "--save_total_limit", 1]
    done("LT_glue.py", *command(place, tmp_path / "out", *flags))
    assert [
        p.parent.name for p in sorted((tmp_path / "out").glob("checkpoint-*/model.safetensors"))
    ] == ["checkpoint-8"]
    assert len(list((tmp_path / "out").glob("checkpoint-*/mask.pt"))) == 4
    out = done(
        "LT_glue.py",
        *[f for f in command(place, tmp_path / "out", *flags) if f != "--do_train"],
        "--eval_all_checkpoints",
    )
    assert [line.split()[1] for line in out.splitlines()[2:]] == [
        "8"
    ]  # what has no model any more cannot be evaluated


# ---- determinism


def test_the_same_seed_gives_the_same_bytes_and_another_other_masks(place, tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        done(
            "LT_glue.py",
            *command(place, tmp_path / name, "--max_steps", 6, "--save_steps", 3, "--seed", seed),
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "two") != digests(tmp_path / "three")
    for file in ("checkpoint-6/model.safetensors", "checkpoint-3/mask.pt", "tickets.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_any_round_can_be_repeated_alone(place, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    number, source = 6, str(place / "bert")
    task = GlueTask(glue_data.find_spec("STS-B"))
    task.read(
        place / "STS-B",
        models.load_tokenizer(source, True),
        32,
        train=True,
        dev=False,
        cache_dir=tmp_path,
    )
    model = models.load_model(
        task.model_class, source, models.load_config(source, num_labels=1), 42
    )
    masks.attach(model, mask_at(folder, 4 * number))
    recipe = Recipe(PEAK, 8)
    trainer = Trainer(model, task, recipe, torch.device("cpu"))
    seeds.seed_round(42, number)
    plan = imp.Policy(imp.SPARSITIES, 4, 40).plan(number, recipe, seeds.Order(40, 8, 1, 42))
    model.train()
    for step in range(4):
        trainer.step(plan.batches(step), plan.rate(step), (42, number, step))
    state = load_file(folder / f"checkpoint-{4 * number + 4}" / "model.safetensors")
    assert same(masks.dense_state(model), state)


# ---- training a ticket


def test_an_imp_mask_on_pre_trained_weights(place, ten_rounds, tmp_path, steps):
    path = ten_rounds[0] / "checkpoint-20" / "mask.pt"
    mask = torch.load(path, weights_only=True)
    out = done(
        "glue_trans.py",
        *command(place, tmp_path / "out", "--dir", "pre", "--mask_dir", path, "--max_steps", 3),
    )
    pre_trained = load_file(place / "bert" / "model.safetensors")
    assert all(
        torch.equal(v, pre_trained[k.replace("weight_orig", "weight")])
        for k, v in steps[0]["weights"].items()
        if k.startswith("bert.")
    )
    assert all(torch.equal(steps[0]["mask"][key], mask[key]) for key in mask)
    assert [step["rate"] for step in steps] == pytest.approx([PEAK, PEAK * 2 / 3, PEAK / 3])
    (row,) = results(tmp_path / "out")
    assert set(row) == ROW and (row["method"], row["init"], row["step"], row["round"]) == (
        "train",
        "pre",
        3,
        None,
    )
    assert (row["sparsity"], row["mask"], row["mask_sha256"]) == (
        0.5,
        str(path),
        masks.digest(mask),
    )
    assert row["mask_info"] == json.loads((path.parent / "mask.pt.json").read_text())
    assert zeros(tmp_path / "out", mask) == (dropped(mask), True)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == MODEL_FILES | {
        "results.jsonl",
        "eval_results.txt",
        "events",
        "run.json",
        ".lock",
    }
    assert out.splitlines()[2].split()[:3] == ["-", "3", "50.0%"]


def test_the_dense_baseline_and_saved_steps(place, tmp_path):
    done(
        "glue_trans.py",
        *command(
            place,
            tmp_path / "out",
            "--dir",
            "pre",
            "--max_steps",
            5,
            "--save_steps",
            2,
            "--eval_all_checkpoints",
            "--evaluate_during_training",
            "--logging_steps",
            5,
        ),
    )
    rows = results(tmp_path / "out")
    assert [(row["step"], row["final"], row["sparsity"], row["mask"]) for row in rows] == [
        (2, False, 0.0, None),
        (4, False, 0.0, None),
        (5, True, 0.0, None),
    ]
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(
        plain.classifier.weight,
        load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"],
    )


@pytest.mark.parametrize(("flags", "expected"), [((), 5), (("--as_released",), 6)])
def test_max_steps_is_exact_and_one_more_as_released(place, tmp_path, steps, flags, expected):
    done(
        "glue_trans.py", *command(place, tmp_path / "out", "--dir", "pre", "--max_steps", 5, *flags)
    )
    assert len(steps) == expected and results(tmp_path / "out")[-1]["step"] == expected
    assert [step["rate"] for step in steps[:5]] == pytest.approx(
        [PEAK * (5 - at) / 5 for at in range(5)]
    )


def test_epochs_count_the_last_short_batch(place, tmp_path, steps):
    flags = command(
        place,
        tmp_path / "out",
        "--dir",
        "pre",
        "--num_train_epochs",
        2,
        "--gradient_accumulation_steps",
        1,
    )
    flags[flags.index("--per_gpu_train_batch_size") + 1] = 16
    done("glue_trans.py", *flags)
    assert [len(step["rows"]) for step in steps] == [16, 16, 8] * 2
    assert sorted(row for step in steps[:3] for row in step["rows"]) == list(range(40))


def test_fresh_weights_depend_on_the_seed_and_not_on_the_model(place, tmp_path, steps):
    other = tiny.bert(tmp_path / "other", seed=5)
    flags = ["--dir", "rand", "--max_steps", 1]
    done("glue_trans.py", *command(place, tmp_path / "one", *flags))
    done("glue_trans.py", *command(place, tmp_path / "two", *flags, "--model_name_or_path", other))
    done("glue_trans.py", *command(place, tmp_path / "three", *flags, "--seed", 1))
    done("glue_trans.py", *command(place, tmp_path / "pre", "--dir", "pre", "--max_steps", 1))
    one, two, three, pre = (step["weights"] for step in steps)
    assert (
        same(one, two)
        and not same(one, three, "bert.encoder")
        and not same(one, pre, "bert.encoder")
    )
    assert same(one, pre, "classifier")  # gamma_0 is the seed's, whatever the encoder
    assert [results(tmp_path / name)[0]["init"] for name in ("one", "pre")] == ["rand", "pre"]


def test_perturbed_weights_replace_the_encoder(place, tmp_path, steps):
    done(
        "pertub_weight.py",
        "--mode",
        "elements",
        "--model_name_or_path",
        place / "bert",
        "--output",
        tmp_path / "w.pt",
    )
    done(
        "glue_trans.py",
        *command(
            place,
            tmp_path / "out",
            "--dir",
            "pre",
            "--weight_pertub",
            tmp_path / "w.pt",
            "--max_steps",
            1,
        ),
    )
    weights = torch.load(tmp_path / "w.pt", weights_only=True)
    pre_trained = load_file(place / "bert" / "model.safetensors")
    for name, value in steps[0]["weights"].items():
        if name.startswith("bert."):
            assert torch.equal(value, weights.get(name, pre_trained[name])), name
    assert not torch.equal(
        weights["bert.pooler.dense.weight"], pre_trained["bert.pooler.dense.weight"]
    )
    row = results(tmp_path / "out")[0]
    assert row["init"] == "elements" and row["init_info"]["mode"] == "elements"
    done(
        "glue_trans.py",
        *command(
            place,
            tmp_path / "mix",
            "--dir",
            "rand",
            "--weight_pertub",
            tmp_path / "w.pt",
            "--max_steps",
            1,
        ),
    )
    assert (
        results(tmp_path / "mix")[0]["init"] == "rand+elements"
    )  # embeddings drawn anew: not theta_0''


def test_what_lies_beside_a_mask_of_another_is_not_believed(place, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    done(
        "oneshot.py",
        "--weight",
        "pre",
        "--model",
        "glue",
        "--rate",
        0.5,
        "--model_name_or_path",
        place / "bert",
        "--output_dir",
        tmp_path,
    )
    shutil.copy(folder / "checkpoint-20" / "mask.pt.json", tmp_path)
    flags = [
        f
        for f in command(
            place, tmp_path / "out", "--dir", "pre", "--mask_dir", tmp_path / "mask.pt"
        )
        if f != "--do_train"
    ]
    ended = launch.run("glue_trans.py", *flags)
    (told,) = ended.errors()
    assert ended.code == 0 and told.startswith(f"warning: {tmp_path / 'mask.pt'}: ")
    row = results(tmp_path / "out")[0]
    assert row["mask_info"] is None and row["mask_sha256"] == masks.digest(
        torch.load(tmp_path / "mask.pt", weights_only=True)
    )


@pytest.mark.parametrize("weight", ["pre", "rand"])
def test_one_shot_masks_the_very_weights_that_training_starts_from(place, tmp_path, steps, weight):
    flags = [
        "--weight",
        weight,
        "--rate",
        0.7,
        "--seed",
        11,
        "--model_name_or_path",
        place / "bert",
    ]
    files = []
    for model in ("glue", "squad", "pretrain"):
        files.append(tmp_path / model / "mask.pt")
        done("oneshot.py", *flags, "--model", model, "--output_dir", files[-1].parent)
    assert len({file.read_bytes() for file in files}) == 1
    mask = torch.load(files[0], weights_only=True)
    done(
        "glue_trans.py",
        *command(
            place,
            tmp_path / "out",
            "--dir",
            weight,
            "--mask_dir",
            files[1],
            "--max_steps",
            1,
            "--seed",
            11,
        ),
    )
    start = {
        name.removesuffix(".weight_orig"): w
        for name, w in steps[0]["weights"].items()
        if name.endswith("_orig")
    }
    expected = masks.magnitude(start, 0.7)
    assert all(torch.equal(mask[key], expected[key]) for key in expected)
    assert results(tmp_path / "out")[0]["mask_info"]["method"] == "omp"


def test_one_shot_random_masks_and_the_default_place(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--weight",
        "pre",
        "--model",
        "glue",
        "--rate",
        0.5,
        "--model_name_or_path",
        place / "bert",
    ]
    out = done("oneshot.py", *flags)
    assert (
        out.startswith("tmp/oneshot/pre_glue_0.5/mask.pt: magnitude mask of 13 matrices, ")
        and "50.00%" in out
    )
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        done(
            "oneshot.py",
            *flags,
            "--method",
            "random",
            "--seed",
            seed,
            "--output_dir",
            tmp_path / name,
        )
    one, again, other, magnitude = (
        torch.load(tmp_path / name / "mask.pt", weights_only=True)
        for name in ("one", "again", "other", "tmp/oneshot/pre_glue_0.5")
    )
    assert masks.digest(one) == masks.digest(again)
    assert len({masks.digest(m) for m in (one, other, magnitude)}) == 3
    assert {dropped(m) for m in (one, other, magnitude)} == {total(one) // 2}
    info = json.loads((tmp_path / "one" / "mask.pt.json").read_text())
    assert (info["method"], info["task"], info["seed"], info["sparsity"]) == (
        "random",
        None,
        1,
        0.5,
    )


def test_masks_move_between_tasks_and_scripts(place, ten_rounds, tmp_path):
    path = ten_rounds[0] / "checkpoint-28" / "mask.pt"
    flags = command(
        place, tmp_path / "out", "--dir", "pre", "--mask_dir", path, "--max_steps", 1, task="MRPC"
    )
    done("glue_trans.py", *flags)
    row = results(tmp_path / "out")[0]
    assert (row["task"], row["mask_info"]["task"], round(row["sparsity"], 3)) == (
        "mrpc",
        "sts-b",
        0.7,
    )
    config = models.load_config(str(place / "bert"))
    for cls in (models.QuestionAnswerer, models.MaskedLanguageModel):
        model = models.load_model(cls, str(place / "bert"), config, 1)
        shapes = {name: module.weight.shape for name, module in masks.prunable(model).items()}
        assert masks.digest(masks.load(path, shapes)) == row["mask_sha256"]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_named_as_in_the_hub_s_files_of_2018_all_load(tmp_path, file):
    bert = tiny.bert(tmp_path / "bert")
    weights = {
        name: torch.randn_like(value)
        for name, value in load_file(bert / "model.safetensors").items()
    }
    # bert-base-uncased's: these names, a decoder that is the embeddings and has no bias of its own
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    (bert / "model.safetensors").unlink()
    save_file(old, bert / file, metadata={"format": "pt"}) if file.endswith(
        "safetensors"
    ) else torch.save(old, bert / file)
    for cls in (models.SequenceClassifier, models.QuestionAnswerer, models.MaskedLanguageModel):
        state = models.load_model(cls, str(bert), models.load_config(str(bert)), 1).state_dict()
        drawn = {
            name
            for name in state
            if not torch.equal(state[name], weights.get(name, torch.empty(0)))
        }
        assert sum(name.startswith("bert.") for name in state) == sum(
            name.startswith("bert.") for name in weights
        )
        if cls is models.MaskedLanguageModel:
            assert drawn == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
            assert torch.equal(
                state["cls.predictions.decoder.weight"],
                weights["bert.embeddings.word_embeddings.weight"],
            )
            assert torch.equal(
                state["cls.predictions.decoder.bias"], weights["cls.predictions.bias"]
            )
        else:
            assert {name.partition(".")[0] for name in drawn} == {cls.head[0].rstrip(".")}


# ---- evaluation alone


def test_evaluation_of_a_saved_subnetwork_gives_its_recorded_score(place, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    flags = [f for f in command(place, tmp_path / "out", "--dir", "pre") if f != "--do_train"]
    flags[flags.index("--model_name_or_path") + 1] = folder / "checkpoint-24"
    before = sorted(p.name for p in (folder / "checkpoint-24").iterdir())
    done("glue_trans.py", *flags)
    done("glue_trans.py", *flags)  # adds a row, replaces none
    rows = results(tmp_path / "out")
    expected = results(folder)[5]
    assert len(rows) == 2 and all(
        row["metrics"] == expected["metrics"] and row["method"] == "evaluate" for row in rows
    )
    assert sorted(p.name for p in (folder / "checkpoint-24").iterdir()) == before
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_evaluation_with_a_mask_scores_the_masked_network(place, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    flags = [f for f in command(place, tmp_path / "out", "--dir", "pre") if f != "--do_train"]
    done("glue_trans.py", *flags)
    done("glue_trans.py", *flags, "--mask_dir", folder / "checkpoint-36" / "mask.pt")
    dense, masked = results(tmp_path / "out")
    assert (dense["sparsity"], round(masked["sparsity"], 3)) == (0.0, 0.9) and dense[
        "metrics"
    ] != masked["metrics"]


def test_every_checkpoint_of_a_run_is_evaluated_on_request(place, ten_rounds, tmp_path):
    folder, _ = ten_rounds
    before = (folder / "results.jsonl").read_text()
    flags = [f for f in command(place, folder) if f != "--do_train"]
    out = done("LT_glue.py", *flags, "--eval_all_checkpoints")
    added = results(folder)[10:]
    try:
        trained = results(folder)[:10]
        assert [row["step"] for row in added] == [4 * k for k in range(1, 11)]
        for old, new in zip(trained, added, strict=True):
            assert (
                new["metrics"] == pytest.approx(old["metrics"], abs=1e-12)
                and new["sparsity"] == old["sparsity"]
            )
            assert new["mask_sha256"] == old["mask_sha256"]
        assert len(out.splitlines()) == 12
    finally:
        (folder / "results.jsonl").write_text(before)


def test_checkpoints_of_another_task_or_without_models_are_not_evaluated(
    place, ten_rounds, tmp_path
):
    folder = shutil.copytree(ten_rounds[0], tmp_path / "rounds")
    flags = [
        f
        for f in command(place, folder, "--dir", "pre", "--eval_all_checkpoints")
        if f != "--do_train"
    ]
    for checkpoint in folder.glob("checkpoint-*"):
        weights = load_file(checkpoint / "model.safetensors")
        save_file(
            {name: w for name, w in weights.items() if "classifier" not in name},
            checkpoint / "model.safetensors",
        )
    before = (folder / "results.jsonl").read_text()
    for reason in (
        "checkpoint-4: classifier.bias is missing; this checkpoint is of another task",
        "has kept its model",
    ):
        ended = launch.run("glue_trans.py", *flags)
        (line,) = ended.errors()
        assert (
            ended.code == 2 and reason in line and (folder / "results.jsonl").read_text() == before
        )
        for model in folder.glob("checkpoint-*/config.json"):
            model.unlink()


# ---- one folder, several commands


def test_a_finished_run_says_so_and_does_nothing(place, ten_rounds):
    folder, _ = ten_rounds
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}
    out = done("LT_glue.py", *command(place, folder, "--max_steps", 40))
    assert out == f"{folder}: this run is finished; give --overwrite_output_dir to do it anew\n"
    assert before == {
        p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()
    }


def test_another_command_is_refused_and_replaces_with_overwrite(place, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "out" / "notes.txt"
    done("LT_glue.py", *command(place, out, "--max_steps", 6, "--save_steps", 2))
    mine.write_text("mine")
    other = command(place, out, "--max_steps", 4, "--save_steps", 2)
    refused = launch.run("LT_glue.py", *other)
    assert (
        refused.code == 2
        and "--max_steps 6 there, 4 here" in refused.err
        and len(digests(out)) == 3
    )
    (told,) = launch.run("LT_glue.py", *other, "--overwrite_output_dir").errors()
    assert told == f"{out}: the run there is replaced (--max_steps 6 there, 4 here)"
    assert len(digests(out)) == 2 and not (out / "checkpoint-6").exists() and len(results(out)) == 2
    assert mine.read_text() == "mine"


def test_a_model_in_the_output_folder_that_no_run_wrote_is_not_removed(place, tmp_path):
    bert = tiny.bert(tmp_path / "bert")
    before = {p.name: p.read_bytes() for p in bert.iterdir()}
    flags = command(place, bert, "--max_steps", 2, "--save_steps", 1, "--overwrite_output_dir")
    flags[flags.index("--model_name_or_path") + 1] = bert
    done("LT_glue.py", *flags)
    assert all((bert / name).read_bytes() == content for name, content in before.items())
    assert len(digests(bert)) == 2


def tree(folder):
    """Everything in the folder that must be the same whenever the run is: not times, nor the event files' names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "events" not in path.parts:
            found[str(path.relative_to(folder))] = path.read_bytes()
    found["results.jsonl"] = [{**row, "wall_seconds": 0} for row in results(folder)]
    return found


@pytest.mark.parametrize(
    ("script", "flags", "stops"),
    [
        (
            "LT_glue.py",
            ["--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6, "--rewind_steps", 1],
            {1: "stop", 4: "stop", 6: "stop", 9: "crash", 11: "stop"},
        ),
        (
            "LT_glue.py",
            [
                "--max_steps",
                8,
                "--save_steps",
                2,
                "--as_released",
                "--evaluate_during_training",
                "--logging_steps",
                1,
            ],
            {3: "stop", 6: "crash", 9: "stop"},
        ),
        (
            "glue_trans.py",
            [
                "--max_steps",
                5,
                "--save_steps",
                2,
                "--dir",
                "rand",
                "--eval_all_checkpoints",
                "--evaluate_during_training",
                "--logging_steps",
                1,
            ],
            {2: "stop", 5: "crash", 8: "stop"},
        ),
    ],
    ids=["rewinding", "as released", "one network"],
)
def test_a_run_stopped_or_crashed_goes_on_to_the_same_bytes(
    place, tmp_path, monkeypatch, script, flags, stops
):
    """`stops`: after which of the steps taken, by all processes together, SIGTERM comes or the process fails."""
    out = tmp_path / "out"
    done(script, *command(place, out, *flags))
    undisturbed = tree(out)
    out.rename(tmp_path / "undisturbed")
    taken, original = [], Trainer.step

    def step(self, batches, rate, place):
        result = original(self, batches, rate, place)
        taken.append(rate)
        if stops.get(len(taken)) == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif stops.get(len(taken)) == "crash":
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(Trainer, "step", step)
    for stop in stops.values():
        torch.manual_seed(99)  # a new process does not know where the old one's generators were
        if stop == "crash":
            with pytest.raises(ZeroDivisionError):
                launch.run(script, *command(place, out, *flags))
            continue
        ended = launch.run(script, *command(place, out, *flags))
        assert ended.code == 75, ended.err
        assert [line for line in ended.errors() if "SIGTERM: state saved" in line] == ended.errors()
    torch.manual_seed(99)
    done(script, *command(place, out, *flags))
    monkeypatch.undo()
    found = tree(out)
    assert list(found) == list(undisturbed)
    assert [name for name in found if found[name] != undisturbed[name]] == []


# ---- nothing elsewhere


def test_a_run_prints_only_its_bar_on_stderr_and_writes_nothing_elsewhere(place, tmp_path):
    """A process of its own, with no home, no temporary folder and no working folder but those given here."""
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    environment = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(tmp_path / "home" / "hf"),
    }
    flags = [
        *command(place, tmp_path / "out", "--max_steps", 2, "--save_steps", 1),
        "--cache_dir",
        tmp_path / "cache",
    ]
    before = sorted(place.rglob("*"))
    ended = launch.fresh("LT_glue.py", *flags, cwd=tmp_path / "work", environment=environment)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert len(ended.out.splitlines()) == 2 + 4
    assert [
        p
        for name in ("work", "temporary", "home")
        for p in (tmp_path / name).rglob("*")
        if p.is_file()
    ] == []
    assert sorted(place.rglob("*")) == before
    assert {p.name.split("_")[0] for p in (tmp_path / "cache").iterdir()} == {"cached"}
