"""Tables from synthetic results: every number in a cell is computed by hand here."""

import csv
import json
from pathlib import Path

import pytest
from built_tables import built, imp, layout, run, shown, under
from results_tree import OMP_INFO, mask_info, row, save_mask, small_mask, trainings, write_rows

import oneshot
from experiments import builders, markup, overlap, paper, results, tables, verdict
from experiments.results import Cell
from utils.errors import UserError
from utils.pruning import perturbation


@pytest.fixture
def stsb(tmp_path) -> Path:
    """STS-B with three seeds: dense, IMP at 50 %, rounds of IMP, all controls."""
    rows = trainings("sts-b", [88.0, 88.4, 88.8])
    rows += trainings("sts-b", [87.9, 88.1, 88.3], imp("sts-b", 0.5))
    for sparsity, scores in (
        (0.4, [88.5, 88.6, 88.7]),
        (0.5, [1.0, 2.0, 3.0]),
        (0.6, [87.9, 88.0, 88.1]),
        (0.7, [80.0, 80.0, 80.0]),
    ):
        rows += trainings("sts-b", scores, imp("sts-b", sparsity), method="imp")
    rows += trainings("sts-b", [20.0, 22.0], imp(None, 0.5, method="random"))
    rows += trainings("sts-b", [9.0], imp("sts-b", 0.5), init="rand")
    rows += trainings(
        "sts-b",
        [18.0, 20.0],
        imp("sts-b", 0.5),
        init="layers",
        init_info={"mode": "layers", "seed": 1},
    )
    rows += trainings("sts-b", [86.0, 87.0], lambda seed: OMP_INFO | {"sparsity": 0.5})
    write_rows(tmp_path / "sts-b" / "all", rows)
    return tmp_path


def test_table2_means_deviations_and_seeds(stsb):
    table = builders.table2(results.read(stsb), layout("sts-b", "mnli"))
    assert shown(table, "sparsity, %", "STS-B") == "50"
    assert shown(table, "full network f(x, theta_0)", "STS-B") == "88.4 ± 0.4 (3)"
    assert shown(table, "IMP f(x, m_IMP, theta_0)", "STS-B") == "88.1 ± 0.2 (3)"
    assert shown(table, "random mask f(x, m_RP, theta_0)", "STS-B") == "21.0 ± 1.4 (2)"
    assert shown(table, "random weights f(x, m_IMP, theta_0')", "STS-B") == "9.0 (1)"
    assert shown(table, "layers shuffled f(x, m_IMP, theta_0'')", "STS-B") == "19.0 ± 1.4 (2)"
    assert shown(table, "elements shuffled f(x, m_IMP, theta_0'')", "STS-B") == "-"
    assert shown(table, "one-shot f(x, m_OMP, theta_0)", "STS-B") == "86.5 ± 0.7 (2)"
    assert {markup.show(entries[1], 1) for name, entries in table.rows if "f(x" in name} == {
        "-"
    }  # MNLI has no run
    assert under(table, "full network f(x, theta_0)") == ["88.4 ± 0.3", "82.4 ± 0.5"]
    assert under(table, "elements shuffled f(x, m_IMP, theta_0'')") == ["19.6", "70.1"]


def test_our_controls_have_rows_if_they_were_run(stsb):
    labels = ["layer-wise one-shot, ours", "IMP, shuffled within matrices, ours"]
    labels.append("IMP, noise added, ours")
    table = builders.table2(results.read(stsb), layout("sts-b"))
    assert not {name for name, _ in table.rows} & set(labels)
    even = {"method": "layerwise", "task": None, "weight": "pre", "sparsity": 0.5}
    drawn = even | {"weight": "rand"}
    rows = trainings("sts-b", [60.0, 62.0], lambda seed: even | {"seed": seed})
    rows += trainings("sts-b", [7.0], imp("sts-b", 0.5), init="noise")
    rows += trainings("sts-b", [1.0], lambda seed: drawn | {"seed": seed})
    for source, score in (("a", 50.0), ("b", 54.0)):  # two tickets shuffled with one seed

        def shuffled(seed, source=source):
            info = mask_info("sts-b", 0.5, seed, method="shuffled")
            return info | {"shuffled_from": source}

        rows += trainings("sts-b", [score], shuffled)
    other = mask_info(None, 0.5, 1, method="shuffled") | {"shuffled_from": "c"}
    rows += trainings("sts-b", [3.0], lambda seed: other)  # a random mask, shuffled
    write_rows(stsb / "sts-b" / "controls", rows)
    found = results.read(stsb)
    table = builders.table2(found, layout("sts-b"))
    cells = [shown(table, label, "STS-B") for label in labels]
    assert cells == ["61.0 ± 1.4 (2)", "52.0 ± 2.8 (2)", "7.0 (1)"]
    assert found.notices == []


def test_a_new_one_shot_criterion_needs_no_more_than_a_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(results.KINDS, "new", ("new", "pre"))
    for weight, score in (("pre", 60.0), ("rand", 1.0)):
        info = OMP_INFO | {"method": "new", "weight": weight, "sparsity": 0.5}
        write_rows(tmp_path / weight, [row("rte", score, 1, info)])
    assert results.read(tmp_path).cell("rte", "new", 50.0) == Cell(60.0, None, 1)


def test_all_masks_and_weights_that_the_scripts_make_have_a_row_in_table_2():
    sources, inits = map(set, zip(*results.KINDS.values(), strict=True))
    assert set(oneshot.METHODS.values()) <= sources and perturbation.MODES.keys() <= inits
    assert builders.TABLE2.keys() == set(results.SUBNETWORKS)


def test_masks_joined_from_two_have_rows_of_their_own(tmp_path):
    rows = trainings("rte", [70.0]) + trainings("rte", [69.0], lambda s: mask_info("rte", 0.5, s))
    for method, score in (("omp+imp", 60.0), ("imp+omp", 50.0)):
        info = mask_info("rte", 0.5, 1, method=method)
        rows += trainings("rte", [score], lambda _, info=info: info)
    write_rows(tmp_path, rows)
    table = builders.table2(results.read(tmp_path), layout("rte"))
    assert shown(table, "IMP f(x, m_IMP, theta_0)", "RTE") == "69.0 (1)"
    assert shown(table, "one-shot encoder, IMP pooler, ours", "RTE") == "60.0 (1)"
    assert shown(table, "IMP encoder, one-shot pooler, ours", "RTE") == "50.0 (1)"


def test_trainings_with_a_data_order_of_their_own_are_in_no_table(stsb):
    before = builders.table2(results.read(stsb), layout("sts-b")).rows
    rows = trainings("sts-b", [1.0, 2.0, 3.0], args={"data_seed": 7})
    write_rows(stsb / "sts-b" / "orders", rows)
    found = results.read(stsb)
    assert builders.table2(found, layout("sts-b")).rows == before and found.notices == []


def test_both_rules_are_printed_and_differ(stsb):
    table = builders.table2(results.read(stsb), layout("sts-b"))
    assert (
        shown(table, "IMP wins by the full network's deviation", "STS-B") == "yes"
    )  # 88.1 >= 88.4 - 0.4
    assert shown(table, "IMP wins by the ticket's deviation", "STS-B") == "no"  # 88.1 + 0.2 < 88.4
    assert (
        shown(table, "sparsest winning ticket, %, by the full network's deviation", "STS-B") == "60"
    )  # 88.0, exactly
    assert shown(table, "sparsest winning ticket, %, by the ticket's deviation", "STS-B") == "40"


def test_the_papers_own_tickets_under_both_rules():
    def failing(rule: str) -> list[str]:
        cells = {t: (builders.quoted("imp")[t], builders.quoted("full")[t]) for t in paper.TASKS}
        return [
            task for task, (ticket, full) in cells.items() if not builders.wins(ticket, full, rule)
        ]

    assert failing("full") == ["mrpc", "sst-2", "cola", "mlm"]
    assert failing("ticket") == []
    assert failing("strict") == [
        "qqp",
        "sts-b",
        "qnli",
        "mrpc",
        "rte",
        "sst-2",
        "cola",
        "squad",
        "mlm",
    ]


def test_a_task_that_the_paper_does_not_have_shows_no_number_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.NAMES, "mine", "Mine")
    monkeypatch.setitem(paper.OWN_SPARSITY, "mine", 30)
    rows = trainings("mine", [80.0, 82.0])
    rows += trainings("mine", [79.0, 81.0], mask=lambda seed: mask_info("mine", 0.3, seed))
    write_rows(tmp_path, rows)
    (table,), notices = built(tmp_path, "mine", only=["table2"])
    assert notices == [] and shown(table, "sparsity, %", "Mine") == "30"
    assert shown(table, "IMP f(x, m_IMP, theta_0)", "Mine").startswith("80.0")
    assert {texts[1] for texts in table.texts("{}") if texts[0] == "  paper"} == {"-"}


@pytest.mark.parametrize("name", ["My_Task", "my-task", "mytask"])
def test_a_task_with_an_underscore_is_found_in_any_spelling(monkeypatch, name):
    monkeypatch.setitem(paper.NAMES, "my_task", "My_Task")
    assert paper.task_keys([name]) == ("my_task",)


def test_a_tie_wins_in_spite_of_float_rounding():
    ticket, full = Cell(0.7, 0.1, 5), Cell(0.8, 0.0, 5)
    assert ticket.mean + ticket.std < full.mean and builders.wins(ticket, full, "ticket")


def test_one_seed_gives_a_verdict_by_the_strict_rule_only(tmp_path):
    write_rows(
        tmp_path,
        [
            *trainings("rte", [66.0]),
            *trainings("rte", [65.0], imp("rte", 0.6)),
            *trainings("rte", [67.0], imp("rte", 0.2), method="imp"),
        ],
    )
    found = results.read(tmp_path)
    table = builders.table2(found, layout("rte"))
    assert shown(table, "IMP wins by the full network's deviation", "RTE") == "-"
    assert shown(table, "sparsest winning ticket, %, by the ticket's deviation", "RTE") == "-"
    table = builders.table4(found, layout("rte"))
    assert shown(table, "sparsest winning ticket, %", "RTE") == "20"
    assert shown(table, "IMP at that sparsity", "RTE") == "67.0 (1)"
    assert under(table, "sparsest winning ticket, %") == ["50"]


def test_table4_prints_none_if_no_ticket_reaches_the_mean(tmp_path):
    write_rows(
        tmp_path, trainings("rte", [66.0]) + trainings("rte", [65.0], imp("rte", 0.1), method="imp")
    )
    assert (
        shown(
            builders.table4(results.read(tmp_path), layout("rte")),
            "sparsest winning ticket, %",
            "RTE",
        )
        == "none"
    )


def test_separate_trainings_are_preferred_to_rounds(stsb):
    found = results.read(stsb)
    assert found.cell("sts-b", "IMP", 50).mean == pytest.approx(88.1)  # not the rounds' 2.0
    assert found.cell("sts-b", "IMP", 60) == Cell(
        pytest.approx(88.0), pytest.approx(0.1), 3, from_rounds=True
    )
    assert any(
        "STS-B are those of IMP's own rounds" in note
        for note in builders.table2(found, layout("sts-b", sparsity=60.0)).notes
    )


@pytest.mark.parametrize("build", [builders.table2, builders.table3])
def test_a_note_names_the_sparsities_of_the_paper_if_they_differ(stsb, build):
    found, message = (
        results.read(stsb),
        "The paper's numbers are those at its own sparsities, in %: STS-B 50, RTE 60.",
    )
    assert message in build(found, layout("sts-b", "rte", sparsity=70.0)).notes
    assert (
        message.replace("STS-B 50, ", "")
        in build(found, layout("sts-b", "rte", sparsity=50.0)).notes
    )
    for silent in (layout("sts-b", "rte"), layout("sts-b", "rte", with_paper=False, sparsity=70.0)):
        assert not [note for note in build(found, silent).notes if "own sparsities" in note]


def test_table3_keeps_rewinding_points_and_standard_pruning_apart(tmp_path):
    rows = trainings("mrpc", [85.0, 85.2], imp("mrpc", 0.5), method="imp")
    rows += trainings("mrpc", [84.0, 85.0], imp("mrpc", 0.5, fraction=0.0493), method="imp")
    rows += trainings("mrpc", [83.0, 84.0], imp("mrpc", 0.5, fraction=0.5), method="imp")
    rows += trainings("mrpc", [86.0, 87.0], imp("mrpc", 0.5, rewind="none"), method="imp")
    write_rows(tmp_path, rows)
    table = builders.table3(results.read(tmp_path), layout("mrpc"))
    got = {name: markup.show(entries[0], 1) for name, entries in table.rows}
    assert got["rewind 0 %"] == "85.1 ± 0.1 (2)"
    assert got["rewind 5 %"] == "84.5 ± 0.7 (2)"
    assert "rewind 10 %" not in got
    assert got["rewind 50 %"] == "83.5 ± 0.7 (2)"
    assert got["standard pruning"] == "86.5 ± 0.7 (2)"


@pytest.fixture
def transfers(tmp_path) -> Path:
    rows = trainings("sts-b", [80.0, 82.0]) + trainings("rte", [60.0, 62.0])
    rows += trainings("sts-b", [79.0, 80.0], imp("sts-b", 0.7)) + trainings(
        "rte", [58.0, 58.0], imp("rte", 0.7)
    )
    rows += trainings("sts-b", [79.5], imp("rte", 0.7)) + trainings(
        "rte", [50.0, 51.0], imp("sts-b", 0.7)
    )
    rows += trainings("rte", [59.0], lambda seed: OMP_INFO | {"sparsity": 0.7})
    write_rows(tmp_path, rows)
    return tmp_path


def test_figure2_differences_dark_cells_and_counts(transfers):
    table = builders.figure2(results.read(transfers), layout("sts-b", "rte", "cola"))
    assert table.header == ["source \\ target", "STS-B", "RTE", "CoLA", "dark"]
    got = {label: texts for label, *texts in table.texts(bold="**{}**")}
    assert got["STS-B"] == ["**-1.50 ± 0.71 (2)**", "-10.50 ± 0.71 (2)", "-", "1 of 2"]
    assert got["RTE"] == ["**-1.50 (1)**", "**-3.00 ± 0.00 (2)**", "-", "2 of 2"]
    assert got["OMP of theta_0"] == ["-", "**-2.00 (1)**", "-", "1 of 1"]
    assert "CoLA" not in got
    assert "| STS-B | **-1.50 ± 0.71 (2)** | -10.50 ± 0.71 (2) | - | 1 of 2 |" in markup.markdown(
        table
    )
    bold = r"\textbf{\boldmath $-1.50 \pm 0.71$ (2)}"
    assert rf"STS-B & {bold} & $-10.50 \pm 0.71$ (2) & -- & 1 of 2 \\" in markup.latex(table)


def test_the_papers_figure2_under_the_same_rule():
    table = builders.figure2_paper(layout())
    counts = {name: entries[-1] for name, entries in table.rows}
    assert (
        counts["MLM"] == "11 of 11"
        and counts["WNLI"] == "1 of 11"
        and counts["OMP of theta_0"] == "5 of 11"
    )
    assert [cell.dark for cell in dict(table.rows)["SQuAD"][:11]].count(True) == 5


@pytest.mark.parametrize(("source", "name"), [("mlm", "MLM"), ("mine", "Mine")])
def test_transfer_of_rewound_subnetworks(tmp_path, monkeypatch, source, name):
    monkeypatch.setitem(paper.NAMES, "mine", "Mine")
    rewound = {
        "mode": "rewound",
        "seed": 1,
        "task": source,
        "rewind_steps": 5,
        "rewind_fraction": 0.05,
    }
    rows = trainings("rte", [60.0]) + trainings("rte", [58.0], imp(source, 0.7))
    rows += trainings(
        "rte", [57.0], imp(source, 0.7, fraction=0.05), init="rewound", init_info=rewound
    )
    not_its_own = imp(source, 0.7, fraction=0.2)  # theta_i of 5 % with the mask of 20 %: in no row
    rows += trainings("rte", [11.0], not_its_own, init="rewound", init_info=rewound)
    write_rows(tmp_path, rows)
    table = builders.figure_rewind(results.read(tmp_path), layout("rte"))
    got = {label: markup.show(entries[0], 2) for label, entries in table.rows}
    assert got == {f"{name}, 0 %": "-2.00 (1)", f"{name}, 5 %": "-3.00 (1)"}


def test_score_against_sparsity(stsb):
    table = builders.figure_sparsity(results.read(stsb), layout("sts-b", "rte"))
    assert table.header == ["task, subnetwork", "0 %", "40 %", "50 %", "60 %", "70 %"]
    got = {name: [markup.show(e, 1) for e in entries] for name, entries in table.rows}
    assert got["STS-B, IMP"] == [
        "88.4 ± 0.4 (3)",
        "88.6 ± 0.1 (3)",
        "88.1 ± 0.2 (3)",
        "88.0 ± 0.1 (3)",
        "80.0 ± 0.0 (3)",
    ]
    assert got["STS-B, random mask"][1:3] == ["-", "21.0 ± 1.4 (2)"]
    assert not any(name.startswith("RTE") for name in got)


def test_contradictions_are_left_out_with_a_notice_and_repetitions_count_once(tmp_path):
    write_rows(tmp_path / "a", trainings("rte", [60.0, 62.0]))
    write_rows(tmp_path / "b", [row("rte", 60.0, 1), row("rte", 63.5, 2)])
    found = results.read(tmp_path)
    assert found.full("rte") == Cell(60.0, None, 1)
    [notice] = found.notices
    assert "62.00" in notice and "63.50" in notice and "seed 2" in notice
    assert all(f"{tmp_path / folder / 'results.jsonl'}, line 2" in notice for folder in "ab")


def test_what_a_run_moved_aside_is_left_out_with_a_notice(stsb):
    """Its rows are of another run in the same folder, often with another recipe."""
    aside = stsb / "sts-b" / "all" / "replaced-2"
    write_rows(aside, trainings("sts-b", [10.0, 11.0, 12.0], args={"block_size": 3}))
    save_mask(aside / "checkpoint-5", small_mask(0.5, 1), mask_info("sts-b", 0.5, 1))
    found = results.read(stsb)
    table = builders.table2(found, layout("sts-b"))
    assert shown(table, "full network f(x, theta_0)", "STS-B") == "88.4 ± 0.4 (3)"
    (notice,) = found.notices
    assert notice.startswith(f"{aside}: moved aside")
    assert overlap.find(stsb, False, []) == []
    assert len(results.read(aside).rows) == 3 and len(overlap.find(aside, False, [])) == 1


def test_bad_lines_are_left_out_with_a_notice(tmp_path):
    rows = [
        row("rte", 60.0, 1),
        {"task": "rte"},
        row("rte", 1.0, 2, final=False),
        row("rte", 2.0, 3, method="evaluate"),
        row("rte", 3.0, 4) | {"mask": "m.pt", "sparsity": 0.5},
    ]
    path = write_rows(tmp_path, rows, tail='garbage\n{"task": "rt')
    found = results.read(tmp_path)
    assert found.full("rte") == Cell(60.0, None, 1)
    assert [notice.removeprefix(f"{path}, ") for notice in found.notices] == [
        "line 2: no 'method'; left out",
        "line 6: not JSON; left out",
        "line 7: half-written last line; left out",
        "line 5: no origin of m.pt; in no table",
    ]


def test_masks_of_as_released_runs_are_kept_apart(tmp_path):
    released = mask_info("rte", 0.6, 1, rewind="encoder") | {"as_released": True}
    ours = mask_info("rte", 0.6, 1)
    write_rows(
        tmp_path, [row("rte", 60.0, 1), row("rte", 55.0, 1, ours), row("rte", 50.0, 1, released)]
    )
    assert results.read(tmp_path).cell("rte", "IMP", 60).mean == 55.0
    found = results.read(tmp_path, as_released=True)
    assert found.cell("rte", "IMP", 60).mean == 50.0 and found.full("rte").mean == 60.0


def test_nan_scores_are_reported_and_left_out(tmp_path):
    rows = [row("sts-b", score, seed) for seed, score in ((1, 88.0), (2, 89.0))]
    rows += trainings("sts-b", [float("nan"), 87.0], imp("sts-b", 0.5))
    path = write_rows(tmp_path, rows)
    found = results.read(tmp_path)
    assert found.notices == [f"{path}, line 3: 'score' is nan, not a number or null; left out"]
    table = builders.table2(found, layout("sts-b"))
    assert shown(table, "IMP f(x, m_IMP, theta_0)", "STS-B") == "87.0 (1)"


def test_an_undefined_score_of_one_seed_makes_the_mean_undefined(tmp_path):
    omp = mask_info(None, 0.5, 42, method="omp") | {"weight": "pre"}
    rows = trainings("sts-b", [88.0, 89.0])
    rows += trainings("sts-b", [87.0, None], lambda seed: mask_info("sts-b", 0.5, seed))
    rows += trainings("sts-b", [None], lambda seed: omp)
    write_rows(tmp_path, rows)
    found = results.read(tmp_path)
    assert not found.notices
    table = builders.table2(found, layout("sts-b"))
    assert shown(table, "IMP f(x, m_IMP, theta_0)", "STS-B") == "nan (2)", "not 87.0 (1)"
    assert shown(table, "one-shot f(x, m_OMP, theta_0)", "STS-B") == "nan (1)"
    assert shown(table, "IMP wins by the full network's deviation", "STS-B") == "no"
    transfer = builders.figure2(found, layout("sts-b"))
    assert shown(transfer, "OMP of theta_0", "STS-B") == "nan (1)"
    assert builders.sparsest(found, "sts-b", "ticket") is None, "no deviation, no verdict"
    rows = trainings("rte", [None]) + trainings("rte", [50.0, 60.0], lambda _: omp)
    write_rows(tmp_path, rows)
    transfer = builders.figure2(results.read(tmp_path), layout("rte"))
    assert shown(transfer, "OMP of theta_0", "RTE") == "nan (2)", "no deviation"


def test_a_mask_without_sparsity_stops_no_table(stsb):
    save_mask(stsb / "mask", small_mask(0.7, 1), mask_info("sts-b", 0.7, 1))
    path = stsb / "mask" / "mask.pt.json"
    path.write_text(json.dumps({"mask_sha256": json.loads(path.read_text())["mask_sha256"]}))
    done = run(str(stsb), "--tasks", "sts-b")
    assert done.returncode == 0
    line = done.stderr.splitlines()[0]
    assert line.endswith(f" WARNING {path}: no 'sparsity' or no 'task'; left out")


def test_the_command_writes_markdown_csv_and_latex(stsb, tmp_path):
    with open(stsb / "sts-b" / "all" / "results.jsonl", "a") as file:
        file.write('{"task": "st')
    out = tmp_path / "written"
    done = run(str(stsb), "--out", str(out), "--tasks", "STS-B", "sst2")
    assert done.returncode == 0, done.stderr
    assert {
        "table2.md",
        "table2.csv",
        "table2.tex",
        "table3.md",
        "table4.tex",
        "figure_sparsity.csv",
        "tables.md",
    } <= {p.name for p in out.iterdir()}
    assert "| IMP f(x, m_IMP, theta_0) | 88.1 ± 0.2 (3) | - |" in done.stdout
    assert (
        "half-written last line" in done.stderr
        and "half-written last line" in (out / "tables.md").read_text()
    )
    label = r"IMP $f(x, m_{\mathrm{IMP}}, \theta_0)$"
    assert rf"{label} & $88.1 \pm 0.2$ (3) & -- \\" in (out / "table2.tex").read_text()
    with open(out / "table2.csv", newline="") as file:
        cells = {(r["row"], r["column"]): r for r in csv.DictReader(file)}
    cell = cells["full network f(x, theta_0)", "STS-B"]
    assert (float(cell["mean"]), float(cell["std"]), cell["seeds"]) == (
        pytest.approx(88.4),
        pytest.approx(0.4),
        "3",
    )
    assert cells["full network f(x, theta_0)", "SST-2"]["text"] == "-"
    cell = cells["paper: full network f(x, theta_0)", "STS-B"]
    assert [cell[key] for key in ("mean", "std", "seeds", "text")] == [
        *("88.4", "0.3", "", "88.4 ± 0.3")
    ]
    assert all(row.strip() != "paper" for row, _ in cells)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5 % #1 $x {y}", r"a\_b \& 5 \% \#1 \$x \{y\}"),
        ("source \\ target ~ ^", r"source \textbackslash{} target \textasciitilde{} \^{}"),
        ("OMP of theta_0", r"OMP of $\theta_0$"),
        ("mean >= nan ± nan", r"mean $>$= nan $\pm$ nan"),
    ],
)
def test_latex_escapes_text_and_sets_formulas_in_math_mode(text, expected):
    table = markup.Table("name", text, [text, text], rows=[(text, [text])])
    written = markup.latex(table)
    assert rf"\caption{{{expected}}}" in written
    assert written.count(rf"{expected} & {expected} \\") == 2


def at_sparsity(task: str, trained: list[float], rounds: list[float], source: str = "") -> list:
    """Return rows of a full network, of subnetworks trained at these sparsities, and of rounds."""
    rows = trainings(task, [80.0, 81.0])
    for sparsity in trained:
        rows += trainings(task, [70.0, 71.0], imp(source or task, sparsity))
    for sparsity in rounds:
        rows += trainings(task, [60.0, 61.0], imp(task, sparsity), method="imp")
    return rows


@pytest.mark.parametrize(
    ("trained", "rounds", "percent"),
    [
        ([0.3], [0.1, 0.5, 0.9], "30"),  # plan.py table2 --sparsity 0.3
        ([0.3, 0.5], [0.1, 0.5], "50"),  # the paper's
        ([0.3, 0.3, 0.7], [0.5], "30"),  # most runs
        ([0.1, 0.7], [], "70"),  # the nearest
        ([], [0.1, 0.2], "20"),
        ([], [], "50"),
    ],
)
def test_the_tables_use_the_sparsities_found(tmp_path, trained, rounds, percent):
    write_rows(tmp_path, at_sparsity("sts-b", trained, rounds))
    made, _ = built(tmp_path, "sts-b", only=["table2", "table3"])
    for table in made:
        assert shown(table, "sparsity, %", "STS-B") == percent
        assert any("the most common" in note for note in table.notes) == (percent != "50")
        label = "rewind 0 %" if table.name == "table3" else "IMP f(x, m_IMP, theta_0)"
        assert (shown(table, label, "STS-B") == "-") == (not trained + rounds)
    found = results.read(tmp_path)
    asked = builders.table2(found, layout("sts-b", sparsity=70.0))
    assert shown(asked, "sparsity, %", "STS-B") == "70"
    assert not any("the most common" in note for note in asked.notes)


def test_transfers_use_the_sparsity_found_and_other_tables_the_tasks_own(tmp_path):
    rows = at_sparsity("sts-b", [0.2, 0.5], []) + at_sparsity("sts-b", [0.5], [], source="rte")
    write_rows(tmp_path, rows)
    for seed in (1, 2):
        save_mask(tmp_path / f"{seed}", small_mask(0.4, seed), mask_info("sts-b", 0.4, seed))
    made, _ = built(tmp_path, "sts-b", "rte", only=["figure2", "figure_overlap"])
    titles = [table.title for table in made]
    assert "transfer of 50 % subnetworks" in titles[0]
    assert titles[2].startswith("Overlap of 40 % masks")


def test_columns_and_rows_without_a_run_are_left_out(tmp_path, capsys):
    write_rows(tmp_path, at_sparsity("rte", [0.6], []))
    tables.main([str(tmp_path), "--only", "table2", "figure2"])
    table2, figure2, theirs = capsys.readouterr().out.split("###")[1:]
    assert "|  | RTE |\n" in table2 and "| IMP f(x, m_IMP, theta_0) | 70.5" in table2
    assert "random mask f(x, m_RP, theta_0) | - |\n|   paper | 56.0 |" in table2
    assert "one-shot" not in table2  # no number of the paper either
    assert "| RTE | dark |" in figure2 and "CoLA" not in figure2
    assert "| RTE | dark |" in theirs and "| CoLA | -10.56 |" in theirs
    tables.main([str(tmp_path), "--only", "table2", "--no_paper"])
    assert "m_RP" not in capsys.readouterr().out
    tables.main([str(tmp_path), "--only", "table2", "--tasks", "cola", "rte"])
    assert "|  | CoLA | RTE |" in capsys.readouterr().out


def test_the_claims_use_the_sparsities_found(tmp_path, capsys):
    write_rows(tmp_path, at_sparsity("rte", [0.3], [0.6]))
    verdict.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith("Claims at 30 % sparsity: 1 NOT shown\n")
    assert "MNLI" not in printed


def test_no_paper_leaves_out_its_numbers(stsb, capsys):
    tables.main(
        [
            str(stsb),
            *("--only", "table2", "figure2", "--no_paper", "--tasks", "sts-b"),
            *("--sparsity", "0.6"),
        ]
    )
    printed = capsys.readouterr().out
    assert "paper" not in printed and "88.0 ± 0.1 (3)" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "XY"], "'XY' is no task"),
        (["--sparsity", "70"], "0.7"),
        (["--sparsity", "0.0004"], "0.001"),
    ],
)
def test_bad_flags_are_named(stsb, words, message):
    with pytest.raises(UserError, match=message):
        tables.main([str(stsb), *words])


def test_a_folder_without_results_is_an_error_in_one_line(tmp_path):
    done = run(str(tmp_path))
    assert (
        done.returncode == 2
        and "no results.jsonl below it" in done.stderr
        and done.stderr.count("\n") == 1
    )
