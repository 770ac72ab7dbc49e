"""Tables of measured and quoted numbers, and their text as Markdown, CSV and LaTeX."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from experiments import paper
from experiments.results import Cell

DASH = "-"  # text of a cell without data
PAPER = "  paper"  # label of the paper's numbers, below those of the runs
LATEX = str.maketrans({c: rf"\{c}" for c in "%_&#${}"})
LATEX |= str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"})
LATEX |= str.maketrans({c: f"${math}$" for c, math in {"<": "<", ">": ">", "±": r"\pm"}.items()})
MATH = re.compile(r"(f\(.*?\)|theta_0'*|(?<!\w)-?\d+\.\d+(?: ± \d+\.\d+)?)")  # in LaTeX
Value = Cell | float | str | None  # scores, a sparsity or a verdict (bool), text, no data
ByTask = Mapping[str, Value]


def show(value: Value, digits: int, bold: str = "{}") -> str:
    """Return the text of a value; scores as mean, deviation if any, number of seeds in brackets.

    Dark scores have the format `bold`. Scores that are not defined are "nan".
    """
    if isinstance(value, Cell):
        spread = "" if value.std is None else f" ± {value.std:.{digits}f}"
        seeds = f" ({value.n})" if value.n else ""
        text = f"{value.mean:.{digits}f}{spread}{seeds}"
        return bold.format(text) if value.dark else text
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else value or DASH


def _measured(value: Value) -> bool:
    return isinstance(value, str) or (isinstance(value, Cell) and value.n > 0)


@dataclass
class Table:
    """Rows of values under a header; header[0] is the header of the row labels."""

    name: str  # of its files
    title: str
    header: list[str]
    digits: int = 1
    rows: list[tuple[str, list[Value]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, label: str, values: Iterable[Value], quoted: Iterable[Value] = ()) -> None:
        """Append a row, if it has a value, and the paper's numbers, if `quoted`, below it."""
        own, theirs = list(values), list(quoted)
        if theirs or any(value is not None for value in own):
            self.rows.append((label, own))
        if theirs:
            self.rows.append((PAPER, theirs))

    def measured(self) -> bool:
        """Return whether any cell holds a measurement."""
        return any(_measured(value) for _, values in self.rows for value in values)

    def drop_empty_columns(self) -> None:
        """Remove the columns without a measurement."""
        columns = zip(*(values for _, values in self.rows), strict=True)
        kept = [any(map(_measured, column)) for column in columns]
        self.header = [self.header[0], *itertools.compress(self.header[1:], kept)]
        self.rows = [(label, list(itertools.compress(row, kept))) for label, row in self.rows]

    def texts(self, bold: str) -> list[list[str]]:
        """Return label and texts of each row."""
        return [[label, *(show(v, self.digits, bold) for v in row)] for label, row in self.rows]


@dataclass(frozen=True)
class Layout:
    """The columns (tasks), the sparsity, and whether the paper's numbers are printed."""

    tasks: tuple[str, ...] = paper.TASKS
    with_paper: bool = True
    sparsity: float | None = None  # percent; None: the paper's, for each task and table
    named: bool = True  # the user named the tasks: their columns stay if they are empty

    def table(self, name: str, title: str, corner: str = "", digits: int = 1) -> Table:
        """Return an empty table with a column per task."""
        return Table(name, title, [corner, *(paper.NAMES[task] for task in self.tasks)], digits)

    def add(self, table: Table, label: str, values: ByTask, quoted: ByTask | None = None) -> None:
        """Append a row and, if they are printed, the paper's numbers below it."""
        theirs = map(quoted.get, self.tasks) if quoted and self.with_paper else ()
        table.add(label, map(values.get, self.tasks), theirs)

    def note(self, table: Table, text: str) -> None:
        """Add a note on the paper's numbers, if they are printed."""
        if self.with_paper:
            table.notes.append(text)


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    rows = [table.header, ["---"] * len(table.header), *table.texts(bold="**{}**")]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *lines, "", *notes]).rstrip() + "\n"


def comma_separated(table: Table) -> str:
    """Return one line per cell: row, column, mean, std, seeds (unrounded, or empty), dark, text.

    Rows of the paper have the label of the row above them.
    """
    lines: list[list[object]] = []
    above = ""
    for own, values in table.rows:
        label = f"paper: {above}" if own == PAPER else own
        above = own
        for column, value in zip(table.header[1:], values, strict=True):
            numbers: list[object] = ["", "", ""]
            if isinstance(value, Cell):
                numbers = [value.mean, "" if value.std is None else value.std, value.n or ""]
            dark = isinstance(value, Cell) and value.dark
            lines.append([label, column, *numbers, int(dark), show(value, table.digits)])
    columns = ["row", "column", "mean", "std", "seeds", "dark", "text"]
    return pd.DataFrame(lines, columns=columns, dtype=object).to_csv(index=False, na_rep="nan")


def latex(table: Table) -> str:
    """Return a booktabs table."""
    rows = [table.header, *table.texts(bold="**{}")]
    header, *body = (" & ".join(map(_tex, row)) + r" \\" for row in rows)
    columns = "l" + "r" * (len(table.header) - 1)
    top = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    tabular = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *body]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}", *(f"% {note}" for note in table.notes)]
    return "\n".join([*top, *tabular, *end]) + "\n"


def _tex(text: str) -> str:
    """Return text as LaTeX, formulas and scores in math mode; `**` before it makes it bold."""
    if text == DASH:
        return "--"
    parts = MATH.split(text.removeprefix("**"))  # formulas are at odd positions
    parts[::2] = [part.translate(LATEX).replace("  ", r"\quad ") for part in parts[::2]]
    for at in range(1, len(parts), 2):
        formula = parts[at].replace("theta", r"\theta").replace("±", r"\pm")
        parts[at] = "$" + re.sub(r"m_(\w+)", r"m_{\\mathrm{\1}}", formula) + "$"
    inner = "".join(parts)
    return rf"\textbf{{\boldmath {inner}}}" if text.startswith("**") else inner
