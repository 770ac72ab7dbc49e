"""The paper's tables and the numbers behind its figures, from every results.jsonl and mask below a folder."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/tables.py` finds utils

from experiments import command, markup, overlap, paper, results
from experiments.markup import Entry, Table
from experiments.results import Cell, Results
from utils import files
from utils.errors import UserError

EPSILON = 1e-9  # scores are sums of decimals: 63.2 + 0.3 must reach 63.5
RULES = {
    "full": "mean >= full network's mean - full network's standard deviation",
    "ticket": "mean + its own standard deviation >= full network's mean",
    "strict": "mean >= full network's mean",
}  # when a subnetwork wins


def wins(ticket: Cell | None, full: Cell | None, rule: str) -> bool | None:
    """Whether `ticket` is a winning ticket by one of RULES; None without the means or deviations that takes."""
    if ticket is None or full is None:
        return None
    slack = {"full": full.std, "ticket": ticket.std, "strict": 0.0}[rule]
    return None if slack is None else ticket.mean + slack >= full.mean - EPSILON


def sparsest(found: Results, task: str, rule: str) -> Entry:
    """The highest sparsity at which `task` has a winning ticket: percent, "none", or no data."""
    full, verdicts = found.full(task), {}
    for percent in found.percents(task, source="imp", source_task=task, init="pre", rewinding="0"):
        verdicts[percent] = wins(found.ticket(task, percent), full, rule)
    winning = [percent for percent, verdict in verdicts.items() if verdict]
    if winning:
        return Entry(text=f"{max(winning):g}")
    return Entry(text="none" if False in verdicts.values() else None)


class Layout:
    """Which tasks are columns, and whether the paper's numbers stand beside the measured ones."""

    def __init__(self, tasks: tuple[str, ...], with_paper: bool, sparsity: float | None):
        self.tasks, self.with_paper, self._sparsity = tasks, with_paper, sparsity

    def table(
        self, name: str, title: str, corner: str = "", digits: int = 1, last: tuple[str, ...] = ()
    ) -> Table:
        """An empty table with a column for each task."""
        return Table(
            name, title, [corner, *(paper.NAMES[task] for task in self.tasks), *last], digits
        )

    def percent(self, task: str, default: dict[str, int]) -> float:
        """The sparsity to compare at: the user's, else `default`'s."""
        return float(default[task] if self._sparsity is None else self._sparsity)

    def transfer_percent(self) -> float:
        """The sparsity of the masks that are moved between tasks."""
        return float(paper.TRANSFER_SPARSITY if self._sparsity is None else self._sparsity)

    def add(self, table: Table, label: str, entry: Callable[[str], Entry]) -> None:
        """A row of `entry(task)`."""
        table.add(label, [entry(task) for task in self.tasks])

    def add_paper(self, table: Table, entry: Callable[[str], str]) -> None:
        """A row of the paper's numbers."""
        if self.with_paper:
            self.add(table, "  paper", lambda task: Entry(text=entry(task)))

    def add_table2_row(self, table: Table, row: str) -> None:
        """The row of the paper's Table 2 called `row`."""
        self.add_paper(table, lambda task: quoted(paper.TABLE2[row][task]))


def quoted(score: paper.Score) -> str:
    """A score of the paper as it prints it."""
    mean, deviation = score
    return f"{mean}" if deviation is None else f"{mean} ± {deviation}"


def paper_cell(row: str, task: str) -> Cell:
    """A score of the paper's Table 2 as a cell (five runs)."""
    return Cell(*paper.TABLE2[row][task], n=5)


def yes_no(verdict: bool | None) -> Entry:
    """A verdict in words; none without data."""
    return Entry(text=None if verdict is None else "yes" if verdict else "no")


def table2(found: Results, layout: Layout) -> Table:
    """Subnetworks at the paper's winning-ticket sparsities against the controls (Table 2)."""
    table = layout.table(
        "table2", "Table 2: IMP tickets, random masks and other weights, beside the full network"
    )

    def at(task: str) -> float:
        return layout.percent(task, paper.SPARSITY)

    def control(**wanted) -> Callable[[str], Entry]:
        return lambda task: Entry(found.cell(task, percent=at(task), **wanted))

    def with_ticket(init: str) -> Callable[[str], Entry]:
        return lambda task: control(source="imp", source_task=task, rewinding="0", init=init)(task)

    layout.add(table, "sparsity, %", lambda task: Entry(text=f"{at(task):g}"))
    layout.add(table, "full network f(x, theta_0)", lambda task: Entry(found.full(task)))
    layout.add_table2_row(table, "full")
    layout.add(table, "IMP f(x, m_IMP, theta_0)", lambda task: Entry(found.ticket(task, at(task))))
    layout.add_table2_row(table, "imp")
    layout.add(table, "random mask f(x, m_RP, theta_0)", control(source="random", init="pre"))
    layout.add_table2_row(table, "random")
    layout.add(table, "random weights f(x, m_IMP, theta_0')", with_ticket("rand"))
    layout.add_table2_row(table, "reinit")
    layout.add(table, "layers shuffled f(x, m_IMP, theta_0'')", with_ticket("layers"))
    layout.add(table, "elements shuffled f(x, m_IMP, theta_0'')", with_ticket("elements"))
    layout.add_table2_row(table, "shuffled")
    layout.add(table, "one-shot f(x, m_OMP, theta_0)", control(source=paper.OMP, init="pre"))
    _add_verdicts(table, found, layout, at)
    return table


def _add_verdicts(table: Table, found: Results, layout: Layout, at: Callable[[str], float]) -> None:
    for rule, whose in (("full", "the full network's"), ("ticket", "the ticket's")):
        layout.add(
            table,
            f"IMP wins by {whose} deviation",
            lambda task, rule=rule: yes_no(
                wins(found.ticket(task, at(task)), found.full(task), rule)
            ),
        )
        layout.add_paper(
            table,
            lambda task, rule=rule: (
                yes_no(wins(paper_cell("imp", task), paper_cell("full", task), rule)).text
            ),
        )
    for rule, whose in (("full", "the full network's"), ("ticket", "the ticket's")):
        layout.add(
            table,
            f"sparsest winning ticket, %, by {whose} deviation",
            lambda task, rule=rule: sparsest(found, task, rule),
        )
    layout.add_paper(table, lambda task: str(paper.SPARSITY[task]))
    table.notes += [
        f"A ticket wins by the full network's deviation if its {RULES['full']}; by its own if its "
        f"{RULES['ticket']}. Deviations are of the sample (n - 1), so one seed gives no verdict."
    ]
    _note_sparsities(table, layout)
    _note_rounds(table, found, layout, at)


def _note_sparsities(table: Table, layout: Layout) -> None:
    """Where the user compares at other sparsities than the paper: which those of the paper's numbers are."""
    other = [
        f"{paper.NAMES[task]} {paper.SPARSITY[task]}"
        for task in layout.tasks
        if layout.percent(task, paper.SPARSITY) != paper.SPARSITY[task]
    ]
    if layout.with_paper and other:
        table.notes.append(
            f"The paper's numbers are those at its own sparsities, in %: {', '.join(other)}."
        )


def _note_rounds(table: Table, found: Results, layout: Layout, at: Callable[[str], float]) -> None:
    names = [
        paper.NAMES[t]
        for t in layout.tasks
        if (cell := found.ticket(t, at(t))) and cell.from_rounds
    ]
    if names:
        table.notes.append(
            f"IMP scores of {', '.join(names)} are those of IMP's own rounds, trained from theta_0 too."
        )


def table3(found: Results, layout: Layout) -> Table:
    """Rewinding to theta_i and standard pruning, at Table 2's sparsities (Table 3)."""
    table = layout.table(
        "table3", "Table 3: IMP with rewinding to later points, and standard pruning"
    )

    def rounds(rewinding: str) -> Callable[[str], Entry]:
        def entry(task: str) -> Entry:
            scores = found.scores(
                task,
                method="imp",
                source="imp",
                source_task=task,
                rewinding=rewinding,
                percent=layout.percent(task, paper.SPARSITY),
            )
            return Entry(Cell.of(scores, from_rounds=True) if scores else None)

        return entry

    layout.add(
        table, "sparsity, %", lambda task: Entry(text=f"{layout.percent(task, paper.SPARSITY):g}")
    )
    layout.add(table, "full network", lambda task: Entry(found.full(task)))
    layout.add_table2_row(table, "full")
    layout.add(
        table,
        "rewind 0 %",
        lambda task: Entry(found.ticket(task, layout.percent(task, paper.SPARSITY))),
    )
    layout.add_table2_row(table, "imp")
    for rewinding in _rewindings(found):
        layout.add(table, f"rewind {rewinding} %", rounds(rewinding))
    layout.add(table, "standard pruning", rounds(results.STANDARD))
    _note_sparsities(table, layout)
    if layout.with_paper:
        table.notes.append(
            "The paper found: rewinding to a later point helps no task notably and hurts STS-B and RTE; "
            "standard pruning gains up to two points on QQP, QNLI, MRPC and MLM and loses up to three "
            "on STS-B, WNLI, RTE and SST-2."
        )
    return table


def _rewindings(found: Results) -> list[str]:
    """The paper's rewinding points and those measured, but not 0."""
    measured = {row.rewinding for row in found.rows if row.source == "imp"} - {
        "0",
        results.STANDARD,
    }
    return sorted(measured | {str(r) for r in paper.REWINDS}, key=int)


def table4(found: Results, layout: Layout) -> Table:
    """The sparsest tickets that reach at least the full network's mean (Table 4)."""
    table = layout.table("table4", "Table 4: winning tickets by the strict rule")
    best = {task: sparsest(found, task, "strict") for task in layout.tasks}
    layout.add(table, "full network", lambda task: Entry(found.full(task)))
    layout.add_table2_row(table, "full")
    layout.add(table, "sparsest winning ticket, %", lambda task: best[task])
    layout.add_paper(table, lambda task: str(paper.STRICT_SPARSITY[task]))

    def at_best(task: str) -> Entry:
        text = best[task].text
        return Entry(None if text in (None, "none") else found.ticket(task, float(text)))

    layout.add(table, "IMP at that sparsity", at_best)
    layout.add(
        table,
        "sparsity in the paper or asked for, %",
        lambda task: Entry(text=f"{layout.percent(task, paper.STRICT_SPARSITY):g}"),
    )
    layout.add(
        table,
        "IMP there",
        lambda task: Entry(found.ticket(task, layout.percent(task, paper.STRICT_SPARSITY))),
    )
    table.notes.append(f"A ticket wins by the strict rule if its {RULES['strict']}.")
    return table


def difference(cell: Cell | None, full: Cell | None) -> Cell | None:
    """Transfer(S, T) less the full network's mean on T; deviation and seeds are the subnetwork's."""
    return (
        None
        if cell is None or full is None
        else Cell(cell.mean - full.mean, cell.std, cell.n, cell.from_rounds)
    )


def _transfers(found: Results, source: str, target: str, percent: float) -> Cell | None:
    if source == paper.OMP:
        return difference(
            found.cell(target, percent=percent, source=paper.OMP, init="pre"), found.full(target)
        )
    return difference(found.ticket(target, percent, source), found.full(target))


def _shaded(
    row: dict[str, Cell | float | None], own: dict[str, Cell | float | None]
) -> dict[str, bool | None]:
    """Target -> dark: at least as high as the target's own mask; None where either is missing."""

    def mean(value):
        return value.mean if isinstance(value, Cell) else value

    return {
        t: None if row[t] is None or own[t] is None else mean(row[t]) >= mean(own[t]) - EPSILON
        for t in row
    }


def _count(dark: dict[str, bool | None]) -> Entry:
    known = [verdict for verdict in dark.values() if verdict is not None]
    return Entry(text=f"{sum(known)} of {len(known)}" if known else None)


def figure2(found: Results, layout: Layout) -> Table:
    """Transfer(S, T) less the full network's score on T, and on how many targets S does as well as T's own mask."""
    percent = layout.transfer_percent()
    table = layout.table(
        "figure2",
        f"Figure 2: transfer of {percent:g} % subnetworks, less the full network's score",
        corner="source \\ target",
        digits=2,
        last=("dark",),
    )
    cells = {
        s: {t: _transfers(found, s, t, percent) for t in layout.tasks}
        for s in (*layout.tasks, paper.OMP)
    }
    own = {t: cells[t][t] for t in layout.tasks}
    for source, row in cells.items():
        dark = _shaded(row, own)
        label = "OMP of theta_0" if source == paper.OMP else paper.NAMES[source]
        table.add(
            label, [*(Entry(cell, dark=bool(dark[t])) for t, cell in row.items()), _count(dark)]
        )
    table.notes += [
        "Dark (bold): at least as high as the mask found on the target itself; the last column counts "
        "those cells, the target's own among them.",
        "Deviations are those of the subnetworks.",
    ]
    return table


def figure2_paper(found: Results, layout: Layout) -> Table:
    """The paper's Figure 2 under the same rule, for the same targets."""
    table = layout.table(
        "figure2_paper",
        "Figure 2 as the paper reports it (BERT-base, 70 %)",
        corner="source \\ target",
        digits=2,
        last=("dark",),
    )
    own = {t: paper.FIGURE2[t][t] for t in layout.tasks}
    for source, numbers in paper.FIGURE2.items():
        dark = _shaded({t: numbers[t] for t in layout.tasks}, own)
        entries = [Entry(text=f"{numbers[t]:.2f}", dark=bool(dark[t])) for t in layout.tasks]
        table.add(
            "OMP of theta_0" if source == paper.OMP else paper.NAMES[source],
            [*entries, _count(dark)],
        )
    return table


def figure_rewind(found: Results, layout: Layout) -> Table:
    """Transfer of subnetworks rewound to theta_i (section 4, question 3), less the full network's score."""
    percent = layout.transfer_percent()
    title = f"Transfer of {percent:g} % subnetworks rewound to later points, less the full network's score"
    table = layout.table("figure_rewind", title, corner="source, rewound to \\ target", digits=2)
    sources = {row.init_task for row in found.rows if row.init == "rewound"}
    for source in (
        s for s in paper.TASKS if s in sources or (not sources and s in ("squad", "mlm"))
    ):
        layout.add(
            table,
            f"{paper.NAMES[source]}, 0 %",
            lambda target, source=source: Entry(_transfers(found, source, target, percent)),
        )
        for point in _rewindings(found):
            wanted = dict(
                percent=percent,
                source="imp",
                source_task=source,
                rewinding=point,
                init="rewound",
                init_task=source,
                init_rewinding=point,
            )
            layout.add(
                table,
                f"{paper.NAMES[source]}, {point} %",
                lambda target, wanted=wanted: Entry(
                    difference(found.cell(target, **wanted), found.full(target))
                ),
            )
    if layout.with_paper:
        table.notes.append(
            "The paper found: subnetworks rewound to later points transfer no better from MLM and "
            "slightly better from SQuAD."
        )
    return table


def figure_sparsity(found: Results, layout: Layout) -> Table:
    """Score against sparsity, by how the mask was found and what it was trained from."""
    percents = sorted(
        {row.percent for row in found.rows if row.task in layout.tasks and row.source}
    )
    columns = [f"{percent:g} %" for percent in percents]
    table = Table(
        "figure_sparsity", "Score against sparsity", ["task, subnetwork", "0 %", *columns]
    )
    for task in layout.tasks:
        for label, wanted in curves(task).items():
            cells = [found.cell(task, percent=percent, **wanted) for percent in percents]
            if any(cells):
                table.add(
                    f"{paper.NAMES[task]}, {label}", [Entry(found.full(task)), *map(Entry, cells)]
                )
    return table


def curves(task: str) -> dict[str, dict]:
    """The kinds of subnetworks of `task`: label -> the Row fields that tell them."""
    own = dict(source="imp", source_task=task, rewinding="0")
    return {
        "IMP": own | {"init": "pre"},
        "one-shot": {"source": paper.OMP, "init": "pre"},
        "random mask": {"source": "random", "init": "pre"},
        "IMP, random weights": own | {"init": "rand"},
        "IMP, layers shuffled": own | {"init": "layers"},
        "IMP, elements shuffled": own | {"init": "elements"},
    }


BUILDERS = {
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "figure2": figure2,
    "figure2_paper": figure2_paper,
    "figure_rewind": figure_rewind,
    "figure_sparsity": figure_sparsity,
}
OVERLAP = "figure_overlap"
LEGEND = f"Mean ± standard deviation in percent points, number of seeds in brackets; {markup.DASH}: no run."


def masks_below(folder: Path, found: Results, layout: Layout, as_released: bool) -> overlap.Masks:
    """The masks to compare. Raises UserError if the runs below `folder` found those of one task by two recipes."""
    masks = overlap.find(folder, as_released, found.notices)
    for task in layout.tasks:
        if any(mask.source == task for mask in masks.found):
            found.check_masks(task)
    return masks


def build(
    folder: Path, layout: Layout, only: list[str] | None, as_released: bool
) -> tuple[list[Table], list[str]]:
    """The tables for which there is data, and what was left out of them.

    Raises UserError if there are no results, or those of one task come from two recipes.
    """
    found = results.read(folder, as_released)
    wanted = only or [*BUILDERS, OVERLAP]
    tables = [
        BUILDERS[name](found, layout)
        for name in BUILDERS
        if name in wanted and name != "figure2_paper"
    ]
    if OVERLAP in wanted:
        masks = masks_below(folder, found, layout, as_released)
        tables += overlap.tables(masks, layout.tasks, layout.transfer_percent(), layout.with_paper)
    tables = [table for table in tables if table.measured()]
    if layout.with_paper and any(table.name == "figure2" for table in tables):
        place = [table.name for table in tables].index("figure2")
        tables.insert(place + 1, figure2_paper(found, layout))
    return tables, found.notices


def write(tables: list[Table], notices: list[str], out: Path) -> str:
    """Write NAME.md, NAME.csv and NAME.tex of every table, and all in tables.md; returns that Markdown."""
    pieces = [markup.markdown(table) for table in tables]
    for table, text in zip(tables, pieces, strict=True):
        files.write_text(out / f"{table.name}.md", text)
        files.write_text(out / f"{table.name}.csv", markup.comma_separated(table))
        files.write_text(out / f"{table.name}.tex", markup.latex(table))
    if notices:
        pieces.append("### Left out\n\n" + "".join(f"- {notice}\n" for notice in notices))
    whole = "\n".join([LEGEND + "\n", *pieces])
    files.write_text(out / "tables.md", whole)
    return whole


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder below which every results.jsonl and mask is read"
    )
    parser.add_argument(
        "--out", type=Path, help="where to write the tables (default, ours: FOLDER/tables)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[n for n in (*BUILDERS, OVERLAP) if n != "figure2_paper"],
        help="build these tables alone",
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="columns (default: the paper's eleven tasks)"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        metavar="S",
        help="compare at this sparsity, 0 to 1 (default: the paper's, for each task and table)",
    )
    parser.add_argument(
        "--as_released", action="store_true", help="take the masks found with --as_released instead"
    )
    parser.add_argument("--no_paper", action="store_true", help="leave out the paper's numbers")
    return parser.parse_args(argv)


def layout_of(tasks: list[str] | None, sparsity: float | None, with_paper: bool) -> Layout:
    """The layout the user asked for. Raises UserError for an unknown task or a sparsity out of range."""
    if sparsity is not None and not 0 < sparsity < 1:
        raise UserError(f"--sparsity {sparsity:g} must lie between 0 and 1, such as 0.7")
    return Layout(
        paper.task_keys(tasks), with_paper, None if sparsity is None else round(100 * sparsity, 1)
    )


def main(argv: list[str] | None = None) -> None:
    """Write the tables and print them."""
    args = parse(argv)
    layout = layout_of(args.tasks, args.sparsity, not args.no_paper)
    tables, notices = build(args.folder, layout, args.only, args.as_released)
    out = args.out or args.folder / "tables"
    print(write(tables, notices, out))
    for notice in notices:
        print(f"warning: {notice}", file=sys.stderr)
    print(f"{len(tables)} tables written to {out}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
