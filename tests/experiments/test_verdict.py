"""The claims of ours in verdict.py: what a layer-matched control and a connectivity line show."""

import json

import pytest
from built_tables import imp
from results_tree import mask_info, row, trainings, write_rows

from experiments import verdict

FULL, TICKET = [80.0, 81.0, 82.0], [80.5, 81.0, 81.5]


def shuffled(seed: int) -> dict:
    """Return the origin of the ticket of `seed`, shuffled within each matrix."""
    return mask_info("rte", 0.5, seed, method="shuffled") | {"shuffled_from": str(seed)}


def write_line(folder, errors, mask=None, task="rte"):
    """Write the line of a training pair, as connectivity.py does."""
    points = [
        row(task, 100 - error, 1, mask or mask_info("rte", 0.5, 1), method="connectivity")
        | {"metrics": {"alpha": at / (len(errors) - 1), "loss": error / 100}}
        for at, error in enumerate(errors)
    ]
    write_rows(folder, points, name="connectivity.jsonl")


def claim(capsys, folder, word):
    """Return the verdict and the text of the one claim of RTE that contains `word`."""
    verdict.main([str(folder), "--tasks", "RTE"])
    lines = [line for line in capsys.readouterr().out.splitlines() if word in line]
    assert len(lines) <= 1
    return tuple(lines[0].strip().split("  RTE: ")) if lines else None


@pytest.mark.parametrize(
    ("scores", "expected", "lead"),
    [
        ([70.0, 71.0, 72.0], "shown", "10.0"),
        ([79.0, 79.5, 80.0], "shown", "1.5"),  # deviations 0.5 and 0.5
        ([78.0, 80.0, 82.0], "NOT shown", "1.0"),
        ([81.0, 82.0, 83.0], "NOT shown", "-1.0"),
        ([60.0], "cannot tell", "21.0"),  # no deviation
        ([60.0, None, 61.0], "cannot tell", "nan"),  # a correlation that is not defined
    ],
)
def test_a_ticket_is_more_than_its_sparsities_by_more_than_both_deviations(
    tmp_path, capsys, scores, expected, lead
):
    rows = trainings("rte", FULL) + trainings("rte", TICKET, imp("rte", 0.5))
    write_rows(tmp_path / "a", rows)
    assert claim(capsys, tmp_path, "shuffled within") is None
    write_rows(tmp_path / "b", trainings("rte", scores, shuffled))
    shown, text = claim(capsys, tmp_path, "shuffled within")
    assert shown == expected and f"({lead}; ours)" in text


@pytest.mark.parametrize(
    ("ticket", "errors", "expected"),
    [
        (TICKET, [20.0, 21.0, 20.0], "shown"),
        (TICKET, [20.0, 22.5, 20.0], "NOT shown"),  # matches, but unstable
        ([70.0, 71.0, 72.0], [30.0, 35.0, 30.0], "shown"),  # neither
        ([70.0, 71.0, 72.0], [30.0, 30.0, 30.0], "NOT shown"),
        ([81.0], [20.0, 20.0, 20.0], "shown"),  # the full network's deviation decides
    ],
)
def test_tickets_match_exactly_if_they_are_stable(tmp_path, capsys, ticket, errors, expected):
    write_rows(tmp_path / "a", trainings("rte", FULL) + trainings("rte", ticket, imp("rte", 0.5)))
    write_line(tmp_path / "shuffled", [9.0, 90.0, 9.0], shuffled(1))
    write_line(tmp_path / "sparser", [9.0, 90.0, 9.0], mask_info("rte", 0.7, 1))
    write_line(tmp_path / "transfer", [9.0, 90.0, 9.0], task="mrpc")
    assert claim(capsys, tmp_path, "stable") is None
    write_line(tmp_path / "line", errors)
    shown, text = claim(capsys, tmp_path, "stable")
    height = errors[1] - errors[0]
    assert shown == expected and f"barrier of {height:.1f} points in error" in text
    assert f"{height / 100:.4f} in loss" in text and "below 2" in text


def test_one_seed_cannot_tell_whether_a_stable_ticket_matches(tmp_path, capsys):
    rows = [row("rte", 80.0, 1), row("rte", 81.0, 1, mask_info("rte", 0.5, 1))]
    write_rows(tmp_path / "a", rows)
    write_line(tmp_path / "line", [20.0, 20.0, 20.0])
    assert claim(capsys, tmp_path, "stable")[0] == "cannot tell"
    other = json.dumps(row("rte", 81.0, 1, mask_info("rte", 0.5, 1)))  # a training, no point
    path = tmp_path / "line" / "connectivity.jsonl"
    path.write_text(f"not JSON\n{other}\n")
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write("[]\n")
    verdict.main([str(tmp_path), "--tasks", "RTE"])
    printed = capsys.readouterr()
    assert "stable" not in printed.out
    assert f"{path}, line 1" in printed.err and f"{tmp_path}/a/results.jsonl, line 3" in printed.err
