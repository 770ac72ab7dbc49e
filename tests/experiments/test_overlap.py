"""The comparison of two masks from the command line."""

import re

import pytest
import torch
from results_tree import mask_info, save_mask, small_mask

from experiments import overlap
from experiments.markup import Layout
from utils.errors import UserError
from utils.pruning import criteria, mask_files
from utils.pruning.origin import Origin

KEY = "bert.encoder.layer.1.attention.output.dense.weight_mask"


def rows(printed: str) -> dict[str, list[float]]:
    found = re.findall(r"(?m)^\| (\w.*?) \|((?: [\d.]+ \|)+)$", printed)
    return {label: [float(word) for word in cells.split("|")[:-1]] for label, cells in found}


@pytest.mark.parametrize("kind", ["ours", "released", "int", "packed", "exported"])
def test_two_masks_are_compared_whatever_their_format(tmp_path, capsys, kind):
    a, b = small_mask(0.3, 1), small_mask(0.6, 2)
    mask_files.save(a, tmp_path / "a.pt", Origin())
    other = tmp_path / ("mask.safetensors" if kind in ("packed", "exported") else "b.pt")
    if kind == "ours":
        mask_files.save(b, other, Origin())
    elif kind in ("released", "int"):
        dtype = torch.float32 if kind == "released" else torch.int64
        torch.save({key: keep.to(dtype) for key, keep in b.items()}, other)
    else:
        mask_files.pack_mask(b, other)
    overlap.main([str(tmp_path / "a.pt"), str(tmp_path if kind == "exported" else other)])
    found = rows(capsys.readouterr().out)
    layers, kinds = ["layer 0", "layer 1", "pooler"], ["query", "key", "value"]
    kinds += ["attention output", "intermediate", "output"]
    assert list(found) == ["all", *layers, *kinds]
    for label, keys in (("all", list(a)), ("pooler", ["bert.pooler.dense.weight_mask"])):
        one = torch.cat([a[key].flatten() for key in keys]).double()
        two = torch.cat([b[key].flatten() for key in keys]).double()
        both = float(one @ two)
        expected = [float(1 - one.mean()), float(1 - two.mean())]
        chance = sum(float(a[key].sum() * b[key].sum()) / a[key].numel() for key in keys)
        kept, lengths = float(one.sum() + two.sum()), float(one.norm() * two.norm())
        expected += [both / (kept - both), chance / (kept - chance)]
        expected += [both / lengths, chance / lengths]
        assert found[label] == pytest.approx([100 * each for each in expected], abs=0.006)


def test_masks_shuffled_within_their_matrices_overlap_as_by_chance(tmp_path, capsys):
    uneven = {
        key: torch.linspace(0, 1, keep.numel()).reshape(keep.shape) < (0.8 if "r.0" in key else 0.2)
        for key, keep in small_mask(0.5, 1).items()
    }
    mask_files.save(uneven, tmp_path / "found.pt", Origin())
    found = []
    for seed in range(12):
        shuffled = criteria.shuffle(uneven, seed)
        mask_files.save(shuffled, tmp_path / "shuffled.pt", Origin())
        overlap.main([str(tmp_path / "found.pt"), str(tmp_path / "shuffled.pt")])
        printed = capsys.readouterr().out
        found.append(rows(printed))
    assert "By chance: two random masks with these sparsities in each matrix" in printed
    for label in ("all", "layer 0", "layer 1", "intermediate"):
        _, _, shared, shared_by_chance, cosine, cosine_by_chance = torch.tensor(
            [each[label] for each in found]
        ).mean(0)
        assert shared == pytest.approx(shared_by_chance, abs=1.5)
        assert cosine == pytest.approx(cosine_by_chance, abs=1.5)
    assert found[0]["all"][3] > 100 / 3 + 8, "more than masks of 50 % in every matrix"


def test_masks_of_two_architectures_and_other_values_are_refused(tmp_path):
    mask = small_mask(0.5, 1)
    mask_files.save(mask, tmp_path / "a.pt", Origin())
    turned = mask | {KEY: torch.ones(10, 40, dtype=torch.bool)}
    for name, other, message in (
        ("layers", small_mask(0.5, 1, layers=3), "different architectures"),
        ("shape", turned, "different architectures"),
        ("value", mask | {KEY: torch.full((20, 20), 0.5)}, f"{KEY} holds 0.5"),
        ("weights", {"bert.pooler.dense.weight": torch.ones(2, 2)}, "unexpected key"),
    ):
        torch.save(other, tmp_path / name)
        with pytest.raises(UserError, match=message):
            overlap.compare(tmp_path / "a.pt", tmp_path / name)


def test_each_pair_of_tasks_has_a_row_by_layer_and_kind(tmp_path):
    for task, seed in (("rte", 1), ("rte", 2), ("mrpc", 1), ("cola", 1)):
        drawn = small_mask(0.7, 10 * len(task) + seed)
        save_mask(tmp_path / f"{task}{seed}", drawn, mask_info(task, 0.7, seed))
    masks = overlap.find(tmp_path, False, [])
    whole, by_chance, by_layer, by_kind, *_ = overlap.tables(masks, Layout(("rte", "mrpc", "cola")))
    for table in (by_chance, by_layer, by_kind):
        assert [label for label, _ in table.rows] == [
            *("RTE, RTE", "RTE, MRPC", "RTE, CoLA", "MRPC, CoLA")
        ]
    assert whole.header == ["", "RTE", "MRPC", "CoLA"]
