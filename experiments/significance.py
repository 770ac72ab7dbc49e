"""Paired tests of IMP's tickets against the other networks of Table 2.

Two networks of one seed are compared on the same development examples. The difference of their
scores, averaged over S seeds, varies with the examples and with the seeds. The examples are
resampled (the paired bootstrap of Efron and Tibshirani 1993, chapter 16; Berg-Kirkpatrick et al.
2012 for NLP): every resample computes the score again, so this also holds for scores other than
means, such as F1 and correlations. Resampling 3 or 5 seeds would underestimate their variance, so
their share follows Student's t with S - 1 degrees of freedom. Variance that examples and seeds
share is counted once (Owen 2007, "The pigeonhole bootstrap").
"""

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import paper
from experiments.builders import sparsities
from experiments.markup import Layout, Table
from experiments.results import FULL, KINDS, Results
from utils import files

RESAMPLES = 10_000
LEVEL = 0.05  # of the tests; intervals cover 1 - LEVEL
HALF_WIDTH = 1.0  # percent points, to plan the number of seeds
SEEDS = 1000  # at most planned
CHUNK = 1 << 22  # draws at a time
TINY = 1e-9  # points, the deviation of networks that agree on every seed
Array = np.ndarray
Terms = tuple[Array, Callable[[Array], Array]]
UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Outcomes:
    """A network on n examples: `score` of the sums of `terms`, [n, d], is its score, in points."""

    dev: str  # identifies the development set
    terms: Array
    score: Callable[[Array], Array]  # sums [..., d] -> [...]

    @classmethod
    def load(cls, path: Path) -> "Outcomes":
        """Return the outcomes that Task.save_outcomes wrote. Raises one of UNREADABLE."""
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        metric = str(content["metric"])
        if "predictions" in content:
            found, key = content["predictions"], content["labels"]
            terms, score = _terms(metric, found, key)
        else:
            top = content[metric].astype(float)
            key = content.get("weights", np.ones(len(top)))
            terms, score = np.stack([top, key], 1), _ratio
        dev = f"{content['dev']} {len(key)} {zlib.crc32(key.tobytes())}"
        return cls(dev, terms, score)


def _ratio(sums: Array) -> Array:
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def _matthews(sums: Array) -> Array:
    """Matthews correlation of K classes (Gorodkin 2004) from counts [..., K * K] of pairs."""
    size = round(sums.shape[-1] ** 0.5)
    pairs = sums.reshape(*sums.shape[:-1], size, size)
    label, found, n = pairs.sum(-1), pairs.sum(-2), sums.sum(-1)
    covariance = np.einsum("...kk", pairs) * n - (label * found).sum(-1)
    variances = (n**2 - (label**2).sum(-1)) * (n**2 - (found**2).sum(-1))
    return 100 * np.where(variances > 0, covariance / np.sqrt(np.maximum(variances, 1)), 0.0)


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = n * xx - x**2, n * yy - y**2
    varies = (spread_x > 1e-9 * n * xx) & (spread_y > 1e-9 * n * yy)  # by more than rounding
    root = np.sqrt(np.where(varies, spread_x * spread_y, 1.0))
    return 100 * np.where(varies, (n * xy - x * y) / root, 0.0)


def _terms(metric: str, found: Array, labels: Array) -> Terms:
    """Return the terms of a GLUE metric and its score. Raises KeyError for an unknown metric."""
    ones = np.ones(len(labels))
    if metric == "mcc":
        classes = np.union1d(found, labels)
        pairs = (labels[:, None] == classes)[:, :, None] & (found[:, None] == classes)[:, None]
        return pairs.reshape(len(labels), -1).astype(float), _matthews
    if metric == "pearson":
        x, y = (each - each.mean() for each in (found.astype(float), labels.astype(float)))
        return np.stack([ones, x, y, x * x, y * y, x * y], 1), _pearson
    return np.stack([{"acc": found == labels}[metric], ones], 1), _ratio


def resample(terms: Array, random: np.random.Generator, count: int = RESAMPLES) -> Array:
    """Return the sums of `terms`, [n, d], over `count` resamples of the examples, [count, d]."""
    n = len(terms)
    sums = np.empty((count, terms.shape[1]))
    step = max(1, CHUNK // n)
    for start in range(0, count, step):
        size = min(step, count - start)
        drawn = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = counts.astype(float) @ terms
    return sums


@dataclass(frozen=True)
class Comparison:
    """The ticket's score minus another network's: mean, interval, p-value, and seeds to plan."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int | None  # for an interval of ± HALF_WIDTH; None: no number, too few examples

    def text(self, significant: bool) -> str:
        """Return difference and interval, with a star if it is significant."""
        star = "*" if significant else ""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{star}"


def compare(differences: Array) -> Comparison:
    """Compare two networks by their differences, [1 + B, S], of S > 1 seeds.

    The first row is measured, the others are of B resamples of the examples.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtr
    from scipy.stats import norm
    from scipy.stats import t as student

    measured, resampled = differences[0], differences[1:]
    mean, seeds, center = measured.mean(), len(measured), resampled.mean(1)
    # With A the variance over examples and I that over pairs (example, seed), these estimate
    # A + I / S and A + I. The variance over seeds includes I, so it is at least that.
    of_mean, of_one = center.var(), resampled.var(0).mean()
    examples = max(0.0, (seeds * of_mean - of_one) / (seeds - 1))
    over_seeds = max(measured.var(ddof=1), (of_one - of_mean) * seeds / (seeds - 1))
    center = mean + (center - center.mean()) * (examples / max(of_mean, 1e-300)) ** 0.5
    scale = max((over_seeds / seeds) ** 0.5, TINY)

    def probability_below(x: float) -> float:  # exact for t, so intervals do not vary with a seed
        return float(stdtr(seeds - 1, (x - center) / scale).mean())

    def quantile(level: float) -> float:
        shift = scale * student.ppf(level, seeds - 1)
        ends = center.min() + shift - scale, center.max() + shift + scale
        return round(float(brentq(lambda x: probability_below(x) - level, *ends)), 6)

    low, high = quantile(LEVEL / 2), quantile(1 - LEVEL / 2)
    below, draws = probability_below(0.0), len(center)
    p = min(1.0, 2 * (draws * min(below, 1 - below) + 1) / (draws + 1))

    numbers = np.arange(2, SEEDS + 1)
    variance = student.ppf(1 - LEVEL / 2, numbers - 1) ** 2 * over_seeds / numbers
    variance += norm.ppf(1 - LEVEL / 2) ** 2 * examples
    enough = numbers[variance <= HALF_WIDTH**2]
    planned = int(enough[0]) if len(enough) else None
    return Comparison(float(mean), low, high, p, planned)


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which tests are significant after Holm's correction (1979)."""
    order = np.argsort(p_values, kind="stable")
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > LEVEL / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def compare_ticket(networks: dict[tuple[str, int], list[Outcomes]]) -> dict[str, Comparison]:
    """Compare the kind "IMP" with every other kind over the seeds that both have, if at least two.

    `networks` maps kind and seed to the outcomes of its networks (several masks are averaged), all
    on the same examples.
    """
    random = np.random.default_rng(0)
    every = [outcomes for own in networks.values() for outcomes in own]
    terms = np.concatenate([each.terms for each in every], 1)
    sums = np.vstack([terms.sum(0), resample(terms, random)])
    ends = np.cumsum([each.terms.shape[1] for each in every])
    parts = iter(np.split(sums, ends[:-1], axis=1))
    scores = {k: np.mean([o.score(next(parts)) for o in own], 0) for k, own in networks.items()}
    differences: dict[str, list[Array]] = {}
    for (kind, seed), score in scores.items():
        if kind != "IMP" and ("IMP", seed) in scores:
            differences.setdefault(kind, []).append(scores["IMP", seed] - score)
    return {k: compare(np.stack(d, 1)) for k, d in differences.items() if len(d) > 1}


def _networks(found: Results, task: str, percent: float) -> dict[tuple[str, int], list[Outcomes]]:
    """Read the outcomes of the networks of Table 2; files that do not fit give a notice.

    Kinds whose mean is undefined are left out.
    """
    read: list[tuple[str, Any, Path, Outcomes]] = []
    for kind in KINDS:
        rows = found.averaged(task, kind, 0.0 if kind == FULL else percent)
        for row in rows.to_dict("records") if rows["score"].notna().all() else ():
            prefix = "" if row["method"] == "train" else row["step"]
            path = row["folder"] / files.OUTCOMES.format(prefix=prefix)
            try:
                outcomes = Outcomes.load(path)
            except UNREADABLE:
                found.notices.append(f"{path}: missing or corrupt; not in the statistics")
                continue
            read.append((kind, row, path, outcomes))
    networks: dict[tuple[str, int], list[Outcomes]] = {}
    sets = Counter(outcomes.dev for *_, outcomes in read)
    usual = max(sets, key=sets.__getitem__, default=None)
    for kind, row, path, outcomes in read:
        score = outcomes.score(outcomes.terms.sum(0))
        if outcomes.dev != usual:
            problem = "another development set"
        elif not abs(score - row["score"]) <= 1e-3:  # also nan
            problem = "another evaluation"
        else:
            networks.setdefault((kind, row["seed"]), []).append(outcomes)
            continue
        found.notices.append(f"{path}: of {problem}; not in the statistics")
    return networks


def add_to(table: Table, found: Results, layout: Layout) -> None:
    """Add to Table 2 the IMP ticket's score minus the others', and the second verdict."""
    tests = {}
    for task, percent in sparsities(found, layout, paper.SPARSITY).items():
        networks = _networks(found, task, percent)
        tests[task] = compare_ticket(networks) if networks else {}
    results = [(task, kind, each) for task, of in tests.items() for kind, each in of.items()]
    cells: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    verdicts, planned = {}, {}
    significant = holm([each.p for _, _, each in results])
    for (task, kind, each), sure in zip(results, significant, strict=True):
        cells[kind][task] = each.text(sure)
        if kind == FULL:
            verdicts[task] = (
                ("better" if each.mean > 0 else "worse") if sure else "no difference shown"
            )
            planned[task] = str(each.seeds or "more examples")
    for kind, texts in cells.items():
        if texts:
            layout.add(table, f"IMP minus {kind}", texts)
    layout.add(table, "IMP vs. full network, by the statistics", verdicts)
    layout.add(table, f"seeds for an interval of ± {HALF_WIDTH:g}", planned)
    table.notes.append(
        f"Differences: mean over the seeds that both have, {1 - LEVEL:.0%} interval over examples "
        f"and seeds ({RESAMPLES:,} resamples); * significant at {LEVEL:.0%} by Holm's correction "
        f"over the {len(results)} tests of this table."
    )
