"""Figures from synthetic results: numbers and shades as drawn, and the files written."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from results_tree import OMP_INFO, mask_info, row, save_mask, small_mask, trainings, write_rows

from experiments import builders, figures, overlap, results
from experiments.markup import Layout, Table
from experiments.results import Cell
from utils.errors import UserError

matplotlib = pytest.importorskip("matplotlib")


def imp(task: str, sparsity: float, **more):
    return lambda seed: mask_info(task, sparsity, seed, **more)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """STS-B and RTE: full, IMP at 50 and 70 %, both transfers, rewound to 5 %, masks."""
    folder = tmp_path_factory.mktemp("tree")
    rows = trainings("sts-b", [80.0, 82.0]) + trainings("rte", [60.0, 62.0])
    rows += trainings("sts-b", [79.0, 80.0], imp("sts-b", 0.7)) + trainings(
        "rte", [58.0, 58.0], imp("rte", 0.7)
    )
    rows += trainings("sts-b", [79.5], imp("rte", 0.7)) + trainings(
        "rte", [50.0, 51.0], imp("sts-b", 0.7)
    )
    rows += trainings("sts-b", [80.5, 81.5], imp("sts-b", 0.5), method="imp")
    rewound = {"mode": "rewound", "task": "sts-b", "rewind_steps": 5, "rewind_fraction": 0.05}
    rows += trainings(
        "rte", [57.0], imp("sts-b", 0.7, fraction=0.05), init="rewound", init_info=rewound
    )
    write_rows(folder, rows)
    for task, seed in (("sts-b", 1), ("rte", 2)):
        save_mask(folder / task, small_mask(0.7, seed), mask_info(task, 0.7, 1))
    save_mask(folder / "omp", small_mask(0.7, 1), OMP_INFO)
    return folder


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(("sts-b", "rte"), True, None)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_figure2_draws_the_numbers_and_shades_of_the_table(tree, layout):
    figure = figures.transfers(builders.figure2(results.read(tree), layout))
    [axes] = figure.axes
    shown = ["-1.50", "-10.50", "1 of 2", "-1.50", "-3.00", "2 of 2", "dark"]
    assert texts(axes) == shown
    shades = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert shades == [figures.DARK, figures.LIGHT, figures.DARK, figures.DARK]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["STS-B", "RTE"]
    figure.draw_without_rendering()
    title, dark = figure._suptitle.get_window_extent(), axes.texts[-1].get_window_extent()
    assert title.x1 < figure.bbox.x1 and title.y0 > dark.y1 and axes.texts[-1].get_text() == "dark"


def test_curves_pass_through_the_means(tree, layout):
    figure = figures.sparsities(results.read(tree), layout.tasks)
    lines = {
        line.get_color(): list(zip(*line.get_data(), strict=True))
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    }
    assert lines[figures.STYLES[0][0]] == [(50.0, 81.0), (70.0, 79.5)]
    assert figure.axes[0].lines[0].get_ydata()[0] == 81.0  # the full network


def test_curves_without_a_full_network(tmp_path):
    write_rows(tmp_path, trainings("rte", [58.0], imp("rte", 0.7)))
    [axes] = figures.sparsities(results.read(tmp_path), ("sts-b", "rte")).axes
    assert [
        list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_marker() == "o"
    ] == [[(70.0, 58.0)]]


def test_overlap_shows_each_pair(tree, layout):
    found = overlap.find(tree, False, [])
    whole, *_, with_omp = overlap.tables(found, layout)
    shown = texts(figures.shares(whole).axes[0])
    assert shown[0] == "-" and shown[1] == shown[3] == f"{whole.rows[0][1][1].mean:.1f}"
    lines = figures.with_one_shot(with_omp).axes[0].lines
    assert [(70.0, 1.0)] in [list(zip(*line.get_data(), strict=True)) for line in lines]


def dots(axes) -> list[list[tuple[float, float]]]:
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


def test_each_pair_has_a_dot_for_its_overlap_and_a_circle_for_chance(tree, layout):
    _, chance, *_ = overlap.tables(overlap.find(tree, False, []), layout)
    [axes] = figures.against_chance(chance).axes
    labels = ["STS-B, RTE", "STS-B, OMP of $\\theta_0$", "RTE, OMP of $\\theta_0$"]
    assert [label.get_text() for label in axes.get_yticklabels()] == labels
    assert [line.get_fillstyle() for line in axes.lines] == ["full", "none"]
    for column, found in enumerate(dots(axes)):
        assert found == [(row[column].mean, y) for y, (_, row) in enumerate(chance.rows)]
    assert dots(axes)[0][1] == (100.0, 1), "one mask twice"


def test_many_pairs_are_drawn_in_two_panels():
    table = Table("overlap_by_chance", "many", ["", "shared", "by chance"])
    for at in range(67):
        table.add(f"pair {at}", [Cell(at, None, 1), Cell(20.0, None, 1)])
    panels = figures.against_chance(table).axes
    assert [len(dots(axes)[0]) for axes in panels] == [34, 33]
    assert dots(panels[1])[0][0] == (34, 0)


def test_the_sparsity_of_each_source_is_a_line_over_layers_and_over_kinds(tree, layout):
    *_, profile, _ = overlap.tables(overlap.find(tree, False, []), layout)
    layers, kinds = figures.profiles(profile).axes
    assert [label.get_text() for label in layers.get_xticklabels()] == ["0", "1"]
    names = [label.get_text() for label in kinds.get_xticklabels()]
    assert names[:2] == ["pooler", "query"] and len(names) == 7 and "all" not in names
    rows = dict(profile.rows)
    for at in range(len(profile.header) - 1):
        assert [(x, rows[f"layer {x}"][at].mean) for x in (0, 1)] in dots(layers)
        assert [(x, rows[name][at].mean) for x, name in enumerate(names)] in dots(kinds)


def test_an_unknown_figure_is_refused_with_the_names(tree):
    with pytest.raises(UserError, match=r"--only: .*'overlap_by_luck'.*overlap_by_chance"):
        figures.main([str(tree), "--only", "overlap_by_luck"])


def test_rewound_subnetworks_have_a_panel_per_source(tree, layout):
    figure = figures.rewindings(builders.figure_rewind(results.read(tree), layout))
    [axes] = figure.axes
    points = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
    assert axes.get_title(loc="left") == "found on STS-B" and [(0.0, -10.5), (5.0, -4.0)] in points


def test_no_marker_hides_another(tmp_path):
    rows = trainings("rte", [58.0, 59.0], imp("rte", 0.7))
    rows += trainings("rte", [58.0, 59.0], imp(None, 0.7, method="random"))
    rows += trainings("rte", [58.0, 59.0], lambda seed: OMP_INFO | {"sparsity": 0.7})
    write_rows(tmp_path, rows)
    [axes] = figures.sparsities(results.read(tmp_path), ("rte",)).axes
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", "_")]
    assert len({(line.get_marker(), line.get_markersize()) for line in drawn}) == len(drawn) == 3
    assert {line.get_markerfacecolor() for line in drawn} == {"none"}


def test_another_backend_of_matplotlib_does_not_matter(tree, tmp_path):
    script = Path(figures.__file__)
    words = [sys.executable, str(script), str(tree), "--tasks", "cola", "--out", str(tmp_path)]
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == f"0 figures written to {tmp_path}\n"


def test_the_command_writes_png_and_pdf(tree, tmp_path):
    figures.main([str(tree), "--out", str(tmp_path), "--tasks", "sts-b", "rte"])
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert (
        names
        == {path.stem for path in tmp_path.glob("*.pdf")}
        == {
            "figure2",
            "figure2_paper",
            "figure_rewind",
            "figure_sparsity",
            "figure_overlap",
            "overlap_by_chance",
            "overlap_by_layer",
            "overlap_by_kind",
            "overlap_with_omp",
            "sparsity_profile",
        }
    )
    for path in tmp_path.glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] >= 500 and pixels.std() > 0.02


def test_one_figure_needs_only_its_own_data(tree, tmp_path):
    shutil.copytree(tree, folder := tmp_path / "tree")
    (folder / "overlaps.jsonl").write_text("corrupt")
    figures.main([str(folder), "--out", str(tmp_path), "--only", "figure2"])
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "figure2.png", "figure2.pdf"}
    with pytest.raises(UserError, match=r"overlaps\.jsonl, line 1: corrupt"):
        figures.main([str(folder), "--out", str(tmp_path), "--only", "sparsity_profile"])


def test_without_matplotlib_the_error_names_the_remedy(tree, monkeypatch):
    monkeypatch.setattr(figures, "INSTALLED", False)
    with pytest.raises(UserError, match=r"pip install -r requirements-figures.txt"):
        figures.main([str(tree)])


def test_a_figure_never_mixes_recipes(tmp_path):
    rows = trainings("rte", [60.0], args={"learning_rate": 2e-5})
    rows += trainings("rte", [58.0], imp("rte", 0.5), args={"learning_rate": 1e-4})
    write_rows(tmp_path, rows)
    with pytest.raises(UserError, match=r"RTE: --learning_rate is 2e-05 in .* and 0.0001 in"):
        figures.main([str(tmp_path), "--tasks", "rte"])
    (tmp_path / "results.jsonl").unlink()
    for seed, rate in (
        (1, 2e-5),
        (2, 1e-4),
    ):  # masks found by two recipes, their tickets trained by one
        info, folder = mask_info("rte", 0.7, seed), tmp_path / str(seed)
        write_rows(
            folder,
            [
                row("rte", 60.0, seed),
                row("rte", 50.0, seed, info),
                row("rte", 9.0, seed, info, "imp", args={"learning_rate": rate}),
            ],
        )
        save_mask(folder, small_mask(0.7, seed), info)
    with pytest.raises(UserError, match="RTE: --learning_rate"):
        figures.main([str(tmp_path), "--tasks", "rte", "--sparsity", "0.5"])


def test_a_figure_is_outdated_if_a_number_or_the_title_changes():
    table = Table("figure2", "Transfer", ["", "RTE"])
    table.add("MRPC", [Cell.of([1.0])])
    renamed = dataclasses.replace(table, title="Figure 2")
    other = dataclasses.replace(table, rows=[("MRPC", [Cell.of([2.0])])])
    assert len({figures.digest(each) for each in (table, renamed, other)}) == 3
