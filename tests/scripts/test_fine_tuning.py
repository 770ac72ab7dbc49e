"""glue_trans.py: training a ticket, the dense baseline, random and perturbed weights."""

import json
import shutil

import glue_runs
import launch
import pytest
import tiny
import torch
from glue_runs import MODEL_FILES, PEAK, ROW, command, dropped, evaluation, same, zeros
from launch import done, results, run
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from utils.modeling import bert
from utils.pruning import mask_files, masks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


@pytest.fixture(scope="module")
def imp(tmp_path_factory):
    """The output folder of an IMP run on STS-B; its masks are at steps 4, 8, ..., 36."""
    return glue_runs.find_nine_tickets(tmp_path_factory)[0]


def test_a_mask_of_imp_on_pre_trained_weights(data, imp, tmp_path, steps):
    path, out = imp / "checkpoint-20" / "mask.pt", tmp_path / "out"
    mask = torch.load(path, weights_only=True)
    flags = ["--dir", "pre", "--mask_dir", path, "--max_steps", 3]
    printed = done("glue_trans.py", *command(data, out, *flags))
    pre_trained = load_file(data / "bert" / "model.safetensors")
    for name, value in steps[0]["weights"].items():
        if name.startswith("bert."):
            assert torch.equal(value, pre_trained[name])
    assert all(torch.equal(steps[0]["mask"][key], mask[key]) for key in mask)
    assert [step["rate"] for step in steps] == pytest.approx([PEAK, PEAK * 2 / 3, PEAK / 3])
    (row,) = results(out)
    assert set(row) == ROW
    assert (row["method"], row["init"], row["step"], row["round"]) == ("train", "pre", 3, None)
    of_mask = (row["sparsity"], row["mask"], row["mask_sha256"])
    assert of_mask == (0.5, str(path), masks.digest(mask))
    assert row["mask_info"] == json.loads((path.parent / "mask.pt.json").read_text())
    assert zeros(out, mask) == (dropped(mask), True)
    records = {"results.jsonl", "eval_results.txt", "all_results.json"}
    records |= {"events", "run.json", ".lock", "predictions_.npz"}
    assert {p.name for p in out.iterdir()} == MODEL_FILES | records
    assert printed.splitlines()[2].split()[:2] == ["3", "50.0%"]


def test_the_dense_baseline_and_its_saved_models(data, tmp_path):
    out = tmp_path / "out"
    flags = ["--dir", "pre", "--max_steps", 5, "--save_steps", 2, "--eval_all_checkpoints"]
    flags += ["--evaluate_during_training", "--logging_steps", 5]
    done("glue_trans.py", *command(data, out, *flags))
    keys = ("step", "final", "sparsity", "mask")
    assert [tuple(row[key] for key in keys) for row in results(out)] == [
        (2, False, 0.0, None),
        (4, False, 0.0, None),
        (5, True, 0.0, None),
    ]
    checkpoints = sorted(p.name for p in out.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]
    model = BertForSequenceClassification.from_pretrained(out)
    saved = load_file(out / "model.safetensors")
    assert torch.equal(model.classifier.weight, saved["classifier.weight"])


HUGGING_FACE = {  # name there -> name here
    "--per_device_train_batch_size": "--per_gpu_train_batch_size",
    "--per_device_eval_batch_size": "--per_gpu_eval_batch_size",
    "--use_cpu": "--no_cuda",
    "--torch_compile": "--compile",
}


def test_names_of_hugging_face_mean_the_same_run(data, tmp_path):
    flags = ["--dir", "pre", "--max_steps", 2, "--per_gpu_eval_batch_size", 4]
    words = command(data, tmp_path / "out", *flags)
    done("glue_trans.py", *words)
    theirs = {ours: name for name, ours in HUGGING_FACE.items()} | {"STS-B": "stsb"}
    (note,) = run("glue_trans.py", *(theirs.get(word, word) for word in words)).notes()
    assert "this run is finished" in note and len(results(tmp_path / "out")) == 1
    (row,) = results(tmp_path / "out")
    assert row["args"]["per_gpu_train_batch_size"] == 8 and row["args"]["no_cuda"] is True


@pytest.mark.parametrize(("given", "recorded"), [("0.5", 0.5), ("2.0", 2), ("2", 2), ("0.0", 0)])
def test_warm_up_steps_or_a_share_of_all(data, tmp_path, steps, given, recorded):
    flags = ["--dir", "pre", "--max_steps", 4, "--warmup_steps", given]
    done("glue_trans.py", *command(data, tmp_path / "out", *flags))
    (row,) = results(tmp_path / "out")
    assert json.dumps(row["args"]["warmup_steps"]) == json.dumps(recorded)
    expected = [0, PEAK / 2, PEAK, PEAK / 2] if recorded else [PEAK * k / 4 for k in (4, 3, 2, 1)]
    assert [step["rate"] for step in steps] == pytest.approx(expected)


def test_the_help_lists_the_names_of_hugging_face():
    text = done("glue_trans.py", "--help")
    assert all(name in text for pair in HUGGING_FACE.items() for name in pair)


@pytest.mark.parametrize(("flags", "expected"), [((), 5), (("--as_released",), 6)])
def test_max_steps_is_exact_and_one_more_as_released(data, tmp_path, steps, flags, expected):
    flags = ["--dir", "pre", "--max_steps", 5, *flags]
    done("glue_trans.py", *command(data, tmp_path / "out", *flags))
    assert len(steps) == expected and results(tmp_path / "out")[-1]["step"] == expected
    rates = [PEAK * (5 - at) / 5 for at in range(5)]
    assert [step["rate"] for step in steps[:5]] == pytest.approx(rates)


def test_an_epoch_includes_the_last_short_batch(data, tmp_path, steps):
    flags = ["--dir", "pre", "--num_train_epochs", 2, "--gradient_accumulation_steps", 1]
    flags += ["--per_gpu_train_batch_size", 16]
    done("glue_trans.py", *command(data, tmp_path / "out", *flags))
    assert [len(step["rows"]) for step in steps] == [16, 16, 8] * 2
    assert sorted(row for step in steps[:3] for row in step["rows"]) == list(range(40))


def test_random_weights_depend_on_the_seed_and_not_on_the_model(data, tmp_path, steps):
    other = tiny.bert(tmp_path / "other", seed=5)
    flags = ["--dir", "rand", "--max_steps", 1]
    done("glue_trans.py", *command(data, tmp_path / "one", *flags))
    done("glue_trans.py", *command(data, tmp_path / "two", *flags, "--model_name_or_path", other))
    done("glue_trans.py", *command(data, tmp_path / "three", *flags, "--seed", 1))
    done("glue_trans.py", *command(data, tmp_path / "pre", "--dir", "pre", "--max_steps", 1))
    one, two, three, pre = (step["weights"] for step in steps)
    assert same(one, two)
    assert not same(one, three, "bert.encoder") and not same(one, pre, "bert.encoder")
    assert same(one, pre, "classifier")  # gamma_0 depends on the seed, not on the encoder
    assert [results(tmp_path / name)[0]["init"] for name in ("one", "pre")] == ["rand", "pre"]


def test_perturbed_weights_replace_the_encoder(data, tmp_path, steps):
    file = tmp_path / "w.pt"
    flags = ["--mode", "elements", "--model_name_or_path", data / "bert", "--output", file]
    done("pertub_weight.py", *flags)
    flags = ["--weight_pertub", file, "--max_steps", 1]
    done("glue_trans.py", *command(data, tmp_path / "out", "--dir", "pre", *flags))
    weights = torch.load(file, weights_only=True)
    pre_trained = load_file(data / "bert" / "model.safetensors")
    for name, value in steps[0]["weights"].items():
        if name.startswith("bert."):
            assert torch.equal(value, weights.get(name, pre_trained[name])), name
    pooler = "bert.pooler.dense.weight"
    assert not torch.equal(weights[pooler], pre_trained[pooler])
    row = results(tmp_path / "out")[0]
    assert row["init"] == "elements" and row["init_info"]["mode"] == "elements"
    done("glue_trans.py", *command(data, tmp_path / "mix", "--dir", "rand", *flags))
    # its embeddings are random: not theta_0
    assert results(tmp_path / "mix")[0]["init"] == "rand+elements"


def test_the_origin_of_another_mask_is_not_recorded(data, imp, tmp_path):
    path = tmp_path / "mask.pt"
    flags = ["--weight", "pre", "--model", "glue", "--rate", 0.5]
    flags += ["--model_name_or_path", data / "bert", "--output_dir", tmp_path]
    done("oneshot.py", *flags)
    shutil.copy(imp / "checkpoint-20" / "mask.pt.json", tmp_path)
    flags = ["--dir", "pre", "--mask_dir", path]
    ended = launch.run(
        "glue_trans.py", *evaluation(data, tmp_path / "out", *flags, model=imp / "checkpoint-4")
    )
    (warning,) = ended.errors()
    assert ended.code == 0 and warning.startswith(f"warning: {path}.json: ")
    row = results(tmp_path / "out")[0]
    digest = masks.digest(torch.load(path, weights_only=True))
    assert row["mask_info"] is None and row["mask_sha256"] == digest


def test_masks_transfer_between_tasks_and_scripts(data, imp, tmp_path):
    path = imp / "checkpoint-28" / "mask.pt"
    flags = ["--dir", "pre", "--mask_dir", path, "--max_steps", 1]
    done("glue_trans.py", *command(data, tmp_path / "out", *flags, task="MRPC"))
    row = results(tmp_path / "out")[0]
    assert (row["task"], row["mask_info"]["task"]) == ("mrpc", "sts-b")
    assert round(row["sparsity"], 3) == 0.7
    source = str(data / "bert")
    config = bert.load_config(source)
    for cls in (bert.QuestionAnswerer, bert.MaskedLanguageModel):
        model = bert.load_model(cls, source, config, 1)
        mask = mask_files.load(path, masks.shapes(model))
        assert masks.digest(mask) == row["mask_sha256"]
