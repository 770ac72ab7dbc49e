"""Masks on a model: which weights, pruning, one mask per matrix, exact rewinds, the plain model."""

import numpy as np
import pytest
import torch
from small_models import (
    CLASSES,
    QUERY,
    count_dropped,
    count_weights,
    equal,
    mask_by_sorting,
    tiny_model,
)
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig

from benchmarks.baseline import make_rows
from utils.config import TrainingConfig
from utils.modeling import attention
from utils.modeling.packing import pack
from utils.pruning import criteria, masks
from utils.training.optimizer import PaperAdamW


@pytest.fixture
def model():
    return tiny_model()


def forward(model):
    """The classifier's output for two rows."""
    rows = make_rows([[2, 5, 6, 3], [2, 7, 3]], [[0] * 4, [0] * 3])
    batch = pack(rows, np.arange(2))
    return model.classifier(
        attention.pool(model.bert, attention.encode(model.bert, batch), batch.first)
    )


def train(model, steps, weight_decay=0.0):
    model.eval()  # no dropout: the same every time
    config = TrainingConfig(do_train=True, learning_rate=1e-2, weight_decay=weight_decay)
    optimizer = PaperAdamW(model, config)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model).square().sum().backward()
        optimizer.step()


def originals(model):
    """The trained values of every prunable matrix of a masked model."""
    return {name: module.weight_orig.detach() for name, module in masks.prunable(model).items()}


# ---- which weights


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("layers", "width"), [(1, 8), (2, 16), (3, 4), (12, 4)])
def test_prunable_are_the_linear_layers_of_encoder_and_pooler(cls, layers, width):
    model = tiny_model(cls, layers, width)
    found = masks.prunable(model)
    linear = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    expected = [
        f"bert.encoder.layer.{layer}.{name}" for layer in range(layers) for name in linear
    ] + ["bert.pooler.dense"]
    assert list(found) == expected and len(expected) == 6 * layers + 1
    assert all(
        type(module) is nn.Linear and model.get_submodule(name) is module
        for name, module in found.items()
    )
    assert (
        sum(m.weight.numel() for m in found.values()) == layers * (4 + 2 * 3) * width**2 + width**2
    )


def test_bert_base_has_73_matrices_and_85_524_480_weights_in_every_task():
    with torch.device("meta"):
        found = [masks.prunable(cls(BertConfig())) for cls in CLASSES]
    assert [len(f) for f in found] == [73, 73, 73]
    assert [sum(m.weight.numel() for m in f.values()) for f in found] == [85_524_480] * 3
    assert list(found[0]) == list(found[1]) == list(found[2])


def test_masks_are_named_as_the_released_code_names_them_and_nothing_else_is_pruned(model):
    masks.attach(model)
    masks.prune_to(model, 0.9)
    first, *_, last = masks.current(model)
    assert (first, last) == (QUERY, "bert.pooler.dense.weight_mask")
    buffers = {name for name, _ in model.named_buffers() if name.endswith("_mask")}
    assert buffers == set(masks.current(model))
    plain = {name for name, _ in tiny_model().named_parameters()}
    assert {name.replace("weight_orig", "weight") for name, _ in model.named_parameters()} == plain


# ---- pruning


def test_a_second_prune_drops_the_smallest_of_the_kept_weights_and_revives_none(model):
    masks.attach(model)
    before = masks.current(model)
    for target in (0.1, 0.2, 0.5, 0.9):
        train(model, 1)
        expected = mask_by_sorting(originals(model), round(target * count_weights(before)), before)
        masks.prune_to(model, target)
        after = masks.current(model)
        assert equal(after, expected) and count_dropped(after) == round(
            target * count_weights(after)
        )
        assert not any((after[key] & ~before[key]).any() for key in after)
        before = after


def test_a_masked_weight_that_grew_stays_masked(model):
    masks.attach(model)
    masks.prune_to(model, 0.3)
    before = masks.current(model)
    for name, module in masks.prunable(model).items():
        module.weight_orig.data[~before[name + masks.SUFFIX]] = 100.0
    masks.prune_to(model, 0.4)
    assert not any((masks.current(model)[key] & ~before[key]).any() for key in before)
    with pytest.raises(ValueError, match="masked already"):
        masks.prune_to(model, 0.1)


def test_the_current_weights_are_ranked_and_not_the_stale_ones(model):
    masks.attach(model)
    forward(model)
    with torch.no_grad():  # as an optimizer step does: `weight` changes only at the next forward
        for value in originals(model).values():
            value.copy_(1 / value)
    expected = mask_by_sorting(originals(model), round(0.5 * count_weights(masks.current(model))))
    masks.prune_to(model, 0.5)
    assert equal(masks.current(model), expected)


# ---- one mask per matrix


def test_rounds_add_no_masks_hooks_or_containers(model):
    masks.attach(model)
    modules = masks.prunable(model)
    addresses = [m.weight_mask.data_ptr() for m in modules.values()]
    hooks = [tuple(m._forward_pre_hooks.items()) for m in modules.values()]
    names = sorted(model.state_dict())
    theta = masks.snapshot(model)
    for step in range(1, 10):
        masks.prune_to(model, step / 10)
        masks.rewind(model, theta)
        forward(model)
    masks.assign(model, criteria.random({n: m.weight.shape for n, m in modules.items()}, 0.5, 1))
    assert [m.weight_mask.data_ptr() for m in modules.values()] == addresses
    assert [tuple(m._forward_pre_hooks.items()) for m in modules.values()] == hooks
    assert all(len(h) == 1 and type(h[0][1]) is prune.CustomFromMask for h in hooks)
    assert sorted(model.state_dict()) == names


# ---- rewinding


def test_a_rewind_is_exact_bit_for_bit_and_weight_follows_at_the_next_forward(model):
    masks.attach(model)
    theta = masks.snapshot(model)
    kept = {name: value.clone() for name, value in theta.items()}
    train(model, 3)
    masks.prune_to(model, 0.6)
    trained = masks.weights(model)
    assert not any(torch.equal(w, theta[f"{name}.weight"]) for name, w in trained.items())
    masks.rewind(model, theta)
    assert equal(masks.snapshot(model), kept), "the snapshot is a copy, not an alias"
    forward(model)
    for name, module in masks.prunable(model).items():
        assert torch.equal(module.weight, module.weight_mask * kept[f"{name}.weight"])
        assert (module.weight == 0).sum() >= (~masks.current(model)[name + masks.SUFFIX]).sum()


def test_a_rewind_of_the_encoder_leaves_the_head(model):
    masks.attach(model)
    theta = masks.snapshot(model)
    train(model, 2)
    trained = masks.snapshot(model)
    masks.rewind(model, theta, prefix="bert.")
    for name, value in masks.snapshot(model).items():
        source = theta if name.startswith("bert.") else trained
        assert torch.equal(value, source[name])
    assert not torch.equal(trained["classifier.weight"], theta["classifier.weight"])


def test_with_weight_decay_masked_weights_drift_but_the_sparsity_after_training_stays(model):
    masks.attach(model)
    masks.prune_to(model, 0.7)
    mask, before = masks.current(model), masks.snapshot(model)
    train(model, 5, weight_decay=0.5)
    name = QUERY.removesuffix("_mask")
    masked = ~mask[QUERY]
    assert (model.get_parameter(f"{name}_orig")[masked] != before[name][masked]).any()
    assert equal(masks.current(model), mask)
    state = masks.dense_state(model)
    zeros = sum(int((state[f"{n}.weight"] == 0).sum()) for n in masks.prunable(model))
    assert zeros == count_dropped(mask) == round(0.7 * count_weights(mask))


# ---- the plain model


@pytest.mark.parametrize("cls", CLASSES)
def test_dense_state_is_the_plain_model_that_computes_the_same(cls):
    model = tiny_model(cls)
    plain = tiny_model(cls, seed=1)
    names = set(plain.state_dict())
    masks.attach(model)
    masks.prune_to(model, 0.5)
    state = masks.dense_state(model)
    assert set(state) <= names and not any(key.endswith(("_orig", "_mask")) for key in state)
    missing = names - set(state)  # what is tied to a tensor that is there
    addresses = {plain.state_dict()[key].data_ptr() for key in state}
    assert all(plain.state_dict()[key].data_ptr() in addresses for key in missing)
    plain.load_state_dict(state, strict=False)
    rows = pack(make_rows([[2, 5, 6, 3], [2, 7, 3]], [[0] * 4, [0] * 3]), np.arange(2))
    for network in (model, plain):
        network.eval()
    assert torch.equal(attention.encode(model.bert, rows), attention.encode(plain.bert, rows))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_matrix_is_lost_from_the_plain_model_and_selection_is_the_same(model):
    names = set(model.state_dict())
    expected = criteria.magnitude(masks.weights(model), 0.5)
    model.cuda()
    masks.attach(model)
    masks.prune_to(model, 0.5)
    assert set(masks.dense_state(model)) == names
    assert equal(masks.current(model), expected)
