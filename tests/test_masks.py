"""Masks: which weights, exact selection, one mask a matrix, exact rewinds, and files that are what they say or refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig

from utils import masks, models, selection
from utils.errors import UserError
from utils.optim import ReleasedAdamW
from utils.rows import Rows, pack

CLASSES = (models.SequenceClassifier, models.QuestionAnswerer, models.MaskedLanguageModel)
QUERY = "bert.encoder.layer.0.attention.self.query.weight_mask"
SAMPLES = [1, 3, 509]  # every so many-th value is looked at first: all, some, often none


def tiny_config(layers=2, width=8):
    config = BertConfig(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=3 * width,
        max_position_embeddings=16,
    )
    config._attn_implementation = "packed_rows"
    return config


def tiny_model(cls=models.SequenceClassifier, layers=2, width=8, seed=0):
    return models.load_model(cls, None, tiny_config(layers, width), seed, "rand")


@pytest.fixture
def model():
    return tiny_model()


def forward(model):
    """The classifier's output for two rows."""
    rows = Rows.from_lists([[2, 5, 6, 3], [2, 7, 3]], [[0] * 4, [0] * 3])
    batch = pack(rows, np.arange(2))
    return model.classifier(models.pool(model.bert, models.encode(model.bert, batch), batch.first))


def train(model, steps, weight_decay=0.0):
    model.eval()  # no dropout: the same every time
    optimizer = ReleasedAdamW(model, 1e-2, 1e-8, weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model).square().sum().backward()
        optimizer.step()


def originals(model):
    """The trained values of every prunable matrix of a masked model."""
    return {name: module.weight_orig.detach() for name, module in masks.prunable(model).items()}


def dropped(mask):
    return sum(int((~m).sum()) for m in mask.values())


def total(mask):
    return sum(m.numel() for m in mask.values())


def sorted_out(values, count, kept=None):
    """By a plain stable sort of everything: the mask without the `count` smallest; those masked already go first."""
    sizes = np.concatenate([v.abs().numpy().ravel() for v in values.values()])
    if kept:
        sizes[~np.concatenate([k.numpy().ravel() for k in kept.values()])] = -1
    keep = np.ones(len(sizes), bool)
    keep[np.argsort(sizes, kind="stable")[:count]] = False
    pieces = torch.split(torch.from_numpy(keep), [v.numel() for v in values.values()])
    return {
        name + masks.SUFFIX: piece.view(v.shape)
        for (name, v), piece in zip(values.items(), pieces, strict=True)
    }


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


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
    assert (
        list(masks.current(model))[0] == QUERY
        and list(masks.current(model))[-1] == "bert.pooler.dense.weight_mask"
    )
    buffers = {name for name, _ in model.named_buffers() if name.endswith("_mask")}
    assert buffers == set(masks.current(model))
    plain = {name for name, _ in tiny_model().named_parameters()}
    assert {name.replace("weight_orig", "weight") for name, _ in model.named_parameters()} == plain


# ---- selection


def exact_values():
    tricky = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1.1754942e-38,
        1.1754944e-38,
        0.5,
        -0.5,
        0.50000006,
        1.0,
        3.4028235e38,
    ]
    number = st.one_of(
        st.sampled_from(tricky), st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
    return st.lists(st.lists(number, min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(exact_values(), st.data())
def test_selection_equals_a_plain_sort(matrices, data):
    values = {str(at): torch.tensor(row, dtype=torch.float32) for at, row in enumerate(matrices)}
    size = sum(v.numel() for v in values.values())
    kept = {
        name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(v), max_size=len(v))))
        for name, v in values.items()
    }
    kept = data.draw(st.sampled_from([None, kept]))
    dead = sum(int((~k).sum()) for k in kept.values()) if kept else 0
    count = data.draw(st.integers(dead, size))
    expected = sorted_out(values, count, kept)
    for every in SAMPLES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "SAMPLE_EVERY", every)
            assert equal(masks.magnitude(values, count / size, kept), expected)


@pytest.mark.parametrize("every", SAMPLES)
def test_selection_on_many_values(monkeypatch, every):
    monkeypatch.setattr(selection, "SAMPLE_EVERY", every)
    draw = torch.Generator().manual_seed(0)
    values = {
        "a": torch.randn(300, 200, generator=draw),
        "b": torch.randn(50_000, generator=draw).round(decimals=2),
        "c": torch.randn(1000, 3, generator=draw) * 1e-40,
    }
    for target in (0.0, 0.001, 0.1, 0.5, 0.9, 1.0):
        assert equal(masks.magnitude(values, target), sorted_out(values, round(target * 113_000)))


@pytest.mark.parametrize("odd", [100.0, 1e-6])
def test_a_sample_that_misleads_changes_nothing(odd):
    values = {"a": torch.randn(257 * 40, generator=torch.Generator().manual_seed(1))}
    values["a"][:: selection.SAMPLE_EVERY] *= odd
    for target in (0.2, 0.5, 0.9):
        assert equal(masks.magnitude(values, target), sorted_out(values, round(target * 257 * 40)))


@pytest.mark.parametrize("target", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1.0])
def test_counts_are_exact_where_all_weights_are_equal(target):
    values = {"a": torch.full((7, 5), 0.25), "b": torch.full((3, 11), -0.25)}
    mask = masks.magnitude(values, target)
    keep = torch.cat([m.flatten() for m in mask.values()])
    count = round(target * 68)
    assert keep.tolist() == [False] * count + [True] * (
        68 - count
    )  # ties fall in the order of matrices and entries
    assert masks.sparsity(mask) == count / 68


def test_ties_across_matrices_fall_in_order_after_all_smaller_ones():
    values = {"a": torch.tensor([2.0, 1.0, -1.0, 3.0]), "b": torch.tensor([0.5, 1.0, -1.0, 4.0])}
    mask = masks.magnitude(values, 4 / 8)
    assert [m.tolist() for m in mask.values()] == [
        [True, False, False, True],
        [False, False, True, True],
    ]


def test_a_second_prune_takes_the_smallest_of_those_alive_and_revives_none(model):
    masks.attach(model)
    before = masks.current(model)
    for target in (0.1, 0.2, 0.5, 0.9):
        train(model, 1)
        kept = {name: before[name + masks.SUFFIX] for name in masks.prunable(model)}
        expected = sorted_out(originals(model), round(target * total(before)), kept)
        masks.prune_to(model, target)
        after = masks.current(model)
        assert equal(after, expected) and dropped(after) == round(target * total(after))
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
    expected = sorted_out(originals(model), round(0.5 * total(masks.current(model))))
    masks.prune_to(model, 0.5)
    assert equal(masks.current(model), expected)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("every", SAMPLES)
@pytest.mark.parametrize("by_numpy", [True, False])
def test_weights_that_are_no_numbers_are_refused_by_name(monkeypatch, by_numpy, every, wrong):
    monkeypatch.setattr(selection, "SAMPLE_EVERY", every)
    monkeypatch.setattr(selection, "_by_numpy", lambda _: by_numpy)
    values = {"first": torch.ones(4), "second": torch.tensor([1.0, wrong, 2.0])}
    with pytest.raises(UserError, match="second.weight holds NaN or infinite values"):
        masks.magnitude(values, 0.5)


# ---- one mask a matrix


def test_rounds_add_no_masks_hooks_or_containers(model):
    masks.attach(model)
    modules = masks.prunable(model)
    places = [m.weight_mask.data_ptr() for m in modules.values()]
    hooks = [tuple(m._forward_pre_hooks.items()) for m in modules.values()]
    names = sorted(model.state_dict())
    theta = masks.snapshot(model)
    for step in range(1, 10):
        masks.prune_to(model, step / 10)
        masks.rewind(model, theta)
        forward(model)
    masks.assign(model, masks.random({n: m.weight.shape for n, m in modules.items()}, 0.5, 1))
    assert [m.weight_mask.data_ptr() for m in modules.values()] == places
    assert [tuple(m._forward_pre_hooks.items()) for m in modules.values()] == hooks
    assert all(len(h) == 1 and type(h[0][1]) is prune.CustomFromMask for h in hooks)
    assert sorted(model.state_dict()) == names


# ---- random masks


SHAPES = {"a": torch.Size([3, 5]), "b": torch.Size([10])}


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.7, 0.98, 1.0])
def test_a_random_mask_has_the_exact_count(target):
    mask = masks.random(SHAPES, target, seed=3)
    assert {key: m.shape for key, m in mask.items()} == {
        n + masks.SUFFIX: s for n, s in SHAPES.items()
    }
    assert dropped(mask) == round(target * 25)


def test_random_masks_are_seeded():
    assert equal(masks.random(SHAPES, 0.5, 3), masks.random(SHAPES, 0.5, 3))
    assert not equal(masks.random(SHAPES, 0.5, 3), masks.random(SHAPES, 0.5, 4))


def test_every_weight_and_pair_is_as_likely_to_be_dropped():
    draws = 3000
    drops = np.stack(
        [
            1
            - np.concatenate([m.numpy().ravel() for m in masks.random(SHAPES, 0.4, seed).values()])
            for seed in range(draws)
        ]
    )
    p, pair = 10 / 25, 10 * 9 / (25 * 24)
    assert np.abs(drops.mean(0) - p).max() < 4.5 * (p * (1 - p) / draws) ** 0.5
    together = (drops.T @ drops / draws)[np.triu_indices(25, 1)]
    assert np.abs(together - pair).max() < 5 * (pair * (1 - pair) / draws) ** 0.5


# ---- rewinding


def test_a_rewind_is_exact_bit_for_bit_and_weight_follows_at_the_next_forward(model):
    masks.attach(model)
    theta = masks.snapshot(model)
    kept = {name: value.clone() for name, value in theta.items()}
    train(model, 3)
    masks.prune_to(model, 0.6)
    assert not any(
        torch.equal(p, theta[n]) for n, p in model.named_parameters() if n.endswith("weight_orig")
    )
    masks.rewind(model, theta)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters()), (
        "the snapshot is a copy, not an alias"
    )
    forward(model)
    for name, module in masks.prunable(model).items():
        assert torch.equal(module.weight, module.weight_mask * kept[f"{name}.weight_orig"])
        assert (module.weight == 0).sum() >= (~masks.current(model)[name + masks.SUFFIX]).sum()


def test_a_rewind_of_the_encoder_leaves_the_head(model):
    masks.attach(model)
    theta = masks.snapshot(model)
    train(model, 2)
    trained = masks.snapshot(model)
    masks.rewind(model, theta, prefix="bert.")
    for name, parameter in model.named_parameters():
        source = theta if name.startswith("bert.") else trained
        assert torch.equal(parameter, source[name])
    assert not torch.equal(trained["classifier.weight"], theta["classifier.weight"])


def test_with_weight_decay_masked_weights_drift_but_the_sparsity_after_training_stays(model):
    masks.attach(model)
    masks.prune_to(model, 0.7)
    mask, before = masks.current(model), masks.snapshot(model)
    train(model, 5, weight_decay=0.5)
    name = QUERY.removesuffix("_mask")
    masked = ~mask[QUERY]
    assert (model.get_parameter(f"{name}_orig")[masked] != before[f"{name}_orig"][masked]).any()
    assert equal(masks.current(model), mask)
    state = masks.dense_state(model)
    zeros = sum(int((state[f"{n}.weight"] == 0).sum()) for n in masks.prunable(model))
    assert zeros == dropped(mask) == round(0.7 * total(mask))


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
    rows = pack(Rows.from_lists([[2, 5, 6, 3], [2, 7, 3]], [[0] * 4, [0] * 3]), np.arange(2))
    for network in (model, plain):
        network.eval()
    assert torch.equal(models.encode(model.bert, rows), models.encode(plain.bert, rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_matrix_is_lost_from_the_plain_model_and_selection_is_the_same(model):
    names = set(model.state_dict())
    expected = masks.magnitude(masks.weights(model), 0.5)
    model.cuda()
    masks.attach(model)
    masks.prune_to(model, 0.5)
    assert set(masks.dense_state(model)) == names
    assert equal(masks.current(model), expected)


# ---- files


@pytest.fixture
def shapes(model):
    return {name: module.weight.shape for name, module in masks.prunable(model).items()}


@pytest.fixture
def mask(shapes):
    return masks.random(shapes, 0.5, seed=1)


def saved(tmp_path, content, name="mask.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_a_mask_is_saved_as_bool_with_its_origin_beside_it_and_loads_again(tmp_path, mask, shapes):
    sha256 = masks.save(
        {key: m.float() for key, m in mask.items()},
        tmp_path / "deep" / "mask.pt",
        {"method": "random"},
    )
    written = torch.load(tmp_path / "deep" / "mask.pt", weights_only=True)
    assert equal(written, mask) and all(m.dtype == torch.bool for m in written.values())
    origin = {"method": "random", "sparsity": round(masks.sparsity(mask), 9), "mask_sha256": sha256}
    assert models.read_info(tmp_path / "deep" / "mask.pt") == origin
    assert sha256 == masks.digest(masks.load(tmp_path / "deep" / "mask.pt", shapes))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["mask.pt", "mask.pt.json"]


def test_the_same_mask_gives_the_same_bytes(tmp_path, mask):
    for name in ("one", "other"):
        masks.save(mask, tmp_path / name / "mask.pt", {})
    assert (tmp_path / "one/mask.pt").read_bytes() == (tmp_path / "other/mask.pt").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.float32, torch.float16, torch.int64, torch.uint8, torch.float64]
)
def test_masks_of_any_number_type_load_as_bool(tmp_path, mask, shapes, dtype):
    path = saved(tmp_path, {key: m.to(dtype) for key, m in reversed(mask.items())})
    assert equal(masks.load(path, shapes), mask)
    assert masks.digest({key: m.to(dtype) for key, m in mask.items()}) == masks.digest(mask)


def test_the_digest_tells_masks_apart(mask):
    other = {**mask, QUERY: ~mask[QUERY]}
    moved = {**mask, QUERY: mask[QUERY].flip(0)}
    turned = {**mask, QUERY: mask[QUERY].reshape(-1, 2)}
    assert len({masks.digest(m) for m in (mask, other, moved, turned)}) == 4


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def with_value(value):
    def spoil(mask):
        spoilt = mask[QUERY].float()
        spoilt[1, 2] = value
        return {**mask, QUERY: spoilt}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda m: {k: v for k, v in m.items() if k != QUERY},
            f"key {QUERY} is missing \\(1 in all\\)",
        ),
        (
            lambda m: {**m, "bert.encoder.layer.2.weight_mask": m[QUERY]},
            "unexpected key bert.encoder.layer.2.weight_mask",
        ),
        (
            lambda m: {**m, QUERY: m[QUERY][:-1]},
            f"{QUERY} has shape \\(7, 8\\), this model needs \\(8, 8\\)",
        ),
        (with_value(0.5), f"{QUERY} holds 0.5 at entry 10; a mask holds 0 and 1 only"),
        (with_value(2), f"{QUERY} holds 2.0 at entry 10"),
        (with_value(-1), f"{QUERY} holds -1.0 at entry 10"),
        (with_value(float("nan")), f"{QUERY} holds nan at entry 10"),
        (lambda m: {}, "holds a dict of tensors"),
        (lambda m: list(m.values()), "holds a dict of tensors, this one holds list"),
        (lambda m: m[QUERY], "holds a dict of tensors, this one holds Tensor"),
        (lambda m: {**m, "epoch": 3}, "key 'epoch' does not name a tensor"),
        (lambda m: {**m, 7: m[QUERY]}, "key 7 does not name a tensor"),
        (lambda m: {**m, QUERY: Exploit()}, "not a mask file of tensors only; refused"),
    ],
    ids=[
        "missing",
        "unexpected",
        "shape",
        "half",
        "two",
        "minus one",
        "nan",
        "empty dict",
        "list",
        "tensor",
        "number",
        "number as key",
        "pickle that runs code",
    ],
)
def test_a_wrong_mask_file_is_refused_with_file_and_key(
    tmp_path, monkeypatch, mask, shapes, spoil, message
):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, spoil(mask))
    with pytest.raises(UserError, match=message) as error:
        masks.load(path, shapes)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: None, "no such mask file"),
        (lambda whole: b"", "the mask file is empty"),
        (lambda whole: whole[: len(whole) // 2], "cut short or damaged"),
        (lambda whole: whole[:-1], "cut short or damaged"),
        (lambda whole: whole[:20], "damaged|refused"),
        (lambda whole: b"round 1: 10 %\n", "refused|damaged"),
        (lambda whole: pickle.dumps(Exploit()), "refused|damaged"),
    ],
    ids=[
        "absent",
        "empty",
        "half",
        "last byte gone",
        "20 bytes",
        "text",
        "bare pickle that runs code",
    ],
)
def test_a_damaged_mask_file_is_refused(tmp_path, monkeypatch, mask, shapes, content, message):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, mask)
    spoilt = content(path.read_bytes())
    path.unlink() if spoilt is None else path.write_bytes(spoilt)
    with pytest.raises(UserError, match=message) as error:
        masks.load(path, shapes)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert "weights_only" not in str(error.value) and not (tmp_path / "executed").exists()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, mask):
    masks.save(mask, tmp_path / "mask.pt", {})
    before = (tmp_path / "mask.pt").read_bytes()

    def cut_short(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        masks.save({key: ~m for key, m in mask.items()}, tmp_path / "mask.pt", {})
    assert (tmp_path / "mask.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.pt", "mask.pt.json"]
