"""The paper's figures as PNG and PDF, from every results.jsonl and mask below a folder."""

from __future__ import annotations

if __name__ == "__main__":
    import _root  # noqa: F401

import argparse
import hashlib
import importlib.util
import itertools
import math
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import barriers, markup, paper, results, tables
from experiments.barriers import Line
from experiments.markup import DASH, Table, Value, show
from experiments.results import Cell, Results
from utils import cli, files
from utils.errors import UserError

INSTALLED = importlib.util.find_spec("matplotlib") is not None
if INSTALLED:
    os.environ["MPLBACKEND"] = "agg"  # no figure is shown; another backend may be missing
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

WIDTH = 7.0  # inches: the text width of a page; no text is smaller than 6 points
DPI = 200
Lines = Mapping[str, Mapping[float, Value]]  # label -> x -> score
DARK, LIGHT, TEXT, BLACK, GREY = "#08519c", "#deebf7", "#222222", "#000000", "#999999"
STYLES = [  # colour (Okabe and Ito, for colour-blind readers), marker, line
    *(("#0072B2", "o", "-"), ("#E69F00", "s", "--"), ("#009E73", "^", ":")),
    *(("#D55E00", "v", "-."), ("#CC79A7", "D", "--"), ("#56B4E9", "P", ":")),
    *((BLACK, "x", "-"), ("#F0E442", "*", "-"), (GREY, "<", "--")),
    *(("#332288", ">", ":"), ("#882255", "h", "-."), ("#44AA99", "p", "-")),
]
TURNED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
SETTINGS: dict[Any, Any] = {
    **{"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False},
    **{"legend.frameon": False, "pdf.fonttype": 42, "figure.dpi": DPI},
}


def _subplots(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def transfers(table: Table) -> Figure:
    """Draw Figure 2: the number of each cell, dark cells dark, and their counts at the right."""
    targets = table.header[1:-1]
    width = max(3.0, 0.56 * (len(targets) + 2))
    title = textwrap.fill(table.title, int(17 * width))  # 17 letters per inch
    height = 0.9 + 0.28 * len(table.rows) + 0.14 * title.count("\n")
    figure, [axes] = _subplots(1, 1, width, height)
    right = len(targets) - 0.35
    for y, (_, values) in enumerate(table.rows):
        for x, cell in enumerate(_cells(values[:-1])):
            fill = "white" if cell is None else DARK if cell.dark else LIGHT
            square = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="white")
            axes.add_patch(square)
            text = f"{cell.mean:.2f}" if cell else DASH
            _number(axes, x, y, text, white=fill == DARK)
        axes.text(right, y, show(values[-1], 0), va="center", fontsize=7, color=TEXT)
    _grid(axes, table, targets)
    axes.set(xlabel="target task", ylabel="source task")
    figure.suptitle(title, x=0.02, ha="left", fontsize=8)
    axes.text(right, -0.72, "dark", fontsize=7, color=TEXT)
    return figure


def shares(table: Table) -> Figure:
    """Draw overlaps of pairs as a shaded matrix; the colours of cividis also differ in grey."""
    columns = table.header[1:]
    height = max(2.2, 1.1 + 0.28 * len(table.rows))
    figure, [axes] = _subplots(1, 1, 2.2 + 0.45 * len(columns), height)
    cells = [_cells(values) for _, values in table.rows]
    numbers = [[cell.mean if cell else math.nan for cell in row] for row in cells]
    image = axes.imshow(numbers, cmap="cividis", aspect="auto")
    middle = sum(image.get_clim()) / 2
    for y, row in enumerate(numbers):
        for x, number in enumerate(row):
            text = DASH if math.isnan(number) else f"{number:.1f}"
            _number(axes, x, y, text, white=number < middle)
    _grid(axes, table, columns)
    axes.set_title(table.title.partition(":")[0], loc="left", fontsize=8)
    figure.colorbar(image, label="kept by both, % of either", fraction=0.05)
    return figure


def _cells(values: list[Value]) -> list[Cell | None]:
    return [value if isinstance(value, Cell) else None for value in values]


def _math(label: str) -> str:
    return label.replace("theta_0", r"$\theta_0$")


def _number(axes: Axes, x: int, y: int, text: str, white: bool) -> None:
    colour = "white" if white else TEXT
    axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color=colour)


def _grid(axes: Axes, table: Table, columns: list[str]) -> None:
    rows = [_math(label) for label, _ in table.rows]
    names = [_math(column) for column in columns]
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(names)), names, fontsize=7, **TURNED)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def sparsities(found: Results, tasks: tuple[str, ...]) -> Figure:
    """Draw score against sparsity: a panel per task, the full network as a band."""
    masked = found.rows[found.rows["source"] != ""]
    measured = [task for task in tasks if task in set(masked["task"])]
    percents = sorted(set(masked["percent"]) - {0.0})
    columns = min(3, len(measured))
    rows = math.ceil(len(measured) / columns)
    figure, panels = _subplots(rows, columns, min(WIDTH, 2.6 * columns + 0.4), 0.5 + 2.0 * rows)
    for axes, task in zip(panels, measured, strict=False):
        full = found.full(task)
        if full and not math.isnan(full.mean):
            axes.axhline(full.mean, color=BLACK, linewidth=0.8, label="full network")
        if full and full.std is not None:
            low, high = full.mean - full.std, full.mean + full.std
            axes.axhspan(low, high, color=BLACK, alpha=0.12, linewidth=0)
        kinds = results.SUBNETWORKS
        _curves(axes, {k: {p: found.cell(task, k, p) for p in percents} for k in kinds})
        axes.set_title(paper.NAMES[task], loc="left")
        axes.set(xlabel="sparsity, %", ylabel="score, %", xlim=(0, 100))
    for axes in panels[len(measured) :]:
        axes.set_visible(False)
    _legend(figure, "outside lower center", columns=4)
    return figure


def _curves(axes: Axes, lines: Lines, unit: float = 1.0) -> None:
    """Draw mean and deviation, divided by `unit`, against x, if there is data."""
    for (label, points), style in zip(lines.items(), itertools.cycle(STYLES), strict=False):
        cells = {x: cell for x, cell in points.items() if isinstance(cell, Cell)}
        means = [cell.mean / unit for cell in cells.values()]
        if not all(map(math.isnan, means)):  # an undefined score is a gap in the line
            spread = [(cell.std or 0.0) / unit for cell in cells.values()]
            look: dict[str, Any] = dict(zip(("color", "marker", "linestyle"), style, strict=True))
            look |= {"linewidth": 1.1, "elinewidth": 0.7, "capsize": 1.5}
            # open, and smaller from line to line: equal points stay visible
            look |= {"markerfacecolor": "none", "markersize": 1 + 8 * 0.8 ** STYLES.index(style)}
            axes.errorbar(list(cells), means, yerr=spread, label=_math(label), **look)


def _legend(figure: Figure, position: str, columns: int = 1) -> None:
    """Add one legend for all panels, outside of them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    look: dict[str, Any] = {"loc": position, "ncols": columns, "fontsize": 7}
    figure.legend(list(handles.values()), list(handles), **look)


def rewindings(table: Table) -> Figure:
    """Draw transfer against the rewinding point: a panel per source, a line per target."""
    sources: dict[str, dict[float, list[Value]]] = {}  # source -> percent of training -> scores
    for label, values in table.rows:
        source, _, point = label.removesuffix(" %").rpartition(", ")
        sources.setdefault(source, {})[float(point)] = values
    figure, panels = _subplots(1, len(sources), min(WIDTH, 2.6 * len(sources) + 1.4), 2.8)
    for axes, (source, rows) in zip(panels, sources.items(), strict=True):
        _curves(axes, _columns(table, rows))
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_title(f"found on {source}", loc="left")
        axes.set(xlabel="rewound to, % of training", ylabel="score minus the full network's")
    _legend(figure, "outside right upper")
    return figure


def with_one_shot(table: Table) -> Figure:
    """Draw the cosine of IMP masks and the one-shot masks of theta_0 against sparsity."""
    figure, [axes] = _subplots(1, 1, 4.6, 2.6)
    ending = " %, cosine x 100"
    rows = {float(s.removesuffix(ending)): row for s, row in table.rows if s.endswith(ending)}
    _curves(axes, _columns(table, rows), unit=100)
    axes.plot([0, 100], [1, 0], color=GREY, linewidth=0.8, label="random masks")
    axes.set(xlabel="sparsity, %", ylabel="cosine with the one-shot mask")
    _legend(figure, "outside right upper")
    return figure


def connectivity(lines: list[Line]) -> Figure:
    """Draw by how much loss and error exceed the straight line between two trainings' values.

    A row of panels per task, a curve per network; its maximum is the barrier.
    """
    tasks = list(dict.fromkeys(line.task for line in lines))
    figure, panels = _subplots(len(tasks), 2, 5.6, 0.6 + 2.0 * len(tasks))
    cases = itertools.product(tasks, barriers.MEASURES)
    for axes, (task, measure) in zip(panels, cases, strict=True):
        # every panel has all networks, so that each has one style
        points: dict[str, dict[float, list[float]]] = {line.label: {} for line in lines}
        for line in (line for line in lines if line.task == task):
            for alpha, value in zip(line.alpha, line.excess(measure), strict=True):
                points[line.label].setdefault(float(alpha), []).append(float(value))
        curves = {name: {x: Cell.of(own) for x, own in of.items()} for name, of in points.items()}
        _curves(axes, curves)
        axes.set_title(paper.NAMES.get(task, task), loc="left")
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="from one training (0) to the other (1)", ylabel=f"excess {measure}")
    _legend(figure, "outside lower center", columns=4)
    return figure


def against_chance(table: Table) -> Figure:
    """Draw what the masks of each pair share (dot), and what they would by chance (circle)."""
    columns = 1 if len(table.rows) <= 30 else 2
    size = math.ceil(len(table.rows) / columns)
    figure, panels = _subplots(1, columns, min(WIDTH, 4.6 * columns), 1.1 + 0.17 * size)
    for at, axes in enumerate(panels):
        rows = table.rows[at * size : (at + 1) * size]
        for column, label in enumerate(("masks found", "by chance")):
            means = [cell.mean for _, row in rows if (cell := _cells(row)[column])]
            look: dict[str, Any] = {"color": (DARK, BLACK)[column], "zorder": 2 + column}
            look |= {"fillstyle": ("full", "none")[column], "markersize": 4, "label": label}
            axes.plot(means, range(len(means)), "o", **look)
        axes.set_yticks(range(len(rows)), [_math(label) for label, _ in rows], fontsize=7)
        axes.set(xlabel=table.header[1], xlim=(-2, 102), ylim=(size - 0.5, -0.5))
        axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    figure.suptitle(table.title, x=0.02, ha="left", fontsize=8)
    _legend(figure, "outside lower center", columns=2)
    return figure


def profiles(table: Table) -> Figure:
    """Draw the sparsity by layer and by kind of matrix, with a line per source."""
    figure, panels = _subplots(1, 2, WIDTH, 3.4)
    layers = [row for row in table.rows if row[0].startswith("layer ")]
    kinds = [row for row in table.rows if row not in layers and row[0] != "all"]
    for axes, rows in zip(panels, (layers, kinds), strict=True):
        _curves(axes, _columns(table, {at: values for at, (_, values) in enumerate(rows)}))
        names = [label.removeprefix("layer ") for label, _ in rows]
        axes.set_xticks(range(len(rows)), names, fontsize=7, **(TURNED if rows is kinds else {}))
        axes.set(ylabel="sparsity, %", xlabel="kind of matrix" if rows is kinds else "layer")
    figure.suptitle(table.title, x=0.02, ha="left", fontsize=8)
    _legend(figure, "outside lower center", columns=6)
    return figure


def _columns(table: Table, rows: dict[float, list[Value]]) -> Lines:
    """Return a line per column of the table through the scores of `rows`, x -> values."""
    targets = enumerate(table.header[1:])
    return {target: {x: values[i] for x, values in rows.items()} for i, target in targets}


DRAW = {  # name of a table -> how it is drawn; others from the runs
    **{"figure2": transfers, "figure2_paper": transfers, "figure_rewind": rewindings},
    **dict.fromkeys((tables.OVERLAP, "overlap_by_layer", "overlap_by_kind"), shares),
    **{"overlap_by_chance": against_chance, "sparsity_profile": profiles},
    "overlap_with_omp": with_one_shot,
}


def requested(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[Table], Results]:
    """Return the flags of a command line, the tables to draw, and the results.

    Raises UserError if there are no results, or those of one task have different recipes.
    """
    flags = tables.parser(__doc__, "figures")
    names = ["figure_sparsity", tables.CONNECTIVITY, *DRAW]
    flags.add_argument("--only", nargs="+", choices=names, help="draw only these figures")
    args = flags.parse_args(argv)
    args.out = args.out or args.folder / "figures"
    layout = tables.layout_of(args.tasks, args.sparsity, not args.no_paper)
    own = {name: name for name in (*tables.BUILDERS, tables.CONNECTIVITY)}
    makers = own | {"figure2_paper": "figure2"}  # the other tables come with the overlaps
    wanted = [makers.get(name, tables.OVERLAP) for name in args.only or names]
    made, found = tables.build(args.folder, layout, wanted, args.as_released)
    return args, [table for table in made if not args.only or table.name in args.only], found


def digest(table: Table) -> str:
    """Return the sha256 of a table's title and numbers; a drawn figure contains it."""
    return hashlib.sha256((table.title + markup.comma_separated(table)).encode()).hexdigest()


def write(args: argparse.Namespace, table: Table, found: Results, *suffixes: str) -> None:
    """Draw a table to NAME.SUFFIX; scores against sparsity from `found`."""
    if not INSTALLED:
        raise UserError("matplotlib is not installed; pip install -r requirements-figures.txt")
    with matplotlib.rc_context(SETTINGS):
        if table.name == "figure_sparsity":
            figure = sparsities(found, paper.task_keys(args.tasks))
        elif table.name == tables.CONNECTIVITY:
            shown = paper.task_keys(args.tasks)
            figure = connectivity([e for e in barriers.read(args.folder, found) if e.task in shown])
        else:
            figure = DRAW[table.name](table)
        for suffix in suffixes:
            _save(figure, args.out / f"{table.name}.{suffix}", digest(table))


def write_lines(lines: list[Line], path: Path) -> None:
    """Draw the lines to a PNG file."""
    with matplotlib.rc_context(SETTINGS):
        _save(connectivity(lines), path, source="")


def _save(figure: Figure, path: Path, source: str) -> None:
    suffix = path.suffix.removeprefix(".")
    metadata = {"Keywords" if suffix == "pdf" else "Description": source}
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format=suffix, metadata=metadata)


def main(argv: list[str] | None = None) -> None:
    """Draw and write NAME.png and NAME.pdf of every figure."""
    args, made, found = requested(argv)
    for notice in found.notices:
        files.warn(notice)
    for table in made:
        write(args, table, found, "png", "pdf")
        print(args.out / f"{table.name}.png")
    print(f"{len(made)} figures written to {args.out}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
