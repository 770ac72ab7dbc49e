"""A table of measured and quoted numbers, and the same table as Markdown, CSV and LaTeX."""

import csv
import io
from dataclasses import dataclass, field

from experiments.results import Cell

DASH = "-"  # what a cell without data shows


@dataclass(frozen=True)
class Entry:
    """One cell: a measured `cell`, or `text` as it stands; neither is a cell without data. `dark` prints it bold."""

    cell: Cell | None = None
    text: str | None = None
    dark: bool = False

    def show(self, digits: int, plus_minus: str = "±") -> str:
        """The cell as printed: mean, standard deviation if there is one, number of seeds in brackets."""
        if self.cell is None:
            return DASH if self.text is None else self.text.replace("±", plus_minus)
        spread = "" if self.cell.std is None else f" {plus_minus} {self.cell.std:.{digits}f}"
        return f"{self.cell.mean:.{digits}f}{spread} ({self.cell.n})"


@dataclass
class Table:
    """Rows of entries under a header; the first header is that of the row labels."""

    name: str  # of its files
    title: str
    header: list[str]
    digits: int = 1
    rows: list[tuple[str, list[Entry]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, label: str, entries: list[Entry]) -> None:
        """Append a row; raises ValueError if its length is not the header's."""
        if len(entries) != len(self.header) - 1:
            raise ValueError(
                f"{self.name}: row {label!r} has {len(entries)} cells, the header {len(self.header) - 1}"
            )
        self.rows.append((label, entries))

    def measured(self) -> bool:
        """Whether any cell holds a measurement."""
        return any(entry.cell for _, entries in self.rows for entry in entries)


def markdown(table: Table) -> str:
    """The table as Markdown, dark cells bold."""
    lines = [f"### {table.title}", "", _piped(table.header), _piped(["---"] * len(table.header))]
    for label, entries in table.rows:
        shown = [
            (f"**{text}**" if e.dark else text) for e in entries for text in [e.show(table.digits)]
        ]
        lines.append(_piped([label, *shown]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip() + "\n"


def _piped(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def comma_separated(table: Table) -> str:
    """One line a cell: row, column, mean, std, seeds (unrounded, empty if not measured), dark, text as printed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "std", "seeds", "dark", "text"])
    for label, entries in table.rows:
        for column, entry in zip(table.header[1:], entries, strict=True):
            c = entry.cell
            numbers = ["", "", ""] if c is None else [c.mean, "" if c.std is None else c.std, c.n]
            writer.writerow([label, column, *numbers, int(entry.dark), entry.show(table.digits)])
    return out.getvalue()


def latex(table: Table) -> str:
    """A booktabs table, dark cells bold."""
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _ampersands(table.header),
        r"\midrule",
    ]
    for label, entries in table.rows:
        shown = [
            rf"\textbf{{{text}}}" if e.dark else text
            for e in entries
            for text in [_tex(e.show(table.digits))]
        ]
        lines.append(_ampersands([_tex(label), *shown], escape=False))
    notes = [rf"% {note}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", *notes]) + "\n"


def _ampersands(cells: list[str], escape: bool = True) -> str:
    return " & ".join(_tex(cell) if escape else cell for cell in cells) + r" \\"


def _tex(text: str) -> str:
    for plain, escaped in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("#", r"\#"), ("±", r"$\pm$")):
        text = text.replace(plain, escaped)
    return "--" if text == DASH else text
