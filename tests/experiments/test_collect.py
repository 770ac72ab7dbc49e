"""A study keeps the small files of its finished runs, and the overlaps of their masks."""

import json
import shutil

import pytest
from built_tables import layout
from refusals import content
from results_tree import OMP_INFO, mask_info, save_mask, small_mask, trainings, write_rows

from experiments import collect, markup, overlap, tables
from utils.errors import UserError


@pytest.fixture
def runs(tmp_path):
    """Two tasks with two masks of 50 and of 70 %, OMP's masks, and trainings at 50 %."""
    folder = tmp_path / "runs"
    for seed, task in enumerate(("rte", "cola")):
        rows = trainings(task, [60.0]) + trainings(
            task, [59.0], lambda _, t=task: mask_info(t, 0.5, 1)
        )
        write_rows(folder / task, rows)
        (folder / task / "run.json").write_text(json.dumps({"arguments": {}, "finished": True}))
        (folder / task / "model.safetensors").write_text("large")
        (folder / task / "predictions_.npz").write_text("outcomes")
        (folder / task / "tickets.json").write_text("{}")
        for s in (1, 2):
            for sparsity in (0.5, 0.7):
                mask = small_mask(sparsity, 10 * seed + s)
                save_mask(folder / task / f"{s}-{sparsity}", mask, mask_info(task, sparsity, s))
    save_mask(folder / "omp", small_mask(0.5, 9), OMP_INFO)
    return folder


def overlaps(folder) -> list[str]:
    masks = overlap.find(folder, False, [])
    made = overlap.tables(masks, layout("rte", "cola", sparsity=50.0))
    return [markup.comma_separated(table) for table in made]


def test_a_study_has_the_rows_and_overlaps_of_the_finished_runs(runs, tmp_path, capsys):
    write_rows(runs / "stopped", trainings("rte", [1.0], init="rand"))
    study = tmp_path / "docs" / "study"
    collect.main([str(runs), str(study)])
    printed = capsys.readouterr()
    assert printed.out == f"2 finished runs copied to {study}\n" and "stopped" in printed.err
    names = ("predictions_.npz", "results.jsonl", "tickets.json")
    files = {f"{task}/{name}" for task in ("rte", "cola") for name in names}
    assert {str(p.relative_to(study)) for p in study.rglob("*") if p.is_file()} == files | {
        "overlaps.jsonl"
    }
    row = (study / "rte" / "results.jsonl").read_bytes()
    assert row == (runs / "rte" / "results.jsonl").read_bytes()
    expected = overlaps(runs)
    assert len(expected) == 6 and overlaps(study) == expected
    shutil.rmtree(runs / "cola")
    collect.main([str(runs), str(study)])
    assert not (study / "cola").exists(), "a study holds what its runs hold now"


def test_overlaps_are_kept_at_the_sparsities_of_the_trainings(runs, tmp_path):
    collect.collect(runs, tmp_path / "study")
    assert {mask.percent for mask in overlap.find(tmp_path / "study", False, [])} == {50.0}
    assert overlap.find(tmp_path / "study", True, []) == [], "masks of --as_released are others"
    built, _ = tables.build(tmp_path / "study", layout("rte", "cola"), ["figure_overlap"])
    assert built[0].title.startswith("Overlap of 50 % masks")


def test_a_folder_with_other_files_is_not_replaced(runs, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.md").write_text("mine")
    before = content(tmp_path / "study")
    with pytest.raises(UserError, match=r"notes\.md: not a collected file"):
        collect.collect(runs, tmp_path / "study")
    assert content(tmp_path / "study") == before
    with pytest.raises(UserError, match=r"notes\.md: not a collected file"):
        collect.collect(runs, tmp_path / "study" / "notes.md")
    assert content(tmp_path / "study") == before
    with pytest.raises(UserError, match="no finished run below it"):
        collect.collect(runs / "omp", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[[", "["),
        ('"layer 0", ', ""),
        ("[50.0, ", "["),
        ("[50.0", "{50.0"),
        ("[50.0", '["50"'),
        ("[50.0", "[NaN"),
        ("[50.0", "[" * 10**5),
        ("query", "q\xff"),
        ('"query"', "[7]"),
        ('"query"', str(10**18)),
        ('"query", ', '"query", -'),
        ('"query", ', f'"query", {10**25}'),
    ],
)
def test_a_corrupt_pair_is_refused_with_its_line(runs, tmp_path, old, new):
    collect.collect(runs, tmp_path / "study")
    path = tmp_path / "study" / "overlaps.jsonl"
    path.write_text(path.read_text().replace(old, new), encoding="latin-1")
    with pytest.raises(UserError, match="line 1: corrupt; collect the runs again"):
        overlap.find(tmp_path / "study", False, [])


def test_a_study_inside_the_runs_is_refused(runs):
    with pytest.raises(UserError, match="inside"):
        collect.main([str(runs), str(runs / "study")])
    assert not (runs / "study").exists()
