"""Masking: 15 % chosen, of which 80 % [MASK], 10 % random, 10 % unchanged; specials never; the seed decides."""

import math

import numpy as np
import pytest
import torch

from utils.masking import mask_tokens, special_mask

CPU = torch.device("cpu")
MASK, VOCAB, SPECIALS = 4, 1000, [0, 2, 3]


def masked(
    ids: torch.Tensor, seed: int = 1, probability: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and True where a token is to be predicted, of rows of tokens, [rows, width]."""
    row_of = np.repeat(np.arange(len(ids)), ids.shape[1])
    maskable = ~special_mask(ids, SPECIALS).flatten()
    found = mask_tokens(ids.flatten(), maskable, row_of, MASK, VOCAB, seed, CPU, probability)
    chosen = torch.zeros(ids.numel(), dtype=torch.bool).index_fill(0, found.places, True)
    assert torch.equal(found.places, chosen.nonzero().flatten()) and torch.equal(
        found.targets, ids.flatten()[chosen]
    )
    assert np.array_equal(found.rows, row_of[chosen.numpy()])
    return found.inputs.view(ids.shape), chosen.view(ids.shape)


def near(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_shares_are_those_of_bert(probability):
    ids = torch.full((400, 1000), 7)  # 7 is drawn at random once in 1,000 times
    inputs, chosen = masked(ids, probability=probability)
    n = int(chosen.sum())
    assert near(n, ids.numel(), probability)
    assert near(int((inputs[chosen] == MASK).sum()), n, 0.8 + 0.1 / VOCAB)
    assert near(int((inputs[chosen] == 7).sum()), n, 0.1 + 0.1 / VOCAB)
    assert torch.equal(inputs[~chosen], ids[~chosen])
    drawn = inputs[chosen & (inputs != MASK) & (inputs != 7)]
    assert drawn.min() >= 0 and drawn.max() < VOCAB
    assert (
        near(int((drawn < VOCAB // 2).sum()), len(drawn), 0.5) and len(drawn.unique()) > 0.9 * VOCAB
    )


def test_specials_are_never_chosen():
    ids = torch.randint(8, (200, 200), generator=torch.Generator().manual_seed(0))
    inputs, chosen = masked(ids, probability=1.0)
    special = (ids == 0) | (ids == 2) | (ids == 3)
    assert torch.equal(special_mask(ids, SPECIALS), special)
    assert torch.equal(chosen, ~special)
    assert torch.equal(inputs[special], ids[special])


def test_seed_decides_and_the_ids_are_left_alone():
    ids = torch.arange(2000).reshape(4, 500) % VOCAB
    before = ids.clone()
    inputs, chosen = masked(ids)
    again, chosen_again = masked(ids)
    other, _ = masked(ids, seed=2)
    assert inputs.dtype == torch.int64 and chosen.dtype == torch.bool and inputs.shape == ids.shape
    assert torch.equal(inputs, again) and torch.equal(chosen, chosen_again)
    assert not torch.equal(inputs, other)
    assert torch.equal(ids, before)


def test_the_number_chosen_and_the_places_are_those_of_a_draw_for_each_token():
    """The chosen tokens of a row are distributed binomially, each place and each pair of places as likely as any other."""
    rows, width = 20000, 10
    ids = torch.full((rows, width), 7)
    ids[:, -2:] = 0  # special
    _, chosen = masked(ids, probability=0.3)
    counts = torch.bincount(chosen.sum(1), minlength=9)
    for k, count in enumerate(counts.tolist()):
        assert near(count, rows, math.comb(8, k) * 0.3**k * 0.7 ** (8 - k)), k
    together = chosen[:, :8].double().T @ chosen[:, :8].double()
    for i in range(8):
        for j in range(8):
            assert near(int(together[i, j]), rows, 0.3 if i == j else 0.09), (i, j)


def test_rows_of_any_length_are_masked_together():
    lengths = [3, 1, 400, 2]
    ids, row_of = torch.full((sum(lengths),), 7), np.repeat(np.arange(4), lengths)
    found = mask_tokens(
        ids, torch.ones(len(ids), dtype=torch.bool), row_of, MASK, VOCAB, 5, CPU, 0.5
    )
    assert np.array_equal(found.rows, row_of[found.places.numpy()]) and near(
        int((found.rows == 2).sum()), 400, 0.5
    )
    nothing = mask_tokens(ids, torch.zeros(len(ids), dtype=torch.bool), row_of, MASK, VOCAB, 5, CPU)
    assert len(nothing.places) == len(nothing.targets) == 0 and torch.equal(nothing.inputs, ids)
