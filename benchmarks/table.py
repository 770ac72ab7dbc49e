"""The table of speed.md from measurements: medians of both ways, their ratio, and what was aimed at."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median

STEP_GOALS = {
    "CoLA": 8.0,
    "SST-2": 7.0,
    "STS-B": 3.4,
    "RTE": 1.4,
}  # times faster; for SQuAD 75 % of the padding
NAMES = {"step": "training step", "evaluation": "evaluation, 256 rows"}
GB, MB = 1e9, 1e6


def markdown(path: Path) -> str:
    """One row per thing measured."""
    measured = defaultdict(lambda: defaultdict(list))
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        measured[row["what"], row.get("task"), row.get("number")][row["way"]].append(row)
    lines = ["| what | plain way | here | ratio | goal |", "|---|---|---|---|---|"]
    for (what, task, number), ways in measured.items():
        lines += ROWS[what](task, number, ways)
    return "\n".join(lines)


def row(*cells: str) -> str:
    """A line of the table."""
    return f"| {' | '.join(cells)} |"


def middle(rows: list[dict], key: str) -> float:
    """The median of one figure."""
    return median(r[key] for r in rows)


def ratio(ways: dict, key: str = "seconds") -> float:
    """Plain way over ours: the median over pairs measured one after the other."""
    return median(p[key] / o[key] for p, o in zip(ways["plain"], ways["ours"], strict=True))


def paired(name: str, ways: dict, goal: str) -> str:
    """A row of two times."""
    plain, ours = middle(ways["plain"], "seconds"), middle(ways["ours"], "seconds")
    return row(name, f"{plain:.2f} s", f"{ours:.2f} s", f"{ratio(ways):.1f}x", goal)


def tokens_row(what: str):
    """A row of a thing whose limit is the padding."""

    def lines(task: str, _, ways: dict) -> list[str]:
        factor = median(r["padded"] / r["tokens"] for r in ways["ours"])
        goal = (
            STEP_GOALS.get(task, 0.75 * factor) if what == "step" else 0.75 * factor
        )  # evaluation rows may be longer
        return [paired(f"{NAMES[what]}, {task} (padding: {factor:.1f}x)", ways, f"{goal:.1f}x")]

    return lines


def prune_row(_, number: int, ways: dict) -> list[str]:
    """Time and added memory of a global prune."""
    plain, ours = (middle(ways[way], "added_bytes") / GB for way in ("plain", "ours"))
    return [
        paired(f"global prune number {number}", ways, "15x"),
        row(
            f"global prune number {number}, added peak memory",
            f"{plain:.2f} GB",
            f"{ours:.2f} GB",
            f"{100 * ours / plain:.0f} %",
            "0.6 GB, 30 %",
        ),
    ]


def whole_row(name: str, time_goal: str, memory_goal: str):
    """Time and peak memory of whole processes."""

    def lines(_, __, ways: dict) -> list[str]:
        plain, ours = (middle(ways[way], "peak_bytes") / GB for way in ("plain", "ours"))
        memory = row(
            f"{name}, peak memory",
            f"{plain:.2f} GB",
            f"{ours:.2f} GB",
            f"{plain / ours:.1f}x",
            memory_goal,
        )
        return [paired(name, ways, time_goal), memory]

    return lines


def imp_row(_, __, ways: dict) -> list[str]:
    """Peak memory of IMP, and its files."""
    plain, ours = (middle(ways[way], "peak_bytes") / GB for way in ("plain", "ours"))
    lines = [
        row(
            "IMP, rows of 128 tokens, peak memory",
            f"{plain:.1f} GB",
            f"{ours:.1f} GB",
            f"{plain / ours:.1f}x",
            "6 GB",
        )
    ]
    files = [ways[way][-1]["files"] for way in ("plain", "ours")]
    masks = [f"{f['mask.pt'][-1] / MB:.0f} MB" for f in files]
    grown = [
        " then ".join(f"{size / MB:.0f} MB" for name in f if name != "mask.pt" for size in f[name])
        for f in files
    ]
    return [
        *lines,
        row("a round's mask file", *masks, "", "86 MB"),
        row("model files, round by round", *grown, "", "no growth"),
    ]


def alone(goals: dict[str, str], name: str):
    """Rows of what has no plain way."""

    def lines(task: str, _, ways: dict) -> list[str]:
        return [
            row(
                name.format(way=way, task=task),
                "",
                f"{middle(rows, 'seconds'):.2f} s",
                "",
                goals[way],
            )
            for way, rows in ways.items()
        ]

    return lines


def text_row(size: str, _, ways: dict) -> list[str]:
    """Time, rate and added memory of tokenizing a text, and of opening what was kept."""
    rate = median(r["bytes"] / MB / r["seconds"] for r in ways["cold"])
    memory = max(r["added_bytes"] for rows in ways.values() for r in rows) / GB
    return [
        row(
            f"tokenizing a text of {size} ({rate:.1f} MB/s)",
            "",
            f"{middle(ways['cold'], 'seconds'):.0f} s",
            "",
            "",
        ),
        row("the same, cached", "", f"{middle(ways['cached'], 'seconds'):.2f} s", "", "3 s"),
        row("the same, added peak memory", "", f"{memory:.2f} GB", "", "1.5 GB"),
    ]


ROWS = {
    "step": tokens_row("step"),
    "evaluation": tokens_row("evaluation"),
    "prune": prune_row,
    "oneshot": whole_row("`oneshot.py`, whole process", "6 s", "1.6 GB"),
    "imp": imp_row,
    "rounds": whole_row("`LT_glue.py`, ten rounds of CoLA", "faster", ""),
    "features": alone({"cold": "6 s", "cached": "0.5 s"}, "features of {task}, {way}"),
    "text": text_row,
    "startup": alone({"ours": "5 s"}, "start of `LT_glue.py` until its first step"),
}
