"""Weights of a model folder: finite floats; a prefix and a missing pooler are accepted."""

import re

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertForQuestionAnswering

from utils.errors import UserError
from utils.modeling.bert import (
    MaskedLanguageModel,
    QuestionAnswerer,
    SequenceClassifier,
    check_trained,
    load_config,
    load_model,
)

CLASSES = (SequenceClassifier, QuestionAnswerer, MaskedLanguageModel)
NAME = "bert.encoder.layer.1.attention.self.key.bias"


@pytest.fixture
def source(tmp_path):
    return tiny.bert(tmp_path / "bert")


def load(source, cls=SequenceClassifier, seed=1):
    return load_model(cls, str(source), load_config(str(source)), seed)


def rewrite(source, change, file="model.safetensors"):
    """Apply `change` to the folder's weights; store them in `file`."""
    weights = load_file(source / "model.safetensors")
    weights = change(weights) or weights
    (source / "model.safetensors").unlink()
    if file == "model.safetensors":
        save_file(weights, source / file, metadata={"format": "pt"})
    else:
        torch.save(weights, source / file)
    return source


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
def test_a_prefix_of_all_weights_is_removed(source, prefix, file):
    expected = load(source, MaskedLanguageModel).state_dict()
    rewrite(source, lambda weights: {prefix + name: w for name, w in weights.items()}, file)
    found = load(source, MaskedLanguageModel)
    assert found.untrained == ()
    assert all(torch.equal(found.state_dict()[name], w) for name, w in expected.items())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", [NAME, "cls.predictions.bias", "bert.embeddings.LayerNorm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(source, file, name, value):
    def change(weights):
        weights[name][3] = value

    rewrite(source, change, file)
    with pytest.raises(UserError, match=f"{re.escape(str(source))}: .*holds NaN or infinite"):
        load(source, MaskedLanguageModel)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_a_type_that_is_no_float_are_refused(source, file, dtype):
    rewrite(source, lambda weights: weights.update({NAME: weights[NAME].to(dtype)}), file)
    with pytest.raises(UserError, match=f"{re.escape(str(source))}: .*{NAME} .*{dtype}"):
        load(source)


@pytest.mark.parametrize(
    "special",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
        lambda weight: weight.to(torch.complex64),
    ],
)
def test_special_tensors_are_refused_without_a_warning(source, special, recwarn):
    change = {NAME: special(load_file(source / "model.safetensors")[NAME])}
    rewrite(source, lambda weights: weights.update(change), "pytorch_model.bin")
    with pytest.raises(UserError, match=f"{re.escape(str(source))}: the model folder cannot"):
        load(source)
    assert not recwarn.list


@pytest.mark.parametrize("saved", [BertForMaskedLM, BertForQuestionAnswering])
def test_a_bert_without_pooler_gets_one_by_the_seed(source, tmp_path, saved, capsys):
    saved.from_pretrained(source).save_pretrained(tmp_path / "saved")
    capsys.readouterr()
    models = [load(tmp_path / "saved", cls) for cls in CLASSES]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("no pooler" in e and "seed 1" in e for e in errors)
    first, *others = [model.bert.pooler.dense for model in models]
    assert all(torch.equal(first.weight, pooler.weight) for pooler in others)
    assert (
        first.weight.detach().std().item() == pytest.approx(0.1, rel=0.2) and not first.bias.any()
    )
    other = load(tmp_path / "saved", seed=2).bert.pooler.dense
    assert not torch.equal(first.weight, other.weight)
    whole = [load(source, cls) for cls in CLASSES]  # every other weight is the same
    for model, expected in zip(models, whole, strict=True):
        for name, weight in expected.state_dict().items():
            if "pooler" not in name and not name.startswith(("qa_outputs", "cls.")):
                assert torch.equal(model.state_dict()[name], weight), name


def test_only_a_classifier_needs_a_trained_pooler(source, tmp_path):
    BertForMaskedLM.from_pretrained(source).save_pretrained(tmp_path / "saved")
    check_trained(load(tmp_path / "saved", MaskedLanguageModel), "folder")
    with pytest.raises(UserError, match=r"missing: bert.pooler.dense.bias, .*classifier.weight"):
        check_trained(load(tmp_path / "saved"), "folder")


def test_half_a_pooler_is_refused(source):
    rewrite(
        source, lambda weights: {k: w for k, w in weights.items() if k != "bert.pooler.dense.bias"}
    )
    with pytest.raises(UserError, match=r"bert.pooler.dense.bias is missing \(1 in all\)"):
        load(source)
