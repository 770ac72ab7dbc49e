"""Criteria: the exact k smallest magnitudes over all matrices, and uniform random masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import count_dropped, equal, mask_by_sorting

from utils.errors import UserError
from utils.pruning import criteria, masks, selection
from utils.pruning.masks import SUFFIX

SAMPLES = [1, 3, 509]  # sample all values, some, often none


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


@pytest.mark.parametrize("library", ["numpy", "torch"])  # torch: as on a GPU
@settings(max_examples=150, deadline=None)
@given(exact_values(), st.data())
def test_selection_equals_a_full_sort(library, matrices, data):
    values = {str(at): torch.tensor(row, dtype=torch.float32) for at, row in enumerate(matrices)}
    size = sum(v.numel() for v in values.values())
    kept = {
        name + SUFFIX: torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=len(v), max_size=len(v)))
        )
        for name, v in values.items()
    }
    kept = data.draw(st.sampled_from([None, kept]))
    dead = sum(int((~k).sum()) for k in kept.values()) if kept else 0
    count = data.draw(st.integers(dead, size))
    expected = mask_by_sorting(values, count, kept)
    for every in SAMPLES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "SAMPLE_EVERY", every)
            if library == "torch":
                patch.setattr(selection, "array", torch.Tensor.detach)
            assert equal(criteria.magnitude(values, count / size, kept), expected)


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
        assert equal(
            criteria.magnitude(values, target), mask_by_sorting(values, round(target * 113_000))
        )


@pytest.mark.parametrize("odd", [100.0, 1e-6])
def test_an_unrepresentative_sample_changes_nothing(odd):
    values = {"a": torch.randn(257 * 40, generator=torch.Generator().manual_seed(1))}
    values["a"][:: selection.SAMPLE_EVERY] *= odd
    for target in (0.2, 0.5, 0.9):
        assert equal(
            criteria.magnitude(values, target), mask_by_sorting(values, round(target * 257 * 40))
        )


@pytest.mark.parametrize("target", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1.0])
def test_counts_are_exact_if_all_weights_are_equal(target):
    values = {"a": torch.full((7, 5), 0.25), "b": torch.full((3, 11), -0.25)}
    mask = criteria.magnitude(values, target)
    keep = torch.cat([m.flatten() for m in mask.values()])
    count = round(target * 68)
    assert keep.tolist() == [False] * count + [True] * (
        68 - count
    )  # ties fall in the order of matrices and entries
    assert masks.sparsity(mask) == count / 68


def test_ties_across_matrices_fall_in_order_after_all_smaller_ones():
    values = {"a": torch.tensor([2.0, 1.0, -1.0, 3.0]), "b": torch.tensor([0.5, 1.0, -1.0, 4.0])}
    mask = criteria.magnitude(values, 4 / 8)
    assert [m.tolist() for m in mask.values()] == [
        [True, False, False, True],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("every", SAMPLES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_weights_that_are_not_finite_are_refused_by_name(monkeypatch, library, every, wrong):
    monkeypatch.setattr(selection, "SAMPLE_EVERY", every)
    if library == "torch":  # as on a GPU
        monkeypatch.setattr(selection, "array", torch.Tensor.detach)
    values = {"first": torch.ones(4), "second": torch.tensor([1.0, wrong, 2.0])}
    with pytest.raises(UserError, match=r"second\.weight holds NaN or infinite values"):
        criteria.magnitude(values, 0.5)


def test_more_masked_weights_than_the_target_are_an_error():
    values = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    kept = {"a" + SUFFIX: torch.tensor([True, False, False, True])}
    for target in (0.0, 0.25):
        with pytest.raises(ValueError, match="2 of 4 weights are masked already, more than"):
            criteria.magnitude(values, target, kept)
    assert criteria.magnitude(values, 0.5, kept)["a" + SUFFIX].tolist() == [
        True,
        False,
        False,
        True,
    ]


# ---- random masks


SHAPES = {"a": torch.Size([3, 5]), "b": torch.Size([10])}


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.7, 0.98, 1.0])
def test_a_random_mask_has_the_exact_count(target):
    mask = criteria.random(SHAPES, target, seed=3)
    assert {key: m.shape for key, m in mask.items()} == {
        n + masks.SUFFIX: s for n, s in SHAPES.items()
    }
    assert count_dropped(mask) == round(target * 25)


def test_random_masks_are_seeded():
    assert equal(criteria.random(SHAPES, 0.5, 3), criteria.random(SHAPES, 0.5, 3))
    assert not equal(criteria.random(SHAPES, 0.5, 3), criteria.random(SHAPES, 0.5, 4))


def test_every_weight_and_pair_is_as_likely_to_be_count_dropped():
    draws = 3000
    drops = np.stack(
        [
            1
            - np.concatenate(
                [m.numpy().ravel() for m in criteria.random(SHAPES, 0.4, seed).values()]
            )
            for seed in range(draws)
        ]
    )
    p, pair = 10 / 25, 10 * 9 / (25 * 24)
    assert np.abs(drops.mean(0) - p).max() < 4.5 * (p * (1 - p) / draws) ** 0.5
    together = (drops.T @ drops / draws)[np.triu_indices(25, 1)]
    assert np.abs(together - pair).max() < 5 * (pair * (1 - pair) / draws) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0, 0.99), st.integers(0, 9))
def test_layerwise_prunes_each_matrix_by_magnitude_and_the_total_exactly(sizes, target, seed):
    draw = torch.Generator().manual_seed(seed)
    values = {str(at): torch.randn(n, generator=draw) for at, n in enumerate(sizes)}
    mask = criteria.layerwise(values, target)
    assert count_dropped(mask) == round(target * sum(sizes))
    for name, value in values.items():
        one = {name: mask[name + SUFFIX]}
        assert abs(count_dropped(one) - target * value.numel()) <= 1
        own = mask_by_sorting({name: value}, count_dropped(one))
        assert torch.equal(own[name + SUFFIX], mask[name + SUFFIX])


def test_layerwise_keeps_masked_weights_masked():
    values = {"a": torch.tensor([3.0, 1.0, 2.0, 4.0]), "b": torch.tensor([10.0, 30.0, 20.0, 40.0])}
    kept = criteria.layerwise({name: -1 / value for name, value in values.items()}, 0.25)
    mask = criteria.layerwise(values, 0.5, kept)
    assert [m.tolist() for m in mask.values()] == [
        [True, False, True, False],
        [False, True, True, False],
    ]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 2**62))
def test_shuffling_keeps_the_sparsity_of_each_matrix(target, seed):
    given_mask = criteria.random({"a": torch.Size((9, 5)), "b": torch.Size((40,))}, target, 1)
    mask = criteria.shuffle(given_mask, seed)
    assert equal(mask, criteria.shuffle(given_mask, seed))
    for key, keep in given_mask.items():
        assert mask[key].shape == keep.shape and int(mask[key].sum()) == int(keep.sum())


def test_shuffling_is_uniform_and_follows_the_seed():
    half = {"a" + SUFFIX: torch.arange(1000).view(20, 50) < 500}
    one, other = criteria.shuffle(half, 1), criteria.shuffle(half, 2)
    for first, second in ((one, other), (one, half), (other, half)):
        shared = int((first["a" + SUFFIX] & second["a" + SUFFIX]).sum())
        assert 200 < shared < 300  # 250 expected, standard deviation 8
