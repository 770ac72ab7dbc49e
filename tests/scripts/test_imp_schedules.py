"""LT_glue.py with other schedules: sparsities, rewinding, evaluations and saved subnetworks."""

import itertools
import json

import glue_runs
import pytest
import torch
from glue_runs import PEAK, command, digests, evaluation, same, tickets
from launch import done, results
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


def test_sparsities_replace_the_schedule(data, tmp_path):
    flags = ["--max_steps", 40, "--sparsities", 0.25, 0.9]
    out = done("LT_glue.py", *command(data, tmp_path / "out", *flags))
    assert [round(ticket["sparsity"], 3) for ticket in tickets(tmp_path / "out")] == [0.25, 0.9]
    assert [row["step"] for row in results(tmp_path / "out")] == [4, 8, 12]
    assert out.count("round  ") == 4


def test_rewinding_to_step_i_restores_theta_i_and_the_learning_rate_there(data, tmp_path, steps):
    out = tmp_path / "out"
    flags = ["--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6, "--rewind_steps", 1]
    done("LT_glue.py", *command(data, out, *flags))
    rates = [PEAK, PEAK * 3 / 4, PEAK / 2, PEAK / 4]
    expected = rates + rates[1:] + rates[1:]
    assert [step["rate"] for step in steps] == pytest.approx(expected, rel=1e-12)
    start, theta_i = steps[0]["weights"], steps[1]["weights"]
    assert same(steps[4]["weights"], theta_i) and same(steps[7]["weights"], theta_i)
    assert not same(start, theta_i, "bert") and not same(start, theta_i, "classifier")
    assert [at for at, step in enumerate(steps) if step["fresh"]] == [0, 1, 4, 7]
    assert [row["step"] for row in results(out)] == [4, 8, 12]
    saved = torch.load(out / "rewind_weights.pt", weights_only=True)
    for name, value in theta_i.items():
        assert torch.equal(saved[name], value)
    origin = json.loads((out / "checkpoint-4" / "mask.pt.json").read_text())
    assert (origin["rewind_steps"], origin["rewind_fraction"]) == (1, 0.25)


def test_glue_trans_trains_the_weights_that_a_run_rewound_to(data, tmp_path, steps):
    found = tmp_path / "imp"
    flags = ["--max_steps", 4, "--save_steps", 2, "--rewind_steps", 1]
    done("LT_glue.py", *command(data, found, *flags))
    theta_i = steps[1]["weights"]
    steps.clear()
    flags = ["--max_steps", 1, "--dir", "pre", "--mask_dir", found / "checkpoint-2" / "mask.pt"]
    flags += ["--weight_pertub", found / "rewind_weights.pt"]
    done("glue_trans.py", *command(data, tmp_path / "out", *flags))
    assert same({k: v for k, v in steps[0]["weights"].items() if k.startswith("bert.")}, theta_i)
    row = results(tmp_path / "out")[0]
    assert row["init"] == "rewound" and row["init_info"]["rewind_steps"] == 1


def test_without_rewinding_each_round_continues_from_the_last(data, tmp_path, steps):
    out = tmp_path / "out"
    flags = ["--max_steps", 6, "--save_steps", 2, "--sparsities", 0.3, 0.6, "--no_rewind"]
    done("LT_glue.py", *command(data, out, *flags))
    assert [step["rate"] for step in steps] == pytest.approx([PEAK, PEAK / 2] * 3, rel=1e-12)
    state = load_file(out / "checkpoint-2" / "model.safetensors")  # dense: the mask was all ones
    for name, value in steps[2]["weights"].items():
        assert torch.equal(value, state[name])
    assert not same(steps[2]["weights"], steps[0]["weights"], "bert.encoder")


def test_as_released_keeps_the_head_and_the_data_order_and_prunes_to_100_percent(
    data, tmp_path, steps
):
    flags = ["--max_steps", 20, "--save_steps", 2, "--as_released"]
    done("LT_glue.py", *command(data, tmp_path / "out", *flags))
    found = [round(ticket["sparsity"], 3) for ticket in tickets(tmp_path / "out")]
    assert found == [k / 10 for k in range(1, 11)]
    over_30_epochs = [PEAK, PEAK * 149 / 150] * 10  # not over --max_steps
    assert [step["rate"] for step in steps] == pytest.approx(over_30_epochs, rel=1e-12)
    starts = steps[::2]
    assert all(same(start["weights"], starts[0]["weights"], "bert.") for start in starts)
    heads = [start["weights"]["classifier.weight"] for start in starts]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(heads))
    # the third round continues the epoch of the first
    assert sorted(row for step in steps[:5] for row in step["rows"]) == list(range(40))


def test_evaluation_within_rounds_is_logged_and_changes_nothing(data, tmp_path):
    out, baseline = tmp_path / "out", tmp_path / "baseline"
    flags = ["--max_steps", 6, "--save_steps", 3, "--sparsities", 0.5]
    done("LT_glue.py", *command(data, baseline, *flags))
    flags += ["--evaluate_during_training", "--logging_steps", 2]
    done("LT_glue.py", *command(data, out, *flags))
    keys = ("step", "round", "final", "sparsity")
    assert [tuple(row[key] for key in keys) for row in results(out)] == [
        (2, 1, False, 0.0),
        (3, 1, True, 0.0),
        (4, 2, False, 0.5),
        (6, 2, True, 0.5),
    ]
    assert digests(out) == digests(baseline)
    events = b"".join(p.read_bytes() for p in (out / "events").iterdir())
    assert all(tag in events for tag in (b"loss", b"lr", b"eval_pearson"))


def test_without_do_eval_rounds_have_no_scores(data, tmp_path):
    flags = command(data, tmp_path / "out", "--max_steps", 4, "--save_steps", 2)
    done("LT_glue.py", *[flag for flag in flags if flag != "--do_eval"])
    assert [ticket["score"] for ticket in tickets(tmp_path / "out")] == [None, None]
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_with_a_limit_old_subnetworks_are_removed_and_masks_stay(data, tmp_path):
    out = tmp_path / "out"
    flags = ["--max_steps", 8, "--save_steps", 2, "--save_total_limit", 1]
    done("LT_glue.py", *command(data, out, *flags))
    models = sorted(out.glob("checkpoint-*/model.safetensors"))
    assert [path.parent.name for path in models] == ["checkpoint-8"]
    assert len(list(out.glob("checkpoint-*/mask.pt"))) == 4
    printed = done("LT_glue.py", *evaluation(data, out, *flags, "--eval_all_checkpoints"))
    # checkpoints without a model cannot be evaluated
    assert [line.split()[0] for line in printed.splitlines()[2:]] == ["8"]


def test_with_the_limit_0_masks_alone_stay_and_nothing_else_changes(data, tmp_path):
    found = []
    for name, limit in (("all", ()), ("none", ("--save_total_limit", 0))):
        flags = ["--max_steps", 4, "--save_steps", 2, *limit]
        done("LT_glue.py", *command(data, tmp_path / name, *flags))
        found.append((tmp_path / name / "checkpoint-2/mask.pt").read_bytes())
        scores = [row["metrics"] for row in results(tmp_path / name)]
        found.append(scores)
    assert found[:2] == found[2:] and len(scores) == 2
    assert {path.name for path in (tmp_path / "none").glob("checkpoint-*/*")} == {
        "mask.pt",
        "mask.pt.json",
    }
