"""Which of Table 2's claims the runs below a folder show, and which they do not, each with its numbers."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/verdict.py` finds utils

from experiments import command, paper, results, tables
from experiments.results import Cell, Results

MARGIN = 10.0  # points by which a control must fall behind the full network (ours)
CONTROLS = (
    "random mask",
    "IMP, random weights",
    "IMP, layers shuffled",
    "IMP, elements shuffled",
)  # of tables.curves


def claims(found: Results, task: str, percent: float) -> Iterator[tuple[bool | None, str]]:
    """Each claim about `task` at `percent` sparsity: shown or not (None: the runs cannot tell), and its numbers."""
    name, full, ticket = paper.NAMES[task], found.full(task), found.ticket(task, percent)
    if full is None:
        yield None, f"{name}: no run of the full network"
        return
    whole = f"the full network's {_shown(full)}"
    if ticket is not None:
        yield (
            tables.wins(ticket, full, "full"),
            (
                f"{name}: the IMP ticket's {_shown(ticket)} is within one standard deviation of {whole}"
            ),
        )
    for label, wanted in tables.curves(task).items():
        control = found.cell(task, percent=percent, **wanted) if label in CONTROLS else None
        if control is not None:
            behind = full.mean - control.mean
            yield (
                behind >= MARGIN,
                (
                    f"{name}: {label}, {_shown(control)}: {MARGIN:g} points or more below {whole} ({behind:.1f})"
                ),
            )


def _shown(cell: Cell) -> str:
    return f"{cell.mean:.1f}" if cell.std is None else f"{cell.mean:.1f} ± {cell.std:.1f}"


def report(found: Results, tasks: tuple[str, ...], percent: float) -> str:
    """One line a claim, and how many are shown."""
    told = [claim for task in tasks for claim in claims(found, task, percent)]
    words = {True: "shown", False: "NOT shown", None: "cannot tell"}
    lines = [f"{words[verdict]:>11}  {text}" for verdict, text in told]
    counts = ", ".join(
        f"{n} {word}"
        for v, word in words.items()
        if (n := sum(verdict is v for verdict, _ in told))
    )
    return "\n".join([f"Table 2's claims at {percent:g} % sparsity: {counts}", *lines])


def main(argv: list[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder below which every results.jsonl is read")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="tasks (default: the paper's eleven)"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.5,
        help="of the tickets and controls, 0 to 1 (default: 0.5)",
    )
    args = parser.parse_args(argv)
    layout = tables.layout_of(args.tasks, args.sparsity, with_paper=False)
    print(report(results.read(args.folder), layout.tasks, layout.transfer_percent()))


if __name__ == "__main__":
    command.run(main)
