"""Overlap tables from small masks: every number in a cell is computed by hand here."""

import json

import pytest
import torch
from built_tables import layout, shown
from results_tree import OMP_INFO, mask_info, row, save_mask, small_mask, write_rows

from experiments import markup, overlap, results
from utils.errors import UserError


def test_overlap_counts_weights_kept_by_both(tmp_path):
    a, b = small_mask(0.7, 1), small_mask(0.7, 2)
    for task, mask in (("sts-b", a), ("rte", b)):
        save_mask(tmp_path / task, mask, mask_info(task, 0.7, 1))
    save_mask(tmp_path / "omp", a, OMP_INFO)
    save_mask(
        tmp_path / "later", b, mask_info("sts-b", 0.7, 1, fraction=0.05)
    )  # rewound: not theta_0's
    found = overlap.find(tmp_path, False, notices := [])
    whole, _, by_layer, by_kind, _, with_omp = overlap.tables(found, layout("sts-b", "rte", "cola"))
    both = sum(int((a[k] & b[k]).sum()) for k in a)
    either = sum(int((a[k] | b[k]).sum()) for k in a)
    assert notices == [] and whole.header == ["", "STS-B", "RTE", "OMP of theta_0"]
    got = {name: [markup.show(e, 1) for e in entries] for name, entries in whole.rows}
    assert got["STS-B"] == ["-", f"{100 * both / either:.1f} (1)", "100.0 (1)"]
    keys = [k for k in a if ".layer.1." in k]
    both, either = (
        sum(int(op(a[k], b[k]).sum()) for k in keys) for op in (torch.logical_and, torch.logical_or)
    )
    pair = dict(by_layer.rows)["STS-B, RTE"]
    assert pair[by_layer.header.index("layer 1") - 1].mean == pytest.approx(100 * both / either)
    assert by_layer.header == ["", "layer 0", "layer 1", "pooler"]
    omp = [f"{task}, OMP of theta_0" for task in ("STS-B", "RTE")]
    assert [name for name, _ in by_layer.rows] == ["STS-B, RTE", *omp]
    key = [k for k in a if k.endswith("attention.output.dense.weight_mask")]
    both, either = (
        sum(int(op(a[k], b[k]).sum()) for k in key) for op in (torch.logical_and, torch.logical_or)
    )
    pair = dict(by_kind.rows)["STS-B, RTE"]
    at = by_kind.header.index("attention output") - 1
    assert pair[at].mean == pytest.approx(100 * both / either)
    assert markup.show(dict(with_omp.rows)["70 %, cosine x 100"][0], 1) == "100.0 (1)"


def test_overlap_of_a_task_with_itself_compares_its_seeds(tmp_path):
    for seed in (1, 2, 3):
        save_mask(
            tmp_path / str(seed),
            small_mask(0.5, 1 if seed == 3 else seed),
            mask_info("rte", 0.5, seed),
        )
    found = overlap.find(tmp_path, False, [])
    table = overlap.tables(found, layout("rte", with_paper=False, sparsity=50.0))[0]
    cell = table.rows[0][1][0]
    a, b = small_mask(0.5, 1), small_mask(0.5, 2)
    both, either = (
        sum(int(op(a[k], b[k]).sum()) for k in a) for op in (torch.logical_and, torch.logical_or)
    )
    other = 100 * both / either
    assert cell.n == 3 and cell.mean == pytest.approx((100 + 2 * other) / 3)


def test_each_pair_has_its_overlap_by_chance_and_each_source_its_sparsities(tmp_path):
    masks = {("sts-b", 1): small_mask(0.7, 1), ("sts-b", 2): small_mask(0.7, 2)}
    masks |= {("rte", 1): small_mask(0.7, 3)}
    for (task, seed), mask in masks.items():
        save_mask(tmp_path / f"{task}{seed}", mask, mask_info(task, 0.7, seed))
    found = overlap.find(tmp_path, False, [])
    _, chance, _, _, profile, _ = overlap.tables(found, layout("sts-b", "rte"))
    a, b = masks["sts-b", 1], masks["rte", 1]
    both = sum(float(a[k].sum() * b[k].sum()) / a[k].numel() for k in a)
    one, two = (float(sum(each[k].sum() for k in a)) for each in (a, b))
    assert [label for label, _ in chance.rows] == ["STS-B, STS-B", "STS-B, RTE"]
    cells = dict(zip(chance.header[1:], dict(chance.rows)["STS-B, RTE"], strict=True))
    assert cells["shared by chance, %"].mean == pytest.approx(100 * both / (one + two - both))
    assert cells["cosine by chance x 100"].mean == pytest.approx(100 * both / (one * two) ** 0.5)
    measured = sum(int((a[k] & b[k]).sum()) for k in a)
    assert cells["shared (IoU), %"].mean == pytest.approx(100 * measured / (one + two - measured))
    assert cells["cosine x 100"].mean == pytest.approx(100 * measured / (one * two) ** 0.5)
    assert profile.header == ["", "STS-B", "RTE"]
    assert shown(profile, "all", "STS-B") == "70.0 ± 0.0 (2)"
    own = [masks["sts-b", seed]["bert.pooler.dense.weight_mask"].double() for seed in (1, 2)]
    expected = 100 - 50 * float(own[0].mean() + own[1].mean())
    assert dict(profile.rows)["pooler"][0].mean == pytest.approx(expected)
    layer = torch.cat([keep.flatten() for k, keep in b.items() if ".layer.1." in k]).double()
    assert dict(profile.rows)["layer 1"][1].mean == pytest.approx(100 - 100 * float(layer.mean()))


def test_different_masks_of_one_seed_are_left_out_with_a_notice(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        save_mask(tmp_path / folder, small_mask(0.7, seed), mask_info("rte", 0.7, 5))
    found = overlap.find(tmp_path, False, notices := [])
    assert found == [] and "different masks of rte, 70 %, seed 5" in notices[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": None}, "no 'sparsity' or no 'task'"),
        ({"sparsity": "0.7"}, "corrupt or unreadable ('sparsity' is '0.7', not a number or null)"),
        ({"task": 3}, "corrupt or unreadable ('task' is 3, not a string or null)"),
        (
            {"mask_sha256": [1]},
            "corrupt or unreadable ('mask_sha256' is [1], not a string or null)",
        ),
        ({"seed": []}, "corrupt or unreadable ('seed' is [], not an integer or null)"),
        (
            {"rewind_steps": 1.5},
            "corrupt or unreadable ('rewind_steps' is 1.5, not an integer or null)",
        ),
        ("sparsity", "no 'sparsity' or no 'task'"),
        ("task", "no 'sparsity' or no 'task'"),
    ],
)
def test_a_mask_with_an_invalid_origin_is_left_out_with_a_notice(tmp_path, changes, message):
    for seed in (1, 2):
        save_mask(tmp_path / str(seed), small_mask(0.7, seed), mask_info("rte", 0.7, seed))
    path = tmp_path / "2" / "mask.pt.json"
    info = json.loads(path.read_text())
    changed = (
        {k: v for k, v in info.items() if k != changes}
        if isinstance(changes, str)
        else info | changes
    )
    path.write_text(json.dumps(changed))
    found = overlap.find(tmp_path, False, notices := [])
    assert [mask.seed for mask in found] == [1] and notices == [f"{path}: {message}; left out"]


def test_a_mask_of_another_digest_is_left_out_of_the_overlaps_with_a_warning(tmp_path, capsys):
    for task in ("rte", "cola"):
        for seed in (1, 2):
            folder = tmp_path / task / str(seed)
            save_mask(folder, small_mask(0.7, seed), mask_info(task, 0.7, seed))
    exchanged = tmp_path / "cola" / "2" / "mask.pt"
    torch.save(small_mask(0.7, 3), exchanged)
    found = overlap.find(tmp_path, False, [])
    whole, *_ = overlap.tables(found, layout("rte", "cola"))
    assert shown(whole, "RTE", "CoLA") == "100.0 (1)", "the pair of seed 1 alone"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {exchanged}: ") and "another mask" in line


def test_a_row_with_the_origin_of_another_mask_is_left_out_with_a_notice(tmp_path):
    info = mask_info("rte", 0.7, 1) | {"mask_sha256": "00"}
    rows = [row("rte", 60.0, seed, info, mask_sha256=sha) for seed, sha in ((1, "00"), (2, "11"))]
    path = write_rows(tmp_path, rows)
    found = results.read(tmp_path)
    assert found.rows["seed"].tolist() == [1]
    assert found.notices == [f"{path}, line 2: 'mask_info' describes another mask; left out"]


def test_masks_of_two_models_cannot_be_compared(tmp_path):
    save_mask(tmp_path / "a", small_mask(0.7, 1), mask_info("rte", 0.7, 1))
    save_mask(tmp_path / "b", small_mask(0.7, 1, layers=3), mask_info("cola", 0.7, 1))
    with pytest.raises(UserError, match="different architectures"):
        overlap.tables(overlap.find(tmp_path, False, []), layout("rte", "cola"))
