"""oneshot.py: magnitude and random masks of the weights that training starts from."""

import json
import os
import shutil
import signal
from pathlib import Path

import launch
import pytest
import refusals
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
        *("--weight", weight, "--rate", 0.7, "--seed", 11),
        *("--model_name_or_path", folder / "bert"),
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
    names = [key.removesuffix(masks.SUFFIX) for key in steps[0]["mask"]]
    start = {name: steps[0]["weights"][f"{name}.weight"] for name in names}
    expected = criteria.magnitude(start, 0.7)
    assert all(torch.equal(mask[key], expected[key]) for key in expected)
    assert results(tmp_path / "out")[0]["mask_info"]["method"] == "omp"


def test_random_masks_and_the_default_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [
        *("--weight", "pre", "--model", "glue", "--rate", 0.5),
        *("--model_name_or_path", folder / "bert"),
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
            *("--method", "random", "--seed", seed, "--output_dir", tmp_path / name),
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


# ---- what is already there


SHORT = ["--weight", "pre", "--model", "glue", "--rate", 0.5]
RANDOM = [*SHORT, "--method", "random"]


@pytest.fixture
def work(folder, tmp_path, monkeypatch):
    """A working folder with a BERT, named as in the released commands."""
    shutil.copytree(folder / "bert", tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(script, *flags, named):
    """The command is refused, names these words, and changes nothing below the working folder."""
    before = refusals.content(Path())
    refusals.assert_refused(launch.run(script, *flags), script, *named)
    assert refusals.content(Path()) == before


def test_commands_for_different_masks_write_different_files(work):
    """The README's two commands left one mask, the random one."""
    rand = ["--weight", "rand", "--model", "glue", "--rate", 0.5]
    commands = [SHORT, RANDOM, [*RANDOM, "--seed", 1], rand, [*rand, "--seed", 1]]
    commands += [[*SHORT, "--rate", 0.4], [*SHORT, "--model", "squad"]]
    for flags in commands:
        done("oneshot.py", *flags)
    found = {path.parent.name for path in work.glob("tmp/oneshot/*/mask.pt")}
    assert found == {
        *("pre_glue_0.5", "pre_glue_0.5_random_seed42", "pre_glue_0.5_random_seed1"),
        *("rand_glue_0.5_seed42", "rand_glue_0.5_seed1", "pre_glue_0.4", "pre_squad_0.5"),
    }
    perturbations = [[], ["--seed", 1], ["--mode", "elements"], ["--mode", "noise"]]
    perturbations += [["--mode", "noise", "--sigma", 0.1], ["--mode", "elements", "--seed", 1]]
    for flags in perturbations:
        done("pertub_weight.py", *flags)
    assert len(list(work.glob("tmp/*.pt"))) == len(perturbations)
    assert (work / "tmp" / "shuffle_weight.pt").exists(), "the name in the released commands"


@pytest.mark.parametrize(
    ("script", "first", "other"),
    [
        ("oneshot.py", SHORT, RANDOM),
        ("oneshot.py", RANDOM, [*RANDOM, "--seed", 7]),
        ("oneshot.py", SHORT, [*SHORT, "--rate", 0.51]),
        ("oneshot.py", SHORT, [*SHORT, "--weight", "rand"]),
        ("oneshot.py", SHORT, [*SHORT, "--model_name_or_path", "other"]),
        ("pertub_weight.py", [], ["--mode", "elements"]),
        ("pertub_weight.py", ["--mode", "noise"], ["--mode", "noise", "--seed", 3]),
        ("pertub_weight.py", ["--mode", "noise"], ["--mode", "noise", "--sigma", 1]),
        ("pertub_weight.py", [], ["--model_name_or_path", "other"]),
    ],
)
def test_a_file_made_with_other_flags_is_replaced_only_on_request(work, script, first, other):
    tiny.bert(work / "other", seed=9)
    where = ["--output_dir", "x"] if script == "oneshot.py" else ["--output", "x/w.pt"]
    done(script, *first, *where)
    refused(script, *other, *where, named=[where[1], "exists with another content", "--overwrite"])
    before = refusals.content(Path())
    done(script, *first, *where)  # the same flags give the same file
    assert refusals.content(Path()) == before
    done(script, *other, *where, "--overwrite")
    assert refusals.content(Path()) != before


def test_flags_that_do_not_change_the_mask_are_no_other_flags(work):
    (work / "link").symlink_to("bert-base-uncased")
    done("oneshot.py", *SHORT, "--output_dir", "x")
    before = (work / "x" / "mask.pt").read_bytes()
    for more in (["--seed", 9], ["--model", "squad"]):
        done("oneshot.py", *SHORT, "--output_dir", "x", *more)
    for name in ("./bert-base-uncased", work / "bert-base-uncased", "link"):
        done("oneshot.py", *SHORT, "--output_dir", "x", "--model_name_or_path", name)
    assert (work / "x" / "mask.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["w.pt", "thesis.json", "w.pt.json", "mask.pt"])
def test_a_file_of_unknown_origin_is_replaced_only_on_request(work, name):
    """Also the file beside it that would record the origin."""
    (work / name).write_text('{"mine": 1}')
    output = name.removesuffix(".json") if name == "w.pt.json" else name
    refused("pertub_weight.py", "--output", output, named=[output, "another content"])
    done("pertub_weight.py", "--output", output, "--overwrite")
    if name == "mask.pt":
        refused("oneshot.py", *SHORT, "--output_dir", ".", named=["mask.pt", "another content"])


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "output",
    [
        "bert-base-uncased",
        "bert-base-uncased/model.safetensors",
        "bert-base-uncased/pytorch_model.bin",  # a new file that transformers would read
        "bert-base-uncased/config",  # its origin would be config.json
        "{here}/bert-base-uncased/vocab.txt",
        "link/model.safetensors",
    ],
)
def test_the_model_that_is_read_is_never_replaced(work, output, overwrite):
    model = work / "bert-base-uncased"
    (work / "link").symlink_to(model)
    output = output.format(here=work)
    named = [output, "the model that is read", "another path"]
    refused("pertub_weight.py", "--output", output, *overwrite, named=named)


# ---- controls


def mask_flags(folder, *more):
    return ["--weight", "pre", "--model", "glue", "--model_name_or_path", folder / "bert", *more]


def test_controls_have_the_layers_sparsities_and_their_own_origin(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("oneshot.py", *mask_flags(folder, "--method", "layerwise", "--rate", 0.3))
    even = torch.load("tmp/oneshot/pre_glue_0.3_layerwise/mask.pt", weights_only=True)
    assert {round(float((~m).float().mean()), 2) for m in even.values()} == {0.3}
    done("oneshot.py", *mask_flags(folder, "--rate", 0.3))
    ticket = tmp_path / "tmp/oneshot/pre_glue_0.3/mask.pt"
    origin = json.loads(ticket.with_name("mask.pt.json").read_text())
    found_by_imp = origin | {"method": "imp", "task": "sts-b", "rewind": "theta_i"}
    ticket.with_name("mask.pt.json").write_text(json.dumps(found_by_imp))
    done("oneshot.py", *mask_flags(folder, "--method", "shuffle", "--mask_dir", ticket))
    shuffled = tmp_path / "tmp/oneshot/pre_glue_0.3_shuffle_seed42/mask.pt"
    mask, source = (torch.load(path, weights_only=True) for path in (shuffled, ticket))
    assert [int(m.sum()) for m in mask.values()] == [int(m.sum()) for m in source.values()]
    assert masks.digest(mask) != masks.digest(source)
    info = json.loads(shuffled.with_name("mask.pt.json").read_text())
    assert (info["method"], info["task"], info["seed"]) == ("shuffled", "sts-b", 42)
    assert info["shuffled_from"] == masks.digest(source)
    assert info["mask_sha256"] == masks.digest(mask)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--method", "shuffle"], "--mask_dir"),
        (["--method", "shuffle", "--mask_dir", "m.pt", "--rate", 0.5], "--rate"),
        (["--mask_dir", "m.pt", "--rate", 0.5], "--mask_dir"),
        (["--method", "layerwise"], "--rate"),
        (["--method", "shuffle", "--mask_dir", "m.pt"], "m.pt"),
    ],
)
def test_flags_that_contradict_the_method_are_refused(folder, tmp_path, monkeypatch, flags, named):
    monkeypatch.chdir(tmp_path)
    ended = launch.run("oneshot.py", *mask_flags(folder, *flags))
    assert ended.code == 2 and named in ended.err and ended.err.count("\n") == 1, ended.err
    assert list(tmp_path.iterdir()) == []
