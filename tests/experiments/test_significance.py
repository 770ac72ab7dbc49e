"""Intervals and tests over examples and seeds, against analytic cases and simulations."""

import re

import numpy as np
import pytest
from results_tree import mask_info, trainings, write_rows
from scipy import stats

from experiments import significance, tables
from experiments.markup import Layout, show
from experiments.significance import Outcomes, compare, compare_ticket, holm, resample
from utils.tasks.metrics import glue_metrics


def save(path, metric, dev="d", **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, metric=metric, dev=dev, **arrays)
    return path


def labelled(metric, classes, n=60, seed=0):
    draw = np.random.default_rng(seed)
    if metric == "pearson":
        labels = draw.normal(size=n).astype(np.float32)
        return {"predictions": labels + draw.normal(size=n).astype(np.float32), "labels": labels}
    labels = draw.integers(classes, size=n)
    found = np.where(draw.random(n) < 0.6, labels, draw.integers(classes, size=n))
    return {"predictions": found, "labels": labels}


@pytest.mark.parametrize(
    ("metric", "classes"), [("acc", 3), ("mcc", 2), ("mcc", 3), ("mcc", 1), ("pearson", 0)]
)
def test_scores_of_resamples_are_the_metrics_of_those_rows(tmp_path, metric, classes):
    arrays = labelled(metric, classes)
    outcomes = Outcomes.load(save(tmp_path / "p.npz", metric, **arrays))
    draw = np.random.default_rng(1)
    for rows in (np.arange(60), draw.integers(60, size=60), draw.integers(60, size=60)):
        counts = np.bincount(rows, minlength=60)
        expected = 100 * glue_metrics(metric, *(each[rows] for each in arrays.values()))[metric]
        assert outcomes.score(counts @ outcomes.terms) == pytest.approx(expected, abs=1e-3)


def test_resamples_of_constant_predictions_have_no_correlation(tmp_path):
    labels = np.random.default_rng(0).normal(size=300).astype(np.float32)
    predictions = np.full(300, 2.7, np.float32)
    predictions[7] += 1e-5
    path = save(tmp_path / "p.npz", "pearson", predictions=predictions, labels=labels)
    outcomes = Outcomes.load(path)
    scores = outcomes.score(resample(outcomes.terms, np.random.default_rng(0), 300))
    assert np.abs(scores).max() <= 100


def test_scores_of_questions_and_blocks_are_means_and_ratios(tmp_path):
    f1 = np.array([0.0, 0.5, 1.0, 0.25])
    squad = Outcomes.load(save(tmp_path / "s.npz", "f1", f1=f1, exact=f1))
    assert squad.score(squad.terms.sum(0)) == pytest.approx(43.75)
    mlm = {"accuracy": np.array([1.0, 0.0, 4.0]), "weights": np.array([2.0, 0.0, 8.0])}
    blocks = Outcomes.load(save(tmp_path / "m.npz", "accuracy", **mlm))
    assert blocks.score(blocks.terms.sum(0)) == pytest.approx(50)
    assert blocks.dev != squad.dev


def test_resamples_have_n_examples_each_with_the_bootstraps_variance(monkeypatch):
    monkeypatch.setattr(significance, "CHUNK", 1000)  # several parts
    values = np.arange(50.0)
    sums = resample(np.stack([values, np.ones(50)], 1), np.random.default_rng(0), 4000)
    assert (sums[:, 1] == 50).all()
    assert sums[:, 0].mean() == pytest.approx(values.sum(), rel=0.01)
    assert sums[:, 0].var() == pytest.approx(50 * values.var(), rel=0.1)


def test_if_only_seeds_vary_the_test_is_students():
    measured = np.array([0.4, 1.9, 1.2, 0.9])
    found = compare(np.tile(measured, (20_001, 1)))
    expected = stats.ttest_1samp(measured, 0)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(1.1)
    assert (found.low, found.high) == pytest.approx(tuple(interval), abs=1e-6)
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)


def test_if_only_examples_vary_the_interval_is_that_of_a_proportion(rng):
    gains = np.zeros((400, 2))
    gains[:60, 0], gains[60:80, 0], gains[:, 1] = 1, -1, 1  # 60 better, 20 worse: 10 points
    sums = np.vstack([gains.sum(0), resample(gains, rng)])
    found = compare(np.tile(100 * sums[:, :1] / 400, (1, 3)))
    half = 1.96 * 100 * gains[:, 0].std() / 20
    assert (found.low, found.high) == pytest.approx((10 - half, 10 + half), abs=0.4)
    assert found.p < 0.001 and found.seeds is None  # no number of seeds adds examples


def test_an_interval_does_not_vary_with_the_resamples():
    """Three seeds far apart: Student's t with two degrees of freedom has long tails."""
    gains = np.random.default_rng(0).normal(size=(500, 1)) + np.array([-0.5, 0.1, 0.7])
    ends = []
    for seed in range(5):
        resamples = resample(gains, np.random.default_rng(seed))
        found = compare(np.vstack([gains.sum(0), resamples]) / 500)
        ends.append((found.low, found.high))
    assert np.ptp(ends, axis=0).max() < 0.01 * np.ptp(ends, axis=1).mean()


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_intervals_cover_the_truth(rng):
    """Effects of the example, the seed and the pair, each of a size that matters."""
    covered, n, seeds, runs = 0, 150, 4, 300
    for _ in range(runs):
        gains = rng.normal(size=(n, 1)) + rng.normal(size=(n, seeds))
        gains = gains + rng.normal(size=seeds) / 15
        sums = np.vstack([gains.sum(0), resample(gains, rng, 400)]) / n
        found = compare(sums)
        covered += found.low <= 0 <= found.high
    assert 0.91 < covered / runs < 0.985


def test_the_number_of_seeds_gives_the_half_width():
    measured = np.array([-3.0, 3.0, -3.0, 3.0, -3.0, 3.0])
    planned = compare(np.tile(measured, (2000, 1))).seeds
    deviation = measured.std(ddof=1)

    def half(n):
        return stats.t.ppf(0.975, n - 1) * deviation / n**0.5

    assert half(planned) <= 1 < half(planned - 1)
    assert compare(np.tile(np.zeros(3), (10, 1))).seeds == 2


def test_holm_stops_at_the_first_p_value_above_its_level():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04, 0.049]) == [False, False] and holm([0.02, 0.049]) == [True, True]
    assert holm([]) == []


def test_networks_are_compared_over_common_seeds_and_the_same_examples(tmp_path):
    def network(seed, hits):
        labels, found = np.ones(200, int), np.ones(200, int)
        found[hits:] = 0
        path = save(tmp_path / f"{seed}-{hits}.npz", "acc", predictions=found, labels=labels)
        return Outcomes.load(path)

    full = {seed: network(seed, 180) for seed in (1, 2, 3)}
    networks = {("full network", seed): [each] for seed, each in full.items()}
    networks |= {("IMP", seed): [full[seed]] for seed in (1, 2)} | {("IMP", 9): [network(9, 10)]}
    networks |= {("random mask", seed): [network(seed, 100), network(seed, 98)] for seed in (1, 2)}
    networks |= {("one-shot", 1): [full[1]]}
    found = compare_ticket(networks)
    assert found.keys() == {"full network", "random mask"}  # one seed is too few
    same = found["full network"]
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)  # bit-identical predictions
    assert found["random mask"].mean == pytest.approx(40.5)
    assert found["random mask"].low > 30 and found["random mask"].p < 0.001


def tree(folder, kinds):
    """Runs of SST-2 with predictions; kind -> mask(seed), correct examples of 500 per seed."""
    for kind, (mask, correct) in kinds.items():
        for seed, hits in enumerate(correct, 1):
            (row,) = trainings(
                "sst-2", [hits / 5], (lambda _, s=seed, m=mask: m(s)) if mask else None
            )
            write_rows(folder / kind / str(seed), [row | {"seed": seed}])
            draw = np.random.default_rng(len(kind) + seed)
            labels = np.random.default_rng(0).integers(2, size=500)
            wrong = draw.permutation(500) >= hits
            path = folder / kind / str(seed) / "predictions_.npz"
            save(path, "acc", predictions=np.where(wrong, 1 - labels, labels), labels=labels)
    return folder


def ticket(seed):
    return mask_info("sst-2", 0.6, seed)


@pytest.mark.parametrize("words", [[], ["--tasks", "sst-2", "mrpc"], ["--no_paper"]])
def test_the_command_writes_the_statistics_of_the_tasks_measured(tmp_path, capsys, words):
    folder = tree(tmp_path, {"full": (None, [450, 452]), "imp": (ticket, [449, 451])})
    tables.main([str(folder), "--only", "table2", "--statistics", *words])
    (line,) = [row for row in capsys.readouterr().out.splitlines() if "IMP minus full" in row]
    assert line.startswith("| IMP minus full network | -0.2 [")
    saved = (folder / "tables" / "table2.csv").read_text()
    assert "IMP minus full network" in saved and "no difference shown" in saved


def test_table2_gets_intervals_a_second_verdict_and_notices(tmp_path):
    def random(seed):
        return mask_info(None, 0.6, seed, method="random")

    folder = tree(
        tmp_path,
        {
            "full": (None, [450, 452, 451]),
            "imp": (ticket, [449, 451, 452]),
            "rp": (random, [300, 310, 305]),
        },
    )
    layout = Layout(("sst-2", "mrpc"))

    def table2():
        made, found = tables.build(folder, layout, ["table2"], statistics=True)
        return {label: [show(v, 1) for v in row] for label, row in made[0].rows}, found, made[0]

    rows, found, table = table2()
    assert rows["IMP minus full network"][0].startswith("-0.1 [") and found.notices == []
    assert rows["IMP minus random mask"][0].startswith("+29.1 [+2")
    assert rows["IMP minus random mask"][0].endswith("]*")
    assert rows["IMP vs. full network, by the statistics"] == ["no difference shown", "-"]
    assert 10 < int(rows["seeds for an interval of ± 1"][0]) < 25  # (1.96 x 1.9) ** 2 = 14
    assert "2 tests" in table.notes[-1]
    assert "by the statistics" not in str(tables.build(folder, layout, ["table2"])[0][0].rows)

    (folder / "imp" / "1" / "predictions_.npz").write_bytes(b"PK")
    (folder / "rp" / "1" / "predictions_.npz").unlink()
    other = folder / "rp" / "2" / "predictions_.npz"
    with np.load(other) as kept:
        arrays = {name: kept[name] for name in ("predictions", "labels")}
    save(other, "acc", "another set", **arrays)
    save(
        folder / "full" / "3" / "predictions_.npz",
        "acc",
        labels=arrays["labels"],
        predictions=arrays["labels"],
    )
    rows, found, _ = table2()
    assert "IMP minus random mask" not in rows
    assert "IMP minus full network" not in rows  # one seed in common
    words = sorted(notice.split(": ")[1].split(";")[0] for notice in found.notices)
    assert words == [
        "missing or corrupt",
        "missing or corrupt",
        "of another development set",
        "of another evaluation",
    ]


def test_a_foreign_first_file_and_one_without_a_score_do_not_remove_the_others(tmp_path):
    folder = tree(
        tmp_path, {"full": (None, [450, 452, 451, 453]), "imp": (ticket, [449, 451, 452, 450])}
    )
    first, second = (folder / "full" / str(seed) / "predictions_.npz" for seed in (1, 2))
    save(first, "acc", "another set", **labelled("acc", 2))
    np.savez_compressed(second, metric="acc", dev="d", acc=np.full(500, np.nan))
    (folder / "full" / "3" / "predictions_.npz").write_bytes(b"PK")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").replace(folder / "full" / "3" / "predictions_.npz")
    made, found = tables.build(folder, Layout(("sst-2",)), ["table2"], statistics=True)
    assert len(found.notices) == 3 and all("full" in notice for notice in found.notices)
    assert "IMP minus full network" not in dict(made[0].rows)  # one seed in common


def test_a_network_with_an_undefined_score_is_not_compared(tmp_path):
    folder = tree(
        tmp_path, {"full": (None, [450, 452, 451, 453]), "imp": (ticket, [449, 451, 452, 450])}
    )
    path = folder / "full" / "2" / "results.jsonl"
    path.write_text(re.sub(r'"score": [\d.]+', '"score": null', path.read_text()))
    made, found = tables.build(folder, Layout(("sst-2",)), ["table2"], statistics=True)
    rows = dict(made[0].rows)
    assert show(rows["full network f(x, theta_0)"][0], 1) == "nan (4)"
    assert "IMP minus full network" not in rows and not found.notices
