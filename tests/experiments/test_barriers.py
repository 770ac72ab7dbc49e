"""Barriers: their definition, their table, and lines that cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest
from built_tables import layout
from results_tree import mask_info, row, trainings, write_rows

from experiments import barriers, figures, markup, results
from experiments.barriers import Line
from utils.errors import UserError


def line_of(values) -> Line:
    values = np.asarray(values, dtype=float)
    return Line("rte", "IMP", 50.0, {}, np.linspace(0, 1, len(values)), values, values)


@pytest.mark.parametrize("seed", range(5))
def test_a_convex_loss_has_no_barrier(seed):
    draw = np.random.default_rng(seed)
    matrix, one, other = draw.normal(size=(4, 3)), *draw.normal(size=(2, 3))
    points = [one + alpha * (other - one) for alpha in np.linspace(0, 1, 11)]
    losses = [np.square(matrix @ point - 1).sum() for point in points]
    assert line_of(losses).barrier("loss") == pytest.approx(0, abs=1e-9)


def test_a_bump_has_its_height_also_between_different_ends():
    alphas = np.linspace(0, 1, 11)
    line = line_of(1 + 2 * alphas + 0.7 * np.sin(np.pi * alphas))
    assert line.barrier("loss") == pytest.approx(0.7)


def test_a_network_has_the_same_color_in_the_panels_of_all_tasks():
    pytest.importorskip("matplotlib")
    line = line_of([0.1, 0.3, 0.1])
    lines = [line, replace(line, percent=30.0), replace(line, task="mrpc", percent=30.0)]
    colors = {}
    for axes in figures.connectivity(lines).axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            colors.setdefault(label, set()).add(handle[0].get_color())
    assert {label: len(found) for label, found in colors.items()} == {
        "IMP, 50 %": 1,
        "IMP, 30 %": 1,
    }


def write_line(folder, scores, sparsity, seed=1, fraction=0.0, **changes):
    info = mask_info("rte", sparsity, 1, fraction=fraction) if sparsity else None
    points = enumerate(scores)
    write_rows(
        folder,
        [
            row("rte", score, seed, info, method="connectivity", **changes)
            | {"metrics": {"alpha": at / (len(scores) - 1), "loss": 1 - score / 100}}
            for at, score in points
        ],
        name="connectivity.jsonl",
    )


def table(folder):
    found = results.read(folder)
    made = barriers.table(barriers.read(folder, found), found, layout("rte"))
    return {label: [markup.show(v, 2) for v in values] for label, values in made.rows}


def test_the_table_has_mean_barriers_beside_the_verdicts(tmp_path):
    dense = trainings("rte", [60.0, 62.0])
    tickets = trainings("rte", [50.0, 52.0], lambda _: mask_info("rte", 0.5, 1))
    write_rows(tmp_path / "runs", dense + tickets)
    write_line(tmp_path / "dense", [60.0, 59.0, 60.0], 0.0)
    write_line(tmp_path / "one", [50.0, 44.0, 52.0], 0.5)
    write_line(tmp_path / "two", [50.0, 42.0, 50.0], 0.5, seed=2)
    found = table(tmp_path)
    assert found["RTE, full network"] == ["0.01 (1)", "1.00 (1)", "yes", "61.00 ± 1.41 (2)", "-"]
    assert found["RTE, IMP, 50 %"][1:] == ["7.50 ± 0.71 (2)", "no", "51.00 ± 1.41 (2)", "no"]


def test_a_line_with_an_undefined_score_gives_no_verdict(tmp_path):
    write_rows(tmp_path / "runs", trainings("rte", [60.0, 62.0]))
    write_line(tmp_path / "one", [60.0, 59.0, 60.0], 0.0)
    write_line(tmp_path / "two", [60.0, 58.0, 60.0], 0.0, seed=2)
    path = tmp_path / "two" / "connectivity.jsonl"
    path.write_text(path.read_text().replace('"score": 58.0', '"score": null'))
    found = table(tmp_path)["RTE, full network"]
    assert found[1:3] == ["nan (2)", "-"], "not the mean of the other line"


def test_lines_of_different_recipes_are_refused_and_other_files_left_out(tmp_path):
    write_rows(tmp_path / "runs", trainings("rte", [60.0, 62.0]))
    write_rows(tmp_path / "other", trainings("rte", [60.0]), name="connectivity.jsonl")
    found = results.read(tmp_path)
    assert barriers.read(tmp_path, found) == [] and "no complete line" in found.notices[-1]
    write_rows(tmp_path / "runs", trainings("rte", [60.0], args={"learning_rate": 1e-4}))
    write_line(tmp_path / "a", [60.0, 59.0, 60.0], 0.0, args={"learning_rate": 2e-4})
    with pytest.raises(UserError, match="learning_rate"):
        barriers.read(tmp_path, results.read(tmp_path))


@pytest.mark.parametrize("kept", [[0], [0, 2], [0, 1], [0, 2, 1], [0, 0, 1, 2], [1, 2]])
def test_a_line_with_missing_or_repeated_points_is_left_out(tmp_path, kept):
    write_rows(tmp_path / "runs", trainings("rte", [60.0, 62.0]))
    write_line(tmp_path / "a", [60.0, 59.0, 60.0], 0.0)
    path = tmp_path / "a" / "connectivity.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{lines[at]}\n" for at in kept))
    found = results.read(tmp_path)
    assert barriers.read(tmp_path, found) == [] and str(path) in found.notices[-1]


def test_a_copied_line_counts_once_and_other_rewinding_is_no_ticket_of_table_2(tmp_path):
    write_rows(tmp_path / "runs", trainings("rte", [60.0, 62.0]))
    for name in ("a", "copy"):
        write_line(tmp_path / name, [60.0, 59.0, 60.0], 0.0)
    write_line(tmp_path / "later", [60.0, 59.0, 60.0], 0.5, fraction=0.1)
    found = results.read(tmp_path)
    lines = barriers.read(tmp_path, found)
    assert [line.label for line in lines] == ["full network", "IMP, rewinding 10, 50 %"]
