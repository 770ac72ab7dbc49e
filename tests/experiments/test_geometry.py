"""Geometry of masks: profiles, cosine, and the overlap of random masks against simulation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import geometry
from utils.errors import UserError


def count(one, other):
    paths = (Path("one.pt"), Path("other.pt"))
    tensors = ({k: torch.from_numpy(m) for k, m in mask.items()} for mask in (one, other))
    return geometry.count(*map(geometry.bits, tensors), paths)


def uneven(draw, fractions, side=60):
    """A random mask that keeps exactly these fractions of its matrices."""
    mask = {}
    for at, fraction in enumerate(fractions):
        keep = np.arange(side * side) < round(fraction * side * side)
        key = f"bert.encoder.layer.{at}.intermediate.dense.weight_mask"
        mask[key] = draw.permutation(keep).reshape(side, side)
    return mask


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (0.9, 0.1, 0.5), (1.0, 0.0, 0.3)])
def test_the_overlap_by_chance_is_that_of_simulated_masks(fractions):
    draw = np.random.default_rng(0)
    other = fractions[::-1] if fractions[0] == 0.9 else fractions
    found = []
    for _ in range(20):
        table = count(uneven(draw, fractions), uneven(draw, other))
        sums = table[geometry.COUNTS].sum().tolist()
        found.append((geometry.iou(*sums), geometry.cosine(*sums)))
    expected = geometry.by_chance(table)
    assert np.mean(found, axis=0) == pytest.approx(
        (geometry.iou(*expected), geometry.cosine(*expected)), abs=0.3
    )


def test_masks_that_agree_where_to_prune_overlap_more_by_chance():
    draw = np.random.default_rng(1)
    even, skewed = uneven(draw, (0.5, 0.5)), uneven(draw, (0.9, 0.1))
    by_chance = [geometry.by_chance(count(mask, mask)) for mask in (even, skewed)]
    assert [geometry.cosine(*each) for each in by_chance] == pytest.approx([50, 82], abs=0.1)
    assert geometry.iou(*by_chance[0]) == pytest.approx(100 / 3, abs=0.1)


def test_counts_by_hand():
    key = "bert.encoder.layer.3.attention.self.query.weight_mask"
    one, other = (
        {key: np.array([True, True, False, True])},
        {key: np.array([True, False, True, True])},
    )
    (row,) = count(one, other).itertuples(index=False)
    assert tuple(row) == ("layer 3", "query", 4, 2, 3, 3)
    assert geometry.iou(2, 3, 3) == 50 and geometry.cosine(2, 3, 3) == pytest.approx(200 / 3)
    with pytest.raises(UserError, match="architectures"):
        count(one, {key: np.ones(5, bool)})
