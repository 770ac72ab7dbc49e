"""A study keeps the small files of its finished runs, and the overlaps of their masks."""

import json
import shutil

import pytest
from built_tables import layout
from refusals import content
from results_tree import OMP_INFO, mask_info, save_mask, small_mask, trainings, write_rows

from experiments import collect, markup, overlap, tables
from utils.errors import UserError
from utils.pruning import mask_files


def finished(folder, task: str, score: float) -> None:
    """Write a finished run: trainings of `task` of the full network and at 50 %."""
    rows = trainings(task, [60.0])
    write_rows(folder, rows + trainings(task, [score], lambda _: mask_info(task, 0.5, 1)))
    (folder / "run.json").write_text(json.dumps({"arguments": {}, "finished": True}))
    (folder / "model.safetensors").write_text("large")
    (folder / "predictions_.npz").write_text("outcomes")
    (folder / "tickets.json").write_text("{}")


@pytest.fixture
def runs(tmp_path):
    """Two tasks with two masks of 50 and of 70 %, OMP's masks, and trainings at 50 %."""
    folder = tmp_path / "runs"
    for seed, task in enumerate(("rte", "cola")):
        finished(folder / task, task, 59.0)
        for s in (1, 2):
            for sparsity in (0.5, 0.7):
                mask = small_mask(sparsity, 10 * seed + s)
                save_mask(folder / task / f"{s}-{sparsity}", mask, mask_info(task, sparsity, s))
    save_mask(folder / "omp", small_mask(0.5, 9), OMP_INFO)
    return folder


def overlaps(folder) -> list[str]:
    masks = overlap.find(folder, False, [])
    made = overlap.tables(masks, layout("rte", "cola", "mrpc", sparsity=50.0))
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


def test_adding_keeps_the_runs_and_overlaps_of_runs_that_are_gone(runs, tmp_path):
    study, pairs = tmp_path / "study", tmp_path / "study" / "overlaps.jsonl"
    collect.main([str(runs), str(study)])
    rte, lines = content(study / "rte"), pairs.read_text().splitlines()
    (runs / "rte").rename(tmp_path / "rte")
    finished(runs / "cola", "cola", 61.0)
    (runs / "cola" / "predictions_.npz").rename(runs / "cola" / "predictions_8.npz")
    finished(runs / "mrpc", "mrpc", 70.0)
    save_mask(runs / "mrpc", small_mask(0.5, 31), mask_info("mrpc", 0.5, 1))
    collect.main([str(runs), str(study), "--add"])
    assert content(study / "rte") == rte
    assert not (study / "cola" / "predictions_.npz").exists(), "of the run before"
    for task in ("cola", "mrpc"):
        new = (study / task / "results.jsonl").read_bytes()
        assert new == (runs / task / "results.jsonl").read_bytes()
    assert set(lines) < set(pairs.read_text().splitlines())
    masks = overlap.find(study, False, [])
    with_mrpc = {t: len(overlap.pairs(masks, "mrpc", t, 50.0)) for t in ("rte", "omp", "cola")}
    assert with_mrpc == {"rte": 0, "omp": 1, "cola": 1}, "the masks of RTE are gone"
    (tmp_path / "rte").rename(runs / "rte")
    pairs.write_text("\n".join(pairs.read_text().splitlines()[::-1]))  # the order has no meaning
    collect.main([str(runs), str(study), "--add"])
    collect.main([str(runs), str(tmp_path / "whole")])
    assert content(study) == content(tmp_path / "whole")
    kept = {
        mask.digest: int(sum(each.sum() for each in mask_files.load(mask.path).values()))
        for mask in overlap.find(runs, False, [])
    }
    for line in pairs.read_text().splitlines():
        _, ends, counts = json.loads(line)
        for (*_, digest), column in zip(ends, (4, 5), strict=True):
            assert sum(row[column] for row in counts) == kept[digest]


def test_adding_a_broken_mask_loses_no_overlap(runs, tmp_path, capsys):
    study = tmp_path / "study"
    collect.main([str(runs), str(study)])
    before = overlaps(study)
    mask = runs / "rte" / "1-0.5"
    shutil.copyfile(mask.with_name("2-0.5") / "mask.pt", mask / "mask.pt")
    mask.rename(mask.with_name("elsewhere"))
    collect.main([str(runs), str(study), "--add"])
    assert "describes another mask" in capsys.readouterr().err
    assert overlaps(study) == before


def test_a_mask_that_no_training_uses_is_not_read(runs, tmp_path):
    (runs / "rte" / "1-0.7" / "mask.pt").write_bytes(b"corrupt")
    for _ in range(2):
        collect.main([str(runs), str(tmp_path / "study"), "--add"])
    assert overlaps(tmp_path / "study") == overlaps(runs)


def test_another_mask_than_that_of_the_study_is_not_added(runs, tmp_path):
    study = tmp_path / "study"
    collect.collect(runs, study)
    before = content(study)
    save_mask(runs / "rte" / "1-0.5", small_mask(0.5, 77), mask_info("rte", 0.5, 1))
    with pytest.raises(UserError, match=r"rte/1-0\.5.*another mask of rte, 50 %, seed 1 than in"):
        collect.collect(runs, study, add=True)
    assert content(study) == before


def test_a_study_without_pairs_of_masks_has_no_overlaps(runs, tmp_path):
    shutil.rmtree(runs / "omp")
    for folder in [*runs.glob("cola/?-*"), *runs.glob("rte/2-*")]:
        shutil.rmtree(folder)
    collect.collect(runs, tmp_path / "study")
    assert {p.name for p in (tmp_path / "study").rglob("*.jsonl")} == {"results.jsonl"}
    assert overlap.find(tmp_path / "study", False, []) == []


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
