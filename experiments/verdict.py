"""Check the claims of Table 2, and two of ours, against the runs below a folder."""

if __name__ == "__main__":
    import _root  # noqa: F401

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments import barriers, builders, markup, paper, results, tables
from experiments.barriers import STABLE, Line
from experiments.markup import Layout
from experiments.results import Cell, Results
from utils import cli, files

MARGIN = 10.0  # points by which a control must fall behind the full network (ours)
CONTROLS = ("random mask", "IMP, random weights", "IMP, layers shuffled", "IMP, elements shuffled")
SHUFFLED = "IMP, shuffled within matrices"
WORDS = {True: "shown", False: "NOT shown", None: "cannot tell"}


def claims(
    found: Results, task: str, percent: float, lines: list[Line]
) -> Iterator[tuple[bool | None, str]]:
    """Yield whether the runs show each claim about `task` (None: cannot tell), and its numbers."""
    full, ticket = found.full(task), found.cell(task, "IMP", percent)
    if full is None:
        yield None, "no run of the full network"
        return
    score = f"the full network's {_shown(full)}"
    if ticket is not None:
        claim = f"the IMP ticket's {_shown(ticket)} is within one standard deviation of {score}"
        yield builders.wins(ticket, full, "full"), claim
    for kind in CONTROLS:
        control = found.cell(task, kind, percent)
        if control is not None:
            behind = full.mean - control.mean
            claim = f"{MARGIN:g} points or more below {score} ({behind:.1f})"
            verdict = None if math.isnan(behind) else behind >= MARGIN
            yield verdict, f"{kind}, {_shown(control)}: {claim}"
    control = found.cell(task, SHUFFLED, percent)
    if ticket is not None and control is not None:
        lead = ticket.mean - control.mean
        stds = [cell.std for cell in (ticket, control) if cell.std is not None]
        claim = f"more than both deviations below the ticket's {_shown(ticket)} ({lead:.1f}; ours)"
        verdict = lead > sum(stds) if len(stds) == 2 else None
        yield verdict, f"{SHUFFLED}, {_shown(control)}: {claim}"
    own = [line for line in lines if (line.task, line.kind, line.percent) == (task, "IMP", percent)]
    error, loss = (barriers.mean(own, measure) for measure in ("error", "loss"))
    if ticket and error and loss:
        claim = "the IMP ticket is within one standard deviation exactly if it is stable"
        height = f"barrier of {error.mean:.1f} points in error, {loss.mean:.4f} in loss"
        matches = builders.wins(ticket, full, "full")
        stable = barriers.stable(error)
        verdict = None if None in (matches, stable) else matches == stable
        yield verdict, f"{claim}: {height} between two data orders (stable: below {STABLE:g}; ours)"


def _shown(cell: Cell) -> str:
    return markup.show(replace(cell, n=0), digits=1)


def report(folder: Path, layout: Layout) -> str:
    """Return a line per claim about the runs below `folder`, below a line of counts."""
    found = results.read(folder)
    measured = barriers.read(folder, found)
    for notice in found.notices:
        files.warn(notice)
    at = builders.sparsities(found, layout, paper.SPARSITY)
    at = {t: p for t, p in at.items() if layout.named or t in set(found.rows["task"])}
    made = [
        (task, *claim)
        for task, percent in at.items()
        for claim in claims(found, task, percent, measured)
    ]
    verdicts = [verdict for _, verdict, _ in made]
    counts = [f"{verdicts.count(v)} {word}" for v, word in WORDS.items() if v in verdicts]
    percents = ", ".join(f"{percent:g}" for percent in sorted(set(at.values())))
    lines = [f"Claims at {percents} % sparsity: {', '.join(counts)}"]
    lines += [f"{WORDS[verdict]:>11}  {paper.NAMES[t]}: {claim}" for t, verdict, claim in made]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the report."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder below which every results.jsonl is read")
    add("--tasks", nargs="+", metavar="TASK", help="tasks (default: all, the paper's eleven)")
    text = "of the masks, 0 to 1 (default: the paper's, or the most common)"
    add("--sparsity", type=float, help=text)
    args = parser.parse_args(argv)
    layout = tables.layout_of(args.tasks, args.sparsity, with_paper=False)
    print(report(args.folder, layout))


if __name__ == "__main__":
    cli.run(main)
