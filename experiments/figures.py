"""The paper's figures as PNG and PDF, from every results.jsonl and mask below a folder: what tables.py counts, drawn."""

import argparse
import sys
import textwrap
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/figures.py` finds utils

from experiments import command, overlap, paper, results, tables
from experiments.markup import DASH, Entry, Table
from experiments.results import Cell, Results
from utils.errors import UserError

try:
    import matplotlib
except ImportError:
    matplotlib = None

WIDTH = 7.0  # inches: a page's text; nothing is printed smaller than 6 points
DPI = 200
DARK, LIGHT, TEXT = (
    "#08519c",
    "#deebf7",
    "#222222",
)  # a pair that stays apart in grey and for every kind of sight
STYLES = {
    "IMP": ("#0072B2", "o", "-"),
    "one-shot": ("#E69F00", "s", "--"),
    "random mask": ("#009E73", "^", ":"),
    "IMP, random weights": ("#D55E00", "v", "-."),
    "IMP, layers shuffled": ("#CC79A7", "D", "--"),
    "IMP, elements shuffled": ("#56B4E9", "P", ":"),
}  # Okabe and Ito's colours, and a marker and a line of its own for each
LINES = [
    *STYLES.values(),
    ("#000000", "x", "-"),
    ("#F0E442", "*", "-"),
    ("#999999", "<", "--"),
    ("#332288", ">", ":"),
    ("#882255", "h", "-."),
]
SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.dpi": DPI,
}


def _subplots(rows: int, columns: int, width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def transfers(table: Table):
    """Figure 2: each cell's number, dark where it is at least the target's own, and the counts at the right."""
    targets, sources = table.header[1:-1], [label for label, _ in table.rows]
    width = max(3.0, 0.56 * (len(targets) + 2))
    title = textwrap.fill(table.title, int(17 * width))  # as many letters go in an inch
    figure, [[axes]] = _subplots(1, 1, width, 0.9 + 0.28 * len(sources) + 0.14 * title.count("\n"))
    for y, (_, entries) in enumerate(table.rows):
        for x, entry in enumerate(entries[:-1]):
            _transfer_cell(axes, x, y, entry)
        axes.text(len(targets) - 0.35, y, entries[-1].show(0), va="center", fontsize=7, color=TEXT)
    _grid(axes, targets, sources)
    axes.set_xlabel("target task")
    axes.set_ylabel("source task")
    figure.suptitle(title, x=0.02, ha="left", fontsize=8)
    axes.text(len(targets) - 0.35, -0.72, "dark", fontsize=7, color=TEXT)
    return figure


def _transfer_cell(axes, x: int, y: int, entry: Entry) -> None:
    from matplotlib.patches import Rectangle

    text = DASH if entry.show(2) == DASH else f"{entry.cell.mean:.2f}" if entry.cell else entry.text
    fill = "white" if text == DASH else DARK if entry.dark else LIGHT
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="white", linewidth=1)
    )
    axes.text(
        x, y, text, ha="center", va="center", fontsize=6.5, color="white" if entry.dark else TEXT
    )


def _grid(axes, columns: list[str], rows: list[str]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    columns, rows = (
        [name.replace("theta_0", r"$\theta_0$") for name in names] for names in (columns, rows)
    )
    axes.set_xticks(
        range(len(columns)), columns, fontsize=7, rotation=35, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def shares(table: Table):
    """Overlap as a shaded matrix: percent of the weights that either mask keeps; cividis reads in grey too."""
    rows, columns = [label for label, _ in table.rows], table.header[1:]
    figure, [[axes]] = _subplots(1, 1, 2.2 + 0.45 * len(columns), 1.1 + 0.28 * len(rows))
    numbers = [
        [e.cell.mean if e.cell else float("nan") for e in entries] for _, entries in table.rows
    ]
    image = axes.imshow(numbers, cmap="cividis", aspect="auto")
    low, high = image.get_clim()
    for y, row in enumerate(numbers):
        for x, number in enumerate(row):
            dark = number < (low + high) / 2  # a cell without data is white
            axes.text(
                x,
                y,
                DASH if number != number else f"{number:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else TEXT,
            )
    _grid(axes, columns, rows)
    axes.set_title(table.title.partition(":")[0], loc="left", fontsize=8)
    figure.colorbar(image, label="kept by both, % of either", fraction=0.05)
    return figure


def sparsities(found: Results, tasks: tuple[str, ...]):
    """Score against sparsity, one panel a task: curves with their standard deviations, the full network's as a band."""
    measured = [task for task in tasks if any(row.source for row in found.rows if row.task == task)]
    columns = min(3, len(measured))
    rows = -(-len(measured) // columns)
    figure, axes = _subplots(rows, columns, min(WIDTH, 2.6 * columns + 0.4), 0.5 + 2.0 * rows)
    panels = list(axes.flat)
    for place, task in zip(panels, measured, strict=False):
        _score_panel(place, found, task)
    for place in panels[len(measured) :]:
        place.set_visible(False)
    _legend(figure, "outside lower center", columns=4)
    return figure


def _legend(figure, place: str, columns: int = 1) -> None:
    """One legend for all panels, outside of them."""
    handles = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc=place, ncols=columns, fontsize=7)


def _score_panel(axes, found: Results, task: str) -> None:
    full = found.full(task)
    if full:
        axes.axhline(full.mean, color="#000000", linewidth=0.8, label="full network")
    if full and full.std is not None:
        axes.axhspan(
            full.mean - full.std, full.mean + full.std, color="#000000", alpha=0.12, linewidth=0
        )
    for label, wanted in tables.curves(task).items():
        percents = [p for p in found.percents(task, **wanted) if p]
        points = {p: cell for p in percents if (cell := found.cell(task, percent=p, **wanted))}
        _curve(axes, points, label, STYLES[label])
    axes.set_title(paper.NAMES[task], loc="left")
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("score, %")
    axes.set_xlim(0, 100)


def _curve(axes, points: dict[float, Cell], label: str, style: tuple[str, str, str]) -> None:
    if not points:
        return
    colour, marker, line = style
    spread = [cell.std or 0.0 for cell in points.values()]
    axes.errorbar(
        list(points),
        [cell.mean for cell in points.values()],
        yerr=spread,
        label=label,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=3.5,
        linewidth=1.1,
        elinewidth=0.7,
        capsize=1.5,
    )


def rewindings(table: Table):
    """Transfer of subnetworks rewound to later points: one panel a source, one line a target."""
    sources = list(dict.fromkeys(label.rpartition(", ")[0] for label, _ in table.rows))
    figure, axes = _subplots(1, len(sources), min(WIDTH, 2.6 * len(sources) + 1.4), 2.8)
    for place, source in zip(axes[0], sources, strict=True):
        for column, target in enumerate(table.header[1:]):
            points = {
                float(label.rpartition(", ")[2].removesuffix(" %")): entries[column].cell
                for label, entries in table.rows
                if label.startswith(f"{source}, ") and entries[column].cell
            }
            _curve(place, points, target, LINES[column % len(LINES)])
        place.axhline(0, color="#000000", linewidth=0.8)
        place.set_title(f"found on {source}", loc="left")
        place.set_xlabel("rewound to, % of training")
        place.set_ylabel("score less the full network's")
    _legend(figure, "outside right upper")
    return figure


def with_one_shot(table: Table):
    """Cosine of IMP masks with the one-shot masks of theta_0, against sparsity; two random masks have 1 - sparsity."""
    figure, [[axes]] = _subplots(1, 1, 4.6, 2.6)
    rows = {
        float(label.partition(" ")[0]): entries
        for label, entries in table.rows
        if label.endswith("cosine x 100")
    }
    for column, task in enumerate(table.header[1:]):
        points = {
            percent: entries[column].cell
            for percent, entries in rows.items()
            if entries[column].cell
        }
        scaled = {
            p: Cell(c.mean / 100, None if c.std is None else c.std / 100, c.n)
            for p, c in points.items()
        }
        _curve(axes, scaled, task, LINES[column % len(LINES)])
    axes.plot([0, 100], [1, 0], color="#999999", linewidth=0.8, label="random masks")
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("cosine with the one-shot mask")
    _legend(figure, "outside right upper")
    return figure


def draw(folder: Path, layout: tables.Layout, as_released: bool) -> dict:
    """Name -> figure, of those for which there is data.

    Raises UserError if there are no results, or those of one task come from two recipes.
    """
    found = results.read(folder, as_released)
    drawn = {}
    transfer, rewind = tables.figure2(found, layout), tables.figure_rewind(found, layout)
    if transfer.measured():
        drawn["figure2"] = transfers(transfer)
        if layout.with_paper:
            drawn["figure2_paper"] = transfers(tables.figure2_paper(found, layout))
    if any(row.init == "rewound" for row in found.rows) and rewind.measured():
        drawn["figure_rewind"] = rewindings(rewind)
    if tables.figure_sparsity(found, layout).measured():
        drawn["figure_sparsity"] = sparsities(found, layout.tasks)
    masks = tables.masks_below(folder, found, layout, as_released)
    *parts, one_shot = overlap.tables(
        masks, layout.tasks, layout.transfer_percent(), layout.with_paper
    )
    drawn |= {table.name: shares(table) for table in parts if table.measured()}
    if one_shot.measured():
        drawn["overlap_with_omp"] = with_one_shot(one_shot)
    for notice in found.notices:
        print(f"warning: {notice}", file=sys.stderr)
    return drawn


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder below which every results.jsonl and mask is read"
    )
    parser.add_argument(
        "--out", type=Path, help="where to write the figures (default, ours: FOLDER/figures)"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="tasks to draw (default: the paper's eleven)"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        metavar="S",
        help="of the masks transferred and compared (default: 0.7)",
    )
    parser.add_argument(
        "--as_released", action="store_true", help="take the masks found with --as_released instead"
    )
    parser.add_argument("--no_paper", action="store_true", help="leave out the paper's Figure 2")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Draw and write NAME.png and NAME.pdf of every figure."""
    args = parse(argv)
    if matplotlib is None:
        raise UserError("matplotlib is not installed; pip install -r requirements-figures.txt")
    layout = tables.layout_of(args.tasks, args.sparsity, not args.no_paper)
    out = args.out or args.folder / "figures"
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(SETTINGS):
        for name, figure in draw(args.folder, layout, args.as_released).items():
            for form in ("png", "pdf"):
                figure.savefig(out / f"{name}.{form}", dpi=DPI)
            print(out / f"{name}.png")


if __name__ == "__main__":
    command.run(main)
