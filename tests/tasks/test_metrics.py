"""The metrics equal those of the released code; degenerate predictions give a value, no warning."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from utils.data.glue import SPECS
from utils.tasks import metrics

ROOT = Path(__file__).resolve().parents[2]
GLUE = ("cola", "mnli", "mnli-mm", "mrpc", "sst-2", "sts-b", "qqp", "qnli", "rte", "wnli")


@pytest.fixture(scope="module")
def reference(golden):
    return json.loads((golden / "glue_metrics.json").read_text())


def glue_metrics(task, predictions, labels):
    return metrics.glue_metrics(SPECS[task].metric, predictions, labels, SPECS[task].with_f1)


@pytest.mark.parametrize("task", GLUE)
def test_metrics_equal_the_released_ones(reference, task):
    predictions, labels = ("pf", "yf") if task == "sts-b" else ("p", "y")
    measured = glue_metrics(task, np.array(reference[predictions]), np.array(reference[labels]))
    assert measured.keys() == reference["metrics"][task].keys()
    assert measured == pytest.approx(reference["metrics"][task], rel=0, abs=1e-9)
    assert all(type(value) is float for value in measured.values())


@pytest.mark.parametrize("task", GLUE)
def test_the_score_of_a_task_is_one_of_its_metrics(task):
    labels = np.array([0, 1, 1, 0])
    assert glue_metrics(task, labels, labels)[SPECS[task].metric] == pytest.approx(1.0)


def test_scores_are_the_metrics_of_the_papers_tables():
    assert {task: SPECS[task].metric for task in GLUE} == {
        "cola": "mcc",
        "mnli": "acc",
        "mnli-mm": "acc",
        "mrpc": "acc",
        "sst-2": "acc",
        "sts-b": "pearson",
        "qqp": "acc",
        "qnli": "acc",
        "rte": "acc",
        "wnli": "acc",
    }


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "expected"),
    [
        (
            "sts-b",
            [2.5] * 4,
            [0, 1, 2, 3],
            {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan},
        ),
        ("sts-b", [2.5], [1], {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan}),
        (
            "sts-b",
            [np.nan, 1, 2],
            [1, 2, 3],
            {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan},
        ),
        ("cola", [1] * 4, [0, 1, 1, 0], {"mcc": 0.0}),
        ("cola", [1] * 4, [1] * 4, {"mcc": 0.0}),
        ("mrpc", [0] * 4, [0, 1, 1, 0], {"acc": 0.5, "f1": 0.0, "acc_and_f1": 0.25}),
        ("qqp", [0] * 4, [0] * 4, {"acc": 1.0, "f1": 0.0, "acc_and_f1": 0.5}),
        ("mnli", [1] * 4, [2] * 4, {"acc": 0.0}),
    ],
)
def test_degenerate_predictions_give_a_value_without_a_warning(task, predictions, labels, expected):
    kind = np.float32 if task == "sts-b" else np.int64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = glue_metrics(task, np.array(predictions, kind), np.array(labels, kind))
    assert measured == pytest.approx(expected, nan_ok=True)


def test_importing_the_metrics_imports_neither_scikit_learn_nor_scipy():
    found = "[m for m in ('sklearn', 'scipy') if m in sys.modules]"
    code = f"import sys, utils.tasks.metrics; print({found})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"
