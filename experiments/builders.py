"""One function per table, and the numbers behind each figure."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from experiments import paper, results
from experiments.markup import Layout, Table
from experiments.results import Cell, Results

EPSILON = 1e-9  # scores are sums of decimals: 63.2 + 0.3 must reach 63.5
RULES = {
    "full": "mean >= full network's mean - full network's standard deviation",
    "ticket": "mean + its own standard deviation >= full network's mean",
    "strict": "mean >= full network's mean",
}  # when a subnetwork is a winning ticket
RULE_NAMES = {"full": "the full network's deviation", "ticket": "the ticket's deviation"}
TABLE2 = {
    "IMP": ("IMP f(x, m_IMP, theta_0)", "imp"),
    "random mask": ("random mask f(x, m_RP, theta_0)", "random"),
    "IMP, random weights": ("random weights f(x, m_IMP, theta_0')", "reinit"),
    "IMP, layers shuffled": ("layers shuffled f(x, m_IMP, theta_0'')", None),
    "IMP, elements shuffled": ("elements shuffled f(x, m_IMP, theta_0'')", "shuffled"),
    "one-shot": ("one-shot f(x, m_OMP, theta_0)", None),
    "layer-wise one-shot": ("layer-wise one-shot, ours", None),
    "IMP, shuffled within matrices": ("IMP, shuffled within matrices, ours", None),
    "one-shot encoder, IMP pooler": ("one-shot encoder, IMP pooler, ours", None),
    "IMP encoder, one-shot pooler": ("IMP encoder, one-shot pooler, ours", None),
    "IMP, noise added": ("IMP, noise added, ours", None),
}  # kind of subnetwork -> label, row of the paper's Table 2
Cells = dict[str, Cell | None]  # by task


def wins(ticket: Cell | None, full: Cell | None, rule: str) -> bool | None:
    """Return whether `ticket` wins by one of RULES, None if a mean or deviation is missing.

    A ticket with an undefined score does not win.
    """
    if ticket is None or full is None or math.isnan(full.mean):
        return None
    slack = {"full": full.std, "ticket": ticket.std, "strict": 0.0}[rule]
    return None if slack is None else ticket.mean + slack >= full.mean - EPSILON


def sparsest(found: Results, task: str, rule: str) -> float | str | None:
    """Return the highest sparsity with a winning ticket: percent, "none", or None without data."""
    percents = sorted(set(found.select(task, "IMP")["percent"]))
    verdicts = {p: wins(found.cell(task, "IMP", p), found.full(task), rule) for p in percents}
    winning = [percent for percent, verdict in verdicts.items() if verdict]
    return max(winning, default="none" if False in verdicts.values() else None)


def sparsities(found: Results, layout: Layout, theirs: Mapping[str, int]) -> dict[str, float]:
    """Return the percent at which to compare each task: the user's, else `theirs` if measured.

    Else it is the sparsity that most runs of the task have.
    """
    theirs = paper.OWN_SPARSITY | dict(theirs)
    return {t: layout.sparsity or found.percent([t], theirs[t], own=True) for t in layout.tasks}


def quoted(row: str) -> dict[str, Cell]:
    """Return a row of the paper's Table 2."""
    deviations = paper.TABLE2.get(f"{row}_std", {})
    return {t: Cell(mean, deviations.get(t), n=0) for t, mean in paper.TABLE2[row].items()}


def table2(found: Results, layout: Layout) -> Table:
    """Table 2: subnetworks at the paper's sparsities, the controls, and which tickets win."""
    title = "Table 2: the full network, IMP tickets and controls"
    table, percents = layout.table("table2", title), sparsities(found, layout, paper.SPARSITY)
    full = {task: found.full(task) for task in percents}
    layout.add(table, "sparsity, %", percents)
    layout.add(table, "full network f(x, theta_0)", full, quoted("full"))
    for kind, (label, row) in TABLE2.items():
        cells = {task: found.cell(task, kind, percent) for task, percent in percents.items()}
        layout.add(table, label, cells, quoted(row) if row else None)
    tickets = {task: found.cell(task, "IMP", percent) for task, percent in percents.items()}
    for rule, name in RULE_NAMES.items():
        ours = {t: wins(tickets[t], full[t], rule) for t in percents}
        theirs = {t: wins(quoted("imp").get(t), quoted("full").get(t), rule) for t in percents}
        layout.add(table, f"IMP wins by {name}", ours, theirs)
    for rule, name in RULE_NAMES.items():
        best = {task: sparsest(found, task, rule) for task in percents}
        below = paper.SPARSITY if rule == "ticket" else None
        layout.add(table, f"sparsest winning ticket, %, by {name}", best, below)
    table.notes.append(
        f"A ticket wins by the full network's deviation if its {RULES['full']}; by its own if its "
        f"{RULES['ticket']}. Deviations are of the sample (n - 1), so one seed gives no verdict."
    )
    _note_sparsities(table, layout, percents)
    names = ", ".join(paper.NAMES[t] for t, cell in tickets.items() if cell and cell.from_rounds)
    if names:
        note = f"IMP scores of {names} are those of IMP's own rounds, trained from theta_0 too."
        table.notes.append(note)
    return table


def table3(found: Results, layout: Layout) -> Table:
    """Table 3: rewinding to theta_i and standard pruning, at Table 2's sparsities."""
    title = "Table 3: IMP with rewinding to later points, and standard pruning"
    table, percents = layout.table("table3", title), sparsities(found, layout, paper.SPARSITY)
    layout.add(table, "sparsity, %", percents)
    layout.add(table, "full network", {task: found.full(task) for task in percents}, quoted("full"))
    tickets = {task: found.cell(task, "IMP", percent) for task, percent in percents.items()}
    layout.add(table, "rewind 0 %", tickets, quoted("imp"))
    for point in [*_rewindings(found), results.STANDARD]:
        wanted = {"method": "imp", "rewinding": point}
        rounds = {task: found.cell(task, "IMP", p, **wanted) for task, p in percents.items()}
        standard = point == results.STANDARD
        layout.add(table, "standard pruning" if standard else f"rewind {point} %", rounds)
    _note_sparsities(table, layout, percents)
    layout.note(
        table,
        "The paper found: rewinding to a later point helps no task notably and hurts STS-B and "
        "RTE; standard pruning gains up to two points on QQP, QNLI, MRPC and MLM and loses up "
        "to three on STS-B, WNLI, RTE and SST-2.",
    )
    return table


def _note_sparsities(table: Table, layout: Layout, percents: dict[str, float]) -> None:
    other = [f"{paper.NAMES[t]} {p}" for t, p in paper.SPARSITY.items() if percents.get(t, p) != p]
    if other:
        named = ", ".join(other)
        layout.note(table, f"The paper's numbers are those at its own sparsities, in %: {named}.")
        if layout.sparsity is None:
            what = "If a task has no subnetwork of the paper's sparsity"
            table.notes.append(f"{what}, the table shows the most common one.")


def _rewindings(found: Results) -> list[str]:
    """Return the rewinding points that were measured, without 0."""
    measured = set(found.rows["rewinding"][found.rows["source"] == "imp"])
    return sorted(measured - {"0", results.STANDARD}, key=int)


def table4(found: Results, layout: Layout) -> Table:
    """Table 4: the sparsest tickets that reach at least the full network's mean."""
    table = layout.table("table4", "Table 4: winning tickets by the strict rule")
    best = {task: sparsest(found, task, "strict") for task in layout.tasks}
    percents = sparsities(found, layout, paper.STRICT_SPARSITY)
    winners = {t: found.cell(t, "IMP", p) for t, p in best.items() if isinstance(p, float)}
    layout.add(table, "full network", {task: found.full(task) for task in percents}, quoted("full"))
    layout.add(table, "sparsest winning ticket, %", best, paper.STRICT_SPARSITY)
    layout.add(table, "IMP at that sparsity", winners)
    layout.add(table, "sparsity in the paper or asked for, %", percents)
    layout.add(table, "IMP there", {t: found.cell(t, "IMP", p) for t, p in percents.items()})
    table.notes.append(f"A ticket wins by the strict rule if its {RULES['strict']}.")
    return table


def _transfer_percent(found: Results, layout: Layout) -> float:
    """Return the sparsity in percent of the masks that move between tasks."""
    usual = paper.TRANSFER_SPARSITY
    return layout.sparsity or found.percent(layout.tasks, usual, own=False)


def _transfers(found: Results, layout: Layout, kind: str, **wanted: Any) -> Cells:
    """Return target -> mean of the selected subnetworks minus the full network's.

    The deviation is that of the subnetworks.
    """
    cells: Cells = {}
    for task in layout.tasks:
        full, cell = found.full(task), found.cell(task, kind, **wanted)
        cells[task] = cell.minus(full) if cell and full else None
    return cells


def _figure2(layout: Layout, name: str, title: str, cells: dict[str, Cells]) -> Table:
    """Return a row per source; a cell is dark if it reaches that of the target's own mask."""
    table = layout.table(name, title, "source \\ target", digits=2)
    table.header.append("dark")
    for source, row in cells.items():
        own = {t: cells[t][t] if t in cells else None for t in row}
        verdicts = {t: wins(cell, own[t], "strict") for t, cell in row.items()}
        shaded = [cell and replace(cell, dark=bool(verdicts[t])) for t, cell in row.items()]
        known = [verdict for verdict in verdicts.values() if verdict is not None]
        count = f"{sum(known)} of {len(known)}" if known else None
        table.add(paper.SOURCES[source], [*shaded, count])
    return table


def figure2(found: Results, layout: Layout) -> Table:
    """Figure 2: Transfer(S, T) minus the full network's score on T."""
    percent = _transfer_percent(found, layout)
    title = f"Figure 2: transfer of {percent:g} % subnetworks, minus the full network's score"
    cells = {
        s: _transfers(found, layout, "IMP", percent=percent, source_task=s) for s in layout.tasks
    }
    cells[paper.OMP] = _transfers(found, layout, "one-shot", percent=percent)
    table = _figure2(layout, "figure2", title, cells)
    table.notes += [
        "Dark (bold): at least as high as the mask found on the target itself; the last column "
        "counts those cells, the target's own among them.",
        "Deviations are those of the subnetworks.",
    ]
    return table


def figure2_paper(layout: Layout) -> Table:
    """The paper's Figure 2 by the same rule, for the same targets."""
    cells: dict[str, Cells] = {}
    for source, row in paper.FIGURE2.items():
        numbers = {task: row.get(task) for task in layout.tasks}
        cells[source] = {t: None if n is None else Cell(n, None, n=0) for t, n in numbers.items()}
    title = "Figure 2 as the paper reports it (BERT-base, 70 %)"
    return _figure2(layout, "figure2_paper", title, cells)


def figure_rewind(found: Results, layout: Layout) -> Table:
    """Section 4, question 3: transfer of subnetworks rewound to theta_i, like Figure 2."""
    percent = _transfer_percent(found, layout)
    what = f"Transfer of {percent:g} % subnetworks rewound to later points"
    title = f"{what}, minus the full network's score"
    table = layout.table("figure_rewind", title, "source, rewound to \\ target", digits=2)
    rewound = set(found.rows["init_task"][found.rows["init"] == "rewound"])
    for source in (task for task in paper.NAMES if task in rewound):
        wanted: dict[str, Any] = {"percent": percent, "source_task": source}
        for point in ["0", *_rewindings(found)]:
            if point != "0":
                wanted |= {"init": "rewound", "init_task": source}
                wanted |= {"init_rewinding": point, "rewinding": point}
            label = f"{paper.NAMES[source]}, {point} %"
            layout.add(table, label, _transfers(found, layout, "IMP", **wanted))
    layout.note(
        table,
        "The paper found: subnetworks rewound to later points transfer no better from MLM and "
        "slightly better from SQuAD.",
    )
    return table


def figure_sparsity(found: Results, layout: Layout) -> Table:
    """Score against sparsity, by how the mask was found and what it was trained from."""
    rows = found.rows[found.rows["task"].isin(layout.tasks) & (found.rows["source"] != "")]
    percents = sorted(set(rows["percent"]))
    columns = [f"{percent:g} %" for percent in (0.0, *percents)]
    table = Table("figure_sparsity", "Score against sparsity", ["task, subnetwork", *columns])
    for task in layout.tasks:
        for kind in results.SUBNETWORKS:
            cells = [found.cell(task, kind, percent) for percent in percents]
            if any(cells):
                table.add(f"{paper.NAMES[task]}, {kind}", [found.full(task), *cells])
    return table
