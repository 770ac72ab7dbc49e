"""Masking: 15 % chosen, of which 80 % [MASK], 10 % random, 10 % unchanged; specials never; the seed decides."""

import math

import pytest
import torch

from utils.masking import mask_tokens, special_mask

MASK, VOCAB, SPECIALS = 4, 1000, [0, 2, 3]


def masked(ids: torch.Tensor, seed: int = 1, probability: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(ids.device).manual_seed(seed)
    return mask_tokens(ids, ~special_mask(ids, SPECIALS), MASK, VOCAB, generator, probability)


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
    assert near(int((drawn < VOCAB // 2).sum()), len(drawn), 0.5) and len(drawn.unique()) > 0.9 * VOCAB


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


def test_draws_depend_on_the_shape_alone():
    """Whatever the batch holds, the generator moves on by as much, and the same places are chosen."""
    states, places = [], []
    for value in (7, 0):
        generator = torch.Generator().manual_seed(3)
        ids = torch.full((8, 64), value)
        ids[0] = 7
        _, chosen = mask_tokens(ids, ~special_mask(ids, SPECIALS), MASK, VOCAB, generator)
        states.append(generator.get_state())
        places.append(chosen[0])
    assert torch.equal(*states) and torch.equal(*places)
