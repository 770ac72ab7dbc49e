"""What the user gave is wrong: exit code 2, one line on stderr that names it, and the output folder as it was."""

import json
import shutil
from pathlib import Path

import launch
import pytest
import tiny
import torch

from utils import masks, models


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good models, data and masks; the cases spoil copies of them."""
    folder = tmp_path_factory.mktemp("bad")
    tiny.bert(folder / "bert")
    for task in ("SST-2", "STS-B", "CoLA"):
        tiny.glue(folder / task, task, train=16, dev=8)
    for layers in (2, 3):
        bert = tiny.bert(folder / f"bert{layers}", layers=layers, width=16)
        model = models.load_model(
            models.SequenceClassifier, str(bert), models.load_config(str(bert)), 1
        )
        weights = {f"{name}.weight": value for name, value in masks.weights(model).items()}
        models.save_weights(weights, folder / f"weights{layers}.pt", {})
        masks.save(masks.magnitude(masks.weights(model), 0.5), folder / f"mask{layers}.pt", {})
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts scripts as processes of their own; the hub cannot be reached."""
    launcher = launch.Launcher(
        {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    yield launcher
    launcher.close()


def flags(place, script, **given):
    """A command that would work, with some flags replaced; True is a flag without value, None leaves a flag out."""
    if script == "oneshot.py":
        good = {"weight": "pre", "model": "glue", "rate": 0.5, "model_name_or_path": place / "bert"}
    else:
        good = {
            "task_name": "SST-2",
            "data_dir": place / "SST-2",
            "model_name_or_path": place / "bert2",
            "do_train": True,
            "do_eval": True,
            "do_lower_case": True,
            "max_seq_length": 32,
            "per_gpu_train_batch_size": 8,
            "max_steps": 4,
            "no_cuda": True,
        }
    good |= {"dir": "pre"} if script == "glue_trans.py" else {}
    pairs = [(f"--{name}", value) for name, value in {**good, **given}.items() if value is not None]
    return [part for name, value in pairs for part in ([name] if value is True else [name, value])]


def refused(ended, script, *parts):
    """Exit code 2 and one line that has all the parts."""
    assert ended.code == 2, (ended.code, ended.err)
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    (line,) = ended.errors()
    assert line.startswith(f"{script}: error: ")
    for part in parts:
        assert str(part) in line, (part, line)
    return line


def state(folder):
    """What is in a folder, byte for byte; None where there is none."""
    if not folder.exists():
        return None
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def check(start, place, tmp_path, script, parts, **given):
    """The command ends as `refused` says, with an output folder that is absent and one that is a finished run's."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "run.json").write_text(json.dumps({"arguments": {}, "finished": True}))
    (full / "model.safetensors").write_text("precious")
    for out, overwrite in ((tmp_path / "deep" / "out", None), (full, True)):
        if overwrite and script != "oneshot.py":
            given |= {"overwrite_output_dir": True}
        before = state(out)
        ended = start(script, *flags(place, script, output_dir=out, **given), cwd=tmp_path)
        line = refused(ended, script, *parts)
        assert state(out) == before
    assert not (tmp_path / "deep").exists()
    return line


# ---- data


@pytest.mark.parametrize(
    ("task", "name", "content", "parts"),
    [
        (
            "SST-2",
            "train.tsv",
            b"sentence\tlabel\na fine day\t1\na day\n",
            ["train.tsv row 3", "1 columns instead of 2"],
        ),
        (
            "SST-2",
            "dev.tsv",
            b"sentence\tlabel\na fine day\tgood\n",
            ["dev.tsv row 2", "'good'", "0, 1"],
        ),
        (
            "STS-B",
            "train.tsv",
            b"sentence1\tsentence2\tscore\na\tb\tclose\n",
            ["train.tsv row 2", "'close'", "number"],
        ),
        ("SST-2", "train.tsv", b"", ["train.tsv", "empty"]),
        ("SST-2", "train.tsv", b"text\tlabel\na\t1\n", ["train.tsv row 1", "'sentence'"]),
        ("SST-2", "train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n", ["train.tsv row 2", "not UTF-8"]),
        (
            "CoLA",
            "train.tsv",
            b"gj04\t1\t\tA day .\ngj04\t1\tA day .\n",
            ["train.tsv row 2", "3 columns instead of 4"],
        ),
        ("SST-2", "dev.tsv", None, ["dev.tsv", "no such file", "--data_dir"]),
    ],
    ids=[
        "row too short",
        "unknown label",
        "no number",
        "empty",
        "wrong header",
        "not UTF-8",
        "no header",
        "no file",
    ],
)
def test_malformed_data(start, place, tmp_path, task, name, content, parts):
    data = shutil.copytree(place / task, tmp_path / "data", ignore=shutil.ignore_patterns("*.npz"))
    (data / name).unlink() if content is None else (data / name).write_bytes(content)
    check(start, place, tmp_path, "LT_glue.py", parts, task_name=task, data_dir=data)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"data_dir": "nowhere"}, ["nowhere: no such folder", "--data_dir"]),
        ({"task_name": "SST2"}, ["--task_name SST2", "did you mean sst-2?"]),
        ({"task_name": None}, ["--task_name"]),
    ],
    ids=["no folder", "task misspelt", "no task"],
)
def test_wrong_data_flags(start, place, tmp_path, given, parts):
    check(start, place, tmp_path, "LT_glue.py", parts, **given)


# ---- masks and weights


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path, value):
    tensors = torch.load(path, weights_only=True)
    key = next(iter(tensors))
    tensors[key] = tensors[key].float()
    tensors[key][0, 0] = value
    torch.save(tensors, path)


SPOILS = {
    "missing": (lambda path: path.unlink(), ["no such"]),
    "empty": (lambda path: path.write_bytes(b""), ["empty"]),
    "truncated": (cut, ["cut short or damaged"]),
    "text": (lambda path: path.write_text("a mask\n"), []),
    "NaN": (
        lambda path: change(path, float("nan")),
        ["bert.encoder.layer.0.attention.self.query.weight", "nan"],
    ),
    "infinite": (
        lambda path: change(path, float("inf")),
        ["bert.encoder.layer.0.attention.self.query.weight", "inf"],
    ),
}


@pytest.mark.parametrize("kind", ["mask", "weights"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_spoilt_mask_and_weight_files(start, place, tmp_path, kind, spoil):
    path = Path(shutil.copy(place / f"{kind}2.pt", tmp_path / "file.pt"))
    change_file, parts = SPOILS[spoil]
    change_file(path)
    flag = {"mask": "mask_dir", "weights": "weight_pertub"}[kind]
    line = check(start, place, tmp_path, "glue_trans.py", [f"{path}: "], **{flag: path})
    assert all(part in line.lower() for part in parts), line


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"mask_dir": "mask3.pt"},
            ["mask3.pt: unexpected key bert.encoder.layer.2.", "another architecture"],
        ),
        (
            {"mask_dir": "mask2.pt", "model_name_or_path": "bert"},
            ["mask2.pt", "has shape (16, 16)", "(32, 32)"],
        ),
        (
            {"mask_dir": "mask2.pt", "model_name_or_path": "bert3"},
            ["mask2.pt: key bert.encoder.layer.2.", "is missing"],
        ),
        (
            {"mask_dir": "weights2.pt"},
            ["weights2.pt: key bert.encoder.layer.0.", "weight_mask is missing"],
        ),
        (
            {"weight_pertub": "weights2.pt", "model_name_or_path": "bert"},
            ["weights2.pt", "has shape (16, 16)", "(32, 32)"],
        ),
        (
            {"weight_pertub": "weights2.pt", "model_name_or_path": "bert3"},
            ["weights2.pt: weight bert.encoder.layer.2.", "is missing"],
        ),
        ({"weight_pertub": "mask2.pt"}, ["mask2.pt: weight bert.encoder.layer.0.", "is missing"]),
    ],
    ids=[
        "more layers",
        "other width",
        "fewer layers",
        "weights as mask",
        "weights of other width",
        "weights of fewer layers",
        "mask as weights",
    ],
)
def test_masks_and_weights_of_another_architecture(start, place, tmp_path, given, parts):
    check(
        start,
        place,
        tmp_path,
        "glue_trans.py",
        parts,
        **{name: place / value for name, value in given.items()},
    )


def test_a_mask_with_a_wrong_value(start, place, tmp_path):
    path = Path(shutil.copy(place / "mask2.pt", tmp_path / "mask.pt"))
    change(path, 0.5)
    check(
        start,
        place,
        tmp_path,
        "glue_trans.py",
        [f"{path}: bert.encoder.layer.0.attention.self.query.weight_mask holds 0.5 at entry 0"],
        mask_dir=path,
    )


# ---- numbers


@pytest.mark.parametrize("rate", [1, 1.5, -0.1, "nan", "half"])
def test_rates_outside_0_to_1(start, place, tmp_path, rate):
    check(start, place, tmp_path, "oneshot.py", ["--rate", rate], rate=rate)


@pytest.mark.parametrize(
    ("script", "given", "parts"),
    [
        ("LT_glue.py", {"save_steps": 5}, ["--save_steps 5", "longer than the run of 4 steps"]),
        ("LT_glue.py", {"save_steps": 0}, ["--save_steps", "at least 1"]),
        ("LT_glue.py", {"save_steps": -1}, ["--save_steps -1", "at least 0"]),
        ("LT_glue.py", {}, ["--save_steps", "at least 1"]),  # a tenth of 4 steps
        ("LT_glue.py", {"save_steps": 2, "rewind_steps": 2}, ["--rewind_steps 2", "2 steps"]),
        ("LT_glue.py", {"save_steps": 2, "sparsities": "0"}, ["--sparsities"]),
        ("LT_glue.py", {"save_steps": 2, "sparsities": "1.1"}, ["--sparsities"]),
        ("LT_glue.py", {"save_steps": 2, "sparsities": "nan"}, ["--sparsities"]),
        ("glue_trans.py", {"do_train": None, "do_eval": None}, ["--do_train", "--do_eval"]),
        ("glue_trans.py", {"max_seq_length": 65}, ["--max_seq_length 65", "64 positions"]),
        ("glue_trans.py", {"max_seq_length": 2}, ["--max_seq_length 2"]),
        ("glue_trans.py", {"learning_rate": "nan"}, ["--learning_rate"]),
        ("glue_trans.py", {"learning_rate": -1}, ["--learning_rate"]),
        ("glue_trans.py", {"weight_decay": -1}, ["--weight_decay"]),
        ("glue_trans.py", {"warmup_steps": -1}, ["--warmup_steps"]),
        ("glue_trans.py", {"logging_steps": -1}, ["--logging_steps"]),
        ("glue_trans.py", {"save_steps": -1}, ["--save_steps"]),
        ("glue_trans.py", {"save_total_limit": -1}, ["--save_total_limit"]),
        ("glue_trans.py", {"per_gpu_train_batch_size": 0}, ["--per_gpu_train_batch_size 0"]),
        ("glue_trans.py", {"seed": -1}, ["--seed -1"]),
        ("glue_trans.py", {"seed": 2**63}, ["--seed 9223372036854775808"]),
        ("oneshot.py", {"seed": -1}, ["--seed -1"]),
        (
            "glue_trans.py",
            {"should_continue": True, "restart": True},
            ["--should_continue and --restart"],
        ),
        (
            "LT_glue.py",
            {"save_steps": 2, "rewind_steps": 1, "no_rewind": True},
            ["--no_rewind and --rewind_steps"],
        ),
        (
            "LT_glue.py",
            {"save_steps": 2, "as_released": True, "no_rewind": True},
            ["--as_released rewinds", "--no_rewind"],
        ),
        ("glue_trans.py", {"data_dir": "caf\udce9"}, ["caf", "not UTF-8"]),
        ("glue_trans.py", {"num_train_epochs": 0}, ["--num_train_epochs"]),
        ("glue_trans.py", {"checkpoint_minutes": "nan"}, ["--checkpoint_minutes"]),
        ("glue_trans.py", {"fp16": True}, ["--fp16"]),
        ("glue_trans.py", {"dir": None}, ["--dir"]),
        ("glue_trans.py", {"dir": "post"}, ["--dir", "post"]),
        ("glue_trans.py", {"colour": "red"}, ["--colour"]),
    ],
    ids=lambda value: (
        " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_wrong_flags(start, place, tmp_path, script, given, parts):
    check(start, place, tmp_path, script, parts, **given)


# ---- models


def spoilt_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def longer_vocabulary(folder):
    with open(folder / "vocab.txt", "a") as file:
        file.writelines(f"word{number}\n" for number in range(9))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda f: (f / "model.safetensors").unlink(), ["no weights", "model.safetensors"]),
        (lambda f: (f / "vocab.txt").unlink(), ["no vocab.txt"]),
        (lambda f: (f / "config.json").unlink(), ["no config.json"]),
        (lambda f: (f / "config.json").write_text("{"), ["cannot be loaded"]),
        (lambda f: cut(f / "model.safetensors"), ["cannot be loaded"]),
        (lambda f: (f / "model.safetensors").write_bytes(b""), ["cannot be loaded"]),
        (lambda f: spoilt_config(f, num_hidden_layers=3), ["bert.encoder.layer.2.", "missing"]),
        (
            lambda f: spoilt_config(f, num_hidden_layers=1),
            ["unexpected encoder weight", "layer.1."],
        ),
        (
            lambda f: spoilt_config(f, intermediate_size=48),
            ["bert.encoder.layer.0.intermediate", "shape"],
        ),
        (
            longer_vocabulary,
            [f"{len(tiny.VOCABULARY) + 9} WordPieces", f"only {len(tiny.VOCABULARY)}"],
        ),
        (shutil.rmtree, ["no such model folder", "--model_name_or_path"]),
    ],
    ids=[
        "no weights",
        "no vocabulary",
        "no configuration",
        "half a configuration",
        "half the weights",
        "empty weights",
        "too few layers",
        "too many layers",
        "other width",
        "vocabulary too large",
        "no folder",
    ],
)
def test_model_folders_that_are_none(start, place, tmp_path, spoil, parts):
    bert = shutil.copytree(place / "bert2", tmp_path / "model")
    spoil(bert)
    check(start, place, tmp_path, "glue_trans.py", parts, model_name_or_path=bert)


def test_a_hub_name_without_a_network(start, place, tmp_path):
    given = flags(
        place, "glue_trans.py", model_name_or_path="bert-base-uncased", output_dir=tmp_path / "out"
    )
    refused(
        start("glue_trans.py", *given, cwd=tmp_path, sleepless=True),
        "glue_trans.py",
        "bert-base-uncased",
        "give --model_name_or_path a local folder with config.json, model weights and vocab.txt",
    )
    assert list(tmp_path.iterdir()) == []


def test_one_shot_of_weights_that_are_no_numbers(start, place, tmp_path):
    from safetensors.torch import load_file, save_file

    bert = shutil.copytree(place / "bert2", tmp_path / "model")
    weights = load_file(bert / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][3, 3] = float("nan")
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    check(
        start,
        place,
        tmp_path,
        "oneshot.py",
        ["bert.encoder.layer.1.output.dense.weight", "NaN"],
        model_name_or_path=bert,
    )


# ---- the output folder


@pytest.mark.parametrize("script", ["LT_glue.py", "glue_trans.py"])
def test_a_full_output_folder_without_permission(start, place, tmp_path, script):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    before = state(out)
    ended = start(script, *flags(place, script, output_dir=out, save_steps=1), cwd=tmp_path)
    refused(ended, script, f"--output_dir {out} is not empty", "--overwrite_output_dir")
    assert state(out) == before


def test_an_output_folder_that_is_a_file(start, place, tmp_path):
    (tmp_path / "out").write_text("mine")
    ended = start(
        "glue_trans.py", *flags(place, "glue_trans.py", output_dir=tmp_path / "out"), cwd=tmp_path
    )
    refused(ended, "glue_trans.py", f"--output_dir {tmp_path / 'out'}")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("script", ["glue_trans.py", "oneshot.py"])
@pytest.mark.parametrize("name", ["out", "out/deeper", 300 * "x"])
def test_a_place_that_cannot_be_written_to(start, place, tmp_path, script, name):
    (tmp_path / "out").write_text("mine")
    evaluating = {"do_train": None} if script == "glue_trans.py" else {}
    ended = start(
        script, *flags(place, script, output_dir=tmp_path / name, **evaluating), cwd=tmp_path
    )
    refused(ended, script, tmp_path / Path(name).parts[0])
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (
        tmp_path / "out"
    ).read_text() == "mine"


def test_continuing_what_was_never_begun(start, place, tmp_path):
    out = tmp_path / "deep" / "out"
    ended = start(
        "glue_trans.py",
        *flags(place, "glue_trans.py", output_dir=out, should_continue=True),
        cwd=tmp_path,
    )
    refused(ended, "glue_trans.py", "--should_continue", out)
    assert not out.parent.exists()


@pytest.mark.parametrize("script", ["LT_glue.py", "glue_trans.py"])
def test_a_loss_that_is_no_number_stops_the_run(start, place, tmp_path, script):
    out = tmp_path / "out"
    ended = start(
        script,
        *flags(place, script, output_dir=out, save_steps=4, learning_rate=1e30),
        cwd=tmp_path,
    )
    (line,) = ended.errors()
    assert ended.code == 2 and line.startswith(
        f"{script}: error: the loss is nan at step 2 of round 1 (training rows "
    )
    assert "lower --learning_rate" in line
    assert [p.name for p in out.iterdir() if p.name not in ("run.json", "events", ".lock")] == []


# ---- as users start them


@pytest.mark.parametrize(
    ("script", "given", "parts"),
    [
        ("LT_glue.py", {"task_name": "MRPCC"}, ["did you mean mrpc?"]),
        ("glue_trans.py", {"mask_dir": "no/mask.pt"}, ["no/mask.pt: no such mask file"]),
    ],
)
def test_processes_started_afresh(place, tmp_path, script, given, parts):
    ended = launch.fresh(
        script, *flags(place, script, output_dir=tmp_path / "out", **given), cwd=tmp_path
    )
    refused(ended, script, *parts)
    assert ended.out == "" and list(tmp_path.iterdir()) == []
