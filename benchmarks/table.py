"""The table of speed.md from measurements: medians of each way, and the ratio of both."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median

FORMER_WAYS = {"plain": "baseline"}  # in earlier measurements
FIGURES = {  # key of a measurement -> its name in the table, unit, size of the unit
    "seconds": ("", "s", 1.0),
    "peak_bytes": (", peak memory", "GB", 1e9),
    "added_bytes": (", added peak memory", "GB", 1e9),
}


def markdown(path: Path) -> str:
    """Return a table with a row for each figure of each thing measured."""
    measured: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        name = " ".join(str(found[key]) for key in ("what", "task", "number") if key in found)
        measured[name][FORMER_WAYS.get(found["way"], found["way"])].append(found)
    lines = ["| what | baseline | here | ratio |", "|---|---|---|---|"]
    for name, ways in measured.items():
        for key, (figure, unit, size) in FIGURES.items():
            lists = {way: [f[key] / size for f in found if key in f] for way, found in ways.items()}
            texts = {way: f"{median(each):.2f} {unit}" for way, each in lists.items() if each}
            if texts.keys() == {"baseline", "ours"}:  # measured in turn
                pairs = zip(lists["baseline"], lists["ours"], strict=False)
                ratio = f"{median(b / o for b, o in pairs):.1f}x"
                cells = [f"{name}{figure}", texts["baseline"], texts["ours"], ratio]
                lines.append(f"| {' | '.join(cells)} |")
            else:
                lines += [
                    f"| {name}{figure}, {way} |  | {text} |  |" for way, text in texts.items()
                ]
    return "\n".join(lines)
