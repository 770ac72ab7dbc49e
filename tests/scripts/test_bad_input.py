"""Wrong data, masks, weights and models: exit code 2, one line that names them, no output."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from refusals import assert_refused, check, flags, halve

QUERY = "bert.encoder.layer.0.attention.self.query.weight"

# ---- data


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        (
            "SST-2/train.tsv",
            b"sentence\tlabel\na fine day\t1\na day\n",
            ["train.tsv row 3", "1 columns instead of 2"],
        ),
        (
            "SST-2/dev.tsv",
            b"sentence\tlabel\na fine day\tgood\n",
            ["dev.tsv row 2", "'good'", "0, 1"],
        ),
        (
            "STS-B/train.tsv",
            b"sentence1\tsentence2\tscore\na\tb\tclose\n",
            ["train.tsv row 2", "'close'", "number"],
        ),
        ("SST-2/train.tsv", b"", ["train.tsv", "empty"]),
        ("SST-2/train.tsv", b"text\tlabel\na\t1\n", ["train.tsv row 1", "'sentence'"]),
        ("SST-2/train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n", ["train.tsv row 2", "not UTF-8"]),
        (
            "CoLA/train.tsv",
            b"gj04\t1\t\tA day .\ngj04\t1\tA day .\n",
            ["train.tsv row 2", "3 columns instead of 4"],
        ),
        ("SST-2/dev.tsv", None, ["dev.tsv", "no such file", "--data_dir"]),
    ],
    ids=[
        *("row too short", "unknown label", "no number", "empty", "wrong header", "not UTF-8"),
        *("no header", "no file"),
    ],
)
def test_malformed_data(offline_start, good_inputs, tmp_path, file, content, parts):
    task, name = file.split("/")
    data = shutil.copytree(good_inputs / task, tmp_path / "data")
    (data / name).unlink() if content is None else (data / name).write_bytes(content)
    given = {"task_name": task, "data_dir": data}
    check(offline_start, good_inputs, tmp_path, "LT_glue.py", parts, **given)


# ---- masks and weights


def change_first_value(path, value):
    tensors = torch.load(path, weights_only=True)
    key = next(iter(tensors))
    tensors[key] = tensors[key].float()
    tensors[key][0, 0] = value
    torch.save(tensors, path)


CORRUPTIONS = {
    "missing": (lambda path: path.unlink(), ["no such"]),
    "empty": (lambda path: path.write_bytes(b""), ["truncated or corrupt"]),
    "truncated": (halve, ["truncated or corrupt"]),
    "text": (lambda path: path.write_text("a mask\n"), []),
    "NaN": (lambda path: change_first_value(path, float("nan")), [QUERY, "nan"]),
    "infinite": (lambda path: change_first_value(path, float("inf")), [QUERY, "inf"]),
}


@pytest.mark.parametrize("kind", ["mask", "weights"])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupt_mask_and_weight_files(offline_start, good_inputs, tmp_path, kind, corruption):
    path = Path(shutil.copy(good_inputs / f"{kind}2.pt", tmp_path / "file.pt"))
    corrupt, parts = CORRUPTIONS[corruption]
    corrupt(path)
    flag = {"mask": "mask_dir", "weights": "weight_pertub"}[kind]
    given = {flag: path}
    line = check(offline_start, good_inputs, tmp_path, "glue_trans.py", [f"{path}: "], **given)
    assert all(part in line.lower() for part in parts), line


MISSING_LAYER = "bert.encoder.layer.2."


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"mask_dir": "mask3.pt"},
            [f"mask3.pt: unexpected key {MISSING_LAYER}", "another architecture"],
        ),
        (
            {"mask_dir": "mask2.pt", "model_name_or_path": "bert"},
            ["mask2.pt", "has shape (16, 16)", "(32, 32)"],
        ),
        (
            {"mask_dir": "mask2.pt", "model_name_or_path": "bert3"},
            [f"mask2.pt: key {MISSING_LAYER}", "is missing"],
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
            [f"weights2.pt: key {MISSING_LAYER}", "is missing"],
        ),
        ({"weight_pertub": "mask2.pt"}, ["mask2.pt: key bert.encoder.layer.0.", "is missing"]),
    ],
    ids=[
        *("more layers", "another width", "fewer layers", "weights as mask"),
        *("weights of another width", "weights of fewer layers", "mask as weights"),
    ],
)
def test_masks_and_weights_of_another_architecture(
    offline_start, good_inputs, tmp_path, given, parts
):
    given = {name: good_inputs / value for name, value in given.items()}
    check(offline_start, good_inputs, tmp_path, "glue_trans.py", parts, **given)


def test_a_mask_with_a_wrong_value(offline_start, good_inputs, tmp_path):
    path = Path(shutil.copy(good_inputs / "mask2.pt", tmp_path / "mask.pt"))
    change_first_value(path, 0.5)
    parts = [f"{path}: {QUERY}_mask holds 0.5"]
    check(offline_start, good_inputs, tmp_path, "glue_trans.py", parts, mask_dir=path)


# ---- models


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def lengthen_vocabulary(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.writelines(f"word{number}\n" for number in range(9))


@pytest.mark.parametrize(
    ("corrupt", "parts"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            ["no file named model.safetensors"],
        ),
        (lambda folder: (folder / "vocab.txt").unlink(), ["no vocab.txt"]),
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["cannot be loaded"]),
        (lambda folder: halve(folder / "model.safetensors"), ["cannot be loaded"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), ["cannot be loaded"]),
        (lambda folder: change_config(folder, num_hidden_layers=3), [MISSING_LAYER, "missing"]),
        (
            lambda folder: change_config(folder, num_hidden_layers=1),
            ["unexpected encoder weight", "layer.1."],
        ),
        (
            lambda folder: change_config(folder, intermediate_size=48),
            ["bert.encoder.layer.0.intermediate", "shape"],
        ),
        (
            lengthen_vocabulary,
            [f"{len(tiny.VOCABULARY) + 9} WordPieces", f"only {len(tiny.VOCABULARY)}"],
        ),
        (shutil.rmtree, ["no such model folder", "--model_name_or_path"]),
    ],
    ids=[
        *("no weights", "no vocabulary", "no configuration", "half a configuration"),
        *("half the weights", "empty weights", "too few layers", "too many layers"),
        *("another width", "vocabulary too large", "no folder"),
    ],
)
def test_incomplete_and_corrupt_model_folders(offline_start, good_inputs, tmp_path, corrupt, parts):
    bert = shutil.copytree(good_inputs / "bert2", tmp_path / "model")
    corrupt(bert)
    given = {"model_name_or_path": bert}
    check(offline_start, good_inputs, tmp_path, "glue_trans.py", parts, **given)


def test_a_hub_name_without_a_network(offline_start, good_inputs, tmp_path):
    given = {"model_name_or_path": "bert-base-uncased", "output_dir": tmp_path / "out"}
    command = flags(good_inputs, "glue_trans.py", **given)
    ended = offline_start("glue_trans.py", *command, cwd=tmp_path, sleepless=True)
    remedy = "a local folder with config.json, model weights and vocab.txt"
    parts = ["bert-base-uncased", f"give --model_name_or_path {remedy}"]
    assert_refused(ended, "glue_trans.py", *parts)
    assert list(tmp_path.iterdir()) == []


def test_one_shot_pruning_of_weights_that_are_not_finite(offline_start, good_inputs, tmp_path):
    from safetensors.torch import load_file, save_file

    name = "bert.encoder.layer.1.output.dense.weight"
    bert = shutil.copytree(good_inputs / "bert2", tmp_path / "model")
    weights = load_file(bert / "model.safetensors")
    weights[name][3, 3] = float("nan")
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    given = {"model_name_or_path": bert}
    check(offline_start, good_inputs, tmp_path, "oneshot.py", [name, "NaN"], **given)
