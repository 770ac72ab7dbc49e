"""The paper's tables and the numbers of its figures, from the runs and masks below a folder."""

if __name__ == "__main__":
    import _root  # noqa: F401

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from experiments import barriers, builders, markup, overlap, paper, results, significance
from experiments.markup import Layout, Table
from experiments.results import Results
from utils import cli, files
from utils.errors import UserError

_TABLES = (builders.table2, builders.table3, builders.table4)
_FIGURES = (builders.figure2, builders.figure_rewind, builders.figure_sparsity)
BUILDERS = {builder.__name__: builder for builder in (*_TABLES, *_FIGURES)}
OVERLAP, CONNECTIVITY = "figure_overlap", "connectivity"
LEGEND = "Mean ± standard deviation in percent points, number of seeds in brackets"


def overlap_tables(folder: Path, found: Results, layout: Layout, as_released: bool) -> list[Table]:
    """Return the overlap of the masks below `folder`.

    Raises UserError if IMP found those of one task with different recipes. Only IMP that rewinds
    to theta_0 counts; the training of the tickets may differ from it.
    """
    masks = overlap.find(folder, as_released, found.notices)
    rows = found.rows[(found.rows["method"] == "imp") & (found.rows["rewinding"] == "0")]
    sources = {mask.source for mask in masks}
    for task in (task for task in layout.tasks if task in sources):
        results.check_recipe(task, rows[rows["task"] == task])
    return overlap.tables(masks, layout)


def build(
    folder: Path,
    layout: Layout,
    only: list[str] | None = None,
    as_released: bool = False,
    statistics: bool = False,
) -> tuple[list[Table], Results]:
    """Return the tables for which there is data, and the results they are made from.

    `statistics` adds those of significance.py to Table 2.
    Raises UserError if there are no results, or those of one task have different recipes.
    """
    found = results.read(folder, as_released)
    wanted = only or [*BUILDERS, OVERLAP, CONNECTIVITY]
    tables = [builder(found, layout) for name, builder in BUILDERS.items() if name in wanted]
    if OVERLAP in wanted:
        tables += overlap_tables(folder, found, layout, as_released)
    if CONNECTIVITY in wanted:
        tables.append(barriers.table(barriers.read(folder, found), found, layout))
    tables = [table for table in tables if table.measured()]
    names = [table.name for table in tables]
    if statistics and "table2" in names:
        significance.add_to(tables[names.index("table2")], found, layout)
    for table in tables if not layout.named else ():
        table.drop_empty_columns()
    if "figure2" in names and layout.with_paper:
        header = tables[at := names.index("figure2")].header
        shown = tuple(task for task in layout.tasks if paper.NAMES[task] in header)
        tables.insert(at + 1, builders.figure2_paper(replace(layout, tasks=shown)))
    return tables, found


def write(tables: list[Table], notices: list[str], out: Path) -> str:
    """Write NAME.md, NAME.csv and NAME.tex of each table, and tables.md; return that Markdown."""
    pieces = [f"{LEGEND}; {markup.DASH}: no run; nan: a seed's score is not defined.\n"]
    for table in tables:
        pieces.append(markup.markdown(table))
        files.write_text(out / f"{table.name}.md", pieces[-1])
        files.write_text(out / f"{table.name}.csv", markup.comma_separated(table))
        files.write_text(out / f"{table.name}.tex", markup.latex(table))
    if notices:
        pieces.append("### Left out\n\n" + "".join(f"- {notice}\n" for notice in notices))
    files.write_text(out / "tables.md", "\n".join(pieces))
    return "\n".join(pieces)


def parser(description: str | None, what: str) -> argparse.ArgumentParser:
    """Return the flags that tables.py and figures.py share; `what` they write."""
    made = cli.OneLineParser(description)
    add = made.add_argument
    add("folder", type=Path, help="folder below which every results.jsonl and mask is read")
    add("--out", type=Path, help=f"where to write the {what} (default, ours: FOLDER/{what})")
    add("--tasks", nargs="+", metavar="TASK", help="tasks (default: all, the paper's eleven)")
    which = "sparsity of the subnetworks, 0 to 1 (default: the paper's, or the most common)"
    add("--sparsity", type=float, metavar="S", help=which)
    add("--as_released", action="store_true", help="use the masks found with --as_released instead")
    add("--no_paper", action="store_true", help="leave out the paper's numbers")
    return made


def layout_of(tasks: list[str] | None, sparsity: float | None, with_paper: bool) -> Layout:
    """Return the layout that the user asks for.

    Raises UserError for an unknown task or a sparsity out of range.
    """
    percent = None if sparsity is None else round(100 * sparsity, 1)
    if percent is not None and not 0 < percent < 100:
        raise UserError(f"--sparsity {sparsity:g} must be between 0.001 and 0.999, such as 0.7")
    return Layout(paper.task_keys(tasks), with_paper, percent, named=bool(tasks))


def requested(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[Table], Results]:
    """Return the flags of a command line, and what `build` makes for them."""
    flags = parser(__doc__, "tables")
    names = [*BUILDERS, OVERLAP, CONNECTIVITY]
    flags.add_argument("--only", nargs="+", choices=names, help="build only these tables")
    text = "add intervals and tests over examples and seeds to table2 (ours)"
    flags.add_argument("--statistics", action="store_true", help=text)
    args = flags.parse_args(argv)
    layout = layout_of(args.tasks, args.sparsity, not args.no_paper)
    return args, *build(args.folder, layout, args.only, args.as_released, args.statistics)


def main(argv: list[str] | None = None) -> None:
    """Write the tables and print them."""
    args, tables, found = requested(argv)
    out = args.out or args.folder / "tables"
    print(write(tables, found.notices, out))
    for notice in found.notices:
        files.warn(notice)
    print(f"{len(tables)} tables written to {out}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
