"""The table of speed.md from measurements: medians of both ways, their ratio, and the goal."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

# times faster; for other tasks 75 % of the padding
STEP_GOALS = {"CoLA": 8.0, "SST-2": 7.0, "STS-B": 3.4, "RTE": 1.4}
LONGEST_GOALS = {"CoLA": 2.2, "SST-2": 2.2, "STS-B": 2.2, "RTE": 1.85, "SQuAD": 1.5}
OTHER_WAYS = {"longest": "padded to the longest row", "trainer": "Trainer, batches by length"}
NAMES = {"step": "training step", "evaluation": "evaluation, 256 rows"}
FORMER_WAYS = {"plain": "baseline"}  # in earlier measurements
BOTH = ("baseline", "ours")
GB, MB = 1e9, 1e6

Ways = dict[str, list[dict]]  # way -> measurements
Lines = Callable[[str, int, Ways], list[str]]  # task, number, measurements -> rows of the table


def markdown(path: Path) -> str:
    """Return a table with the rows of each thing measured."""
    measured: dict[tuple, Ways] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        way = FORMER_WAYS.get(found["way"], found["way"])
        task = found.get("task")
        if found.get("precision", "fp32") != "fp32":
            task = f"{task}, {found['precision']}"
        measured[found["what"], task, found.get("number")][way].append(found)
    lines = ["| what | baseline | here | ratio | goal |", "|---|---|---|---|---|"]
    for (what, task, number), ways in measured.items():
        lines += ROWS[what](task, number, ways)
    return "\n".join(lines)


def row(*cells: str) -> str:
    """Return a line of the table."""
    return f"| {' | '.join(cells)} |"


def middle(measurements: list[dict], key: str) -> float:
    """Return the median of one figure."""
    return median(found[key] for found in measurements)


def times(name: str, ways: Ways, goal: str, other: str = "baseline") -> str:
    """Return a row of two times; the ratio is the median over pairs measured in turn."""
    baseline, ours = (middle(ways[way], "seconds") for way in (other, "ours"))
    pairs = zip(ways[other], ways["ours"], strict=True)
    ratio = median(b["seconds"] / o["seconds"] for b, o in pairs)
    return row(name, f"{baseline:.2f} s", f"{ours:.2f} s", f"{ratio:.2f}x", goal)


def memory(ways: Ways, key: str) -> tuple[float, float]:
    """Return the median GB of the baseline and of this project."""
    baseline, ours = (middle(ways[way], key) / GB for way in BOTH)
    return baseline, ours


def tokens_rows(what: str) -> Lines:
    """Return the rows of something that padding limits."""

    def lines(task: str, _: int, ways: Ways) -> list[str]:
        factor = median(found["padded"] / found["tokens"] for found in ways["ours"])
        goal = 0.75 * factor
        if what == "step":  # the rows of an evaluation may be longer
            goal = STEP_GOALS.get(task, goal)
        name = f"{NAMES[what]}, {task}"
        found = []
        if "baseline" in ways:
            found.append(times(f"{name} (padding: {factor:.1f}x)", ways, f"{goal:.1f}x"))
        wanted = LONGEST_GOALS.get(task.partition(",")[0], 2.0) if what == "step" else 2.0
        goals = {"longest": f"{wanted}x", "trainer": ""}
        for way in (way for way in OTHER_WAYS if way in ways):
            found.append(times(f"{name}, {OTHER_WAYS[way]}", ways, goals[way], way))
        if "peak" in ways:
            goal_of_peak = "75 %" if what == "step" else "80 %"
            found.append(row(f"{name}, share of the peak", *peak(ways), goal_of_peak))
        return found

    return lines


def peak(ways: Ways) -> tuple[str, str, str]:
    """Return GFLOP/s of a large matrix product, of our real tokens, and their ratio."""
    limit, ours = (
        median(found["flops"] / found["seconds"] for found in ways[way]) for way in ("peak", "ours")
    )
    return f"{limit / 1e9:.0f} GFLOP/s", f"{ours / 1e9:.0f} GFLOP/s", f"{100 * ours / limit:.0f} %"


def prune_rows(_: str, number: int, ways: Ways) -> list[str]:
    """Return time and added memory of a global prune."""
    name = f"global prune number {number}"
    baseline, ours = memory(ways, "added_bytes")
    sizes = (f"{baseline:.2f} GB", f"{ours:.2f} GB", f"{100 * ours / baseline:.0f} %")
    added = row(f"{name}, added peak memory", *sizes, "0.6 GB, 30 %")
    return [times(name, ways, "15x"), added]


def whole_rows(name: str, time_goal: str, memory_goal: str) -> Lines:
    """Return time and peak memory of whole processes."""

    def lines(task: str, _number: int, ways: Ways) -> list[str]:
        what = name.format(task=task)
        found = []
        if "longest" in ways:
            found.append(times(f"{what}, {OTHER_WAYS['longest']}", ways, "2.2x", "longest"))
        if "baseline" in ways:
            baseline, ours = memory(ways, "peak_bytes")
            sizes = (f"{baseline:.2f} GB", f"{ours:.2f} GB", f"{baseline / ours:.1f}x")
            found += [
                times(what, ways, time_goal),
                row(f"{what}, peak memory", *sizes, memory_goal),
            ]
        return found

    return lines


def imp_rows(_: str, _number: int, ways: Ways) -> list[str]:
    """Return peak memory of IMP, and the sizes of its files."""
    baseline, ours = memory(ways, "peak_bytes")
    sizes = (f"{baseline:.1f} GB", f"{ours:.1f} GB", f"{baseline / ours:.1f}x")
    masks, models = [], []
    for way in BOTH:
        files = dict(ways[way][-1]["files"])
        masks.append(f"{files.pop('mask.pt')[-1] / MB:.0f} MB")
        written = [size for by_round in files.values() for size in by_round]
        models.append(" then ".join(f"{size / MB:.0f} MB" for size in written))
    return [
        row("IMP, rows of 128 tokens, peak memory", *sizes, "6 GB"),
        row("a round's mask file", *masks, "", "86 MB"),
        row("model files, round by round", *models, "", "no growth"),
    ]


def single_rows(goals: dict[str, str], name: str) -> Lines:
    """Return the rows of something without a baseline."""

    def lines(task: str, _: int, ways: Ways) -> list[str]:
        return [
            row(name.format(way=way, task=task), "", f"{middle(found, 'seconds'):.2f} s", "", goal)
            for way, found in ways.items()
            for goal in [goals[way]]
        ]

    return lines


def text_rows(size: str, _: int, ways: Ways) -> list[str]:
    """Return time, rate and added memory of tokenizing a text, and of opening its cache."""
    cold, cached = (middle(ways[way], "seconds") for way in ("cold", "cached"))
    rate = median(found["bytes"] / MB / found["seconds"] for found in ways["cold"])
    added = max(found["added_bytes"] for way in ways.values() for found in way) / GB
    return [
        row(f"tokenizing a text of {size} ({rate:.1f} MB/s)", "", f"{cold:.0f} s", "", ""),
        row("the same, cached", "", f"{cached:.2f} s", "", "3 s"),
        row("the same, added peak memory", "", f"{added:.2f} GB", "", "1.5 GB"),
    ]


ROWS: dict[str, Lines] = {
    "step": tokens_rows("step"),
    "evaluation": tokens_rows("evaluation"),
    "prune": prune_rows,
    "oneshot": whole_rows("`oneshot.py`, whole process", "6 s", "1.6 GB"),
    "imp": imp_rows,
    "rounds": whole_rows("`LT_glue.py`, ten rounds of {task}", "faster", ""),
    "features": single_rows({"cold": "6 s", "cached": "0.5 s"}, "features of {task}, {way}"),
    "text": text_rows,
    "startup": single_rows({"ours": "5 s"}, "start of `LT_glue.py` until its first step"),
}
