"""oneshot.py: magnitude and random masks of the weights that training starts from."""

import json
import os
import signal

import launch
import pytest
import tiny
import torch
from launch import done, results
from small_models import count_dropped, count_weights

from utils.pruning import criteria, masks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny BERT and a task."""
    folder = tmp_path_factory.mktemp("one_shot")
    tiny.bert(folder / "bert")
    tiny.glue(folder / "STS-B", "STS-B", train=40, dev=16)
    return folder


def train_flags(folder, out, *more):
    """Flags of one training step."""
    flags = {
        "output_dir": out,
        "model_name_or_path": folder / "bert",
        "task_name": "STS-B",
        "data_dir": folder / "STS-B",
        "max_seq_length": 32,
        "per_gpu_train_batch_size": 8,
        "max_steps": 1,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [*words, "--do_train", "--do_eval", "--do_lower_case", "--no_cuda", *more]


@pytest.mark.parametrize("weight", ["pre", "rand"])
def test_a_mask_ranks_the_weights_that_training_starts_from(folder, tmp_path, steps, weight):
    flags = [
        "--weight",
        weight,
        "--rate",
        0.7,
        "--seed",
        11,
        "--model_name_or_path",
        folder / "bert",
    ]
    files = []
    for model in ("glue", "squad", "pretrain"):
        files.append(tmp_path / model / "mask.pt")
        done("oneshot.py", *flags, "--model", model, "--output_dir", files[-1].parent)
    assert len({file.read_bytes() for file in files}) == 1
    mask = torch.load(files[0], weights_only=True)
    done(
        "glue_trans.py",
        *train_flags(
            folder, tmp_path / "out", "--dir", weight, "--mask_dir", files[1], "--seed", 11
        ),
    )
    start = {
        name.removesuffix(".weight_orig"): w
        for name, w in steps[0]["weights"].items()
        if name.endswith("_orig")
    }
    expected = criteria.magnitude(start, 0.7)
    assert all(torch.equal(mask[key], expected[key]) for key in expected)
    assert results(tmp_path / "out")[0]["mask_info"]["method"] == "omp"


def test_random_masks_and_the_default_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--weight",
        "pre",
        "--model",
        "glue",
        "--rate",
        0.5,
        "--model_name_or_path",
        folder / "bert",
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
    assert {count_dropped(m) for m in (one, other, magnitude)} == {count_weights(one) // 2}
    info = json.loads((tmp_path / "one" / "mask.pt.json").read_text())
    assert (info["method"], info.get("task"), info["seed"], info["sparsity"]) == (
        "random",
        None,
        1,
        0.5,
    )


def one_shot_flags(folder, out):
    named = {"weight": "pre", "model": "glue", "rate": 0.5, "output_dir": out}
    named |= {"model_name_or_path": folder / "bert"}
    return [word for name, value in named.items() for word in (f"--{name}", value)]


def test_an_error_is_printed_even_if_the_environment_sets_a_rank(folder, tmp_path, monkeypatch):
    """Job wrappers export RANK; only the other processes of torchrun stay silent."""
    monkeypatch.setenv("RANK", "1")
    ended = launch.run("oneshot.py", *one_shot_flags(folder, tmp_path), "--rate", 7)
    assert ended.code == 2 and "--rate 7.0" in ended.err and ended.err.count("\n") == 1


def test_a_signal_ends_with_the_exit_code_that_says_run_it_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(criteria, "magnitude", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    ended = launch.run("oneshot.py", *one_shot_flags(folder, tmp_path / "out"))
    assert ended.code == 75 and not (tmp_path / "out").exists()
