"""The paper's metrics: what each GLUE task is scored by, and which of the scores stands in its tables."""

import warnings

import numpy as np

_BY_ACCURACY = ("mnli", "mnli-mm", "qqp", "wnli", "qnli", "mrpc", "rte", "sst-2")
SCORE = dict.fromkeys(_BY_ACCURACY, "acc") | {
    "sts-b": "pearson",
    "cola": "mcc",
    "squad": "f1",
    "mlm": "accuracy",
}  # task -> key of the metric that Table 2 gives


def glue_metrics(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of one GLUE task (Table 1), as fractions, under the released code's keys.

    predictions, labels: [n], class numbers, or scores for sts-b. What is undefined is nan where the released code has
    nan (the correlations of constant or single values) and 0.0 where it has 0.0 (F1 and Matthews correlation of one
    class only). Raises ValueError for an unknown task, unequal lengths and n = 0.
    """
    if task not in _METRICS:
        raise ValueError(f"{task!r} is not a GLUE task: {', '.join(_METRICS)}")
    if predictions.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"{task}: predictions {predictions.shape} and labels {labels.shape} must be of one shape [n]"
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the libraries' notes on constant input, which pruned networks do give
        return {name: float(value) for name, value in _METRICS[task](predictions, labels).items()}


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"acc": np.mean(predictions == labels)}


def _accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score  # half a second to import: only when a run evaluates

    accuracy = np.mean(predictions == labels)
    f1 = f1_score(labels, predictions, zero_division=0.0)
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    return {"mcc": matthews_corrcoef(labels, predictions)}


def _correlations(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    if len(labels) < 2:
        return {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan}
    pearson, spearman = pearsonr(predictions, labels)[0], spearmanr(predictions, labels)[0]
    return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}


_METRICS = dict.fromkeys(_BY_ACCURACY, _accuracy) | {
    "mrpc": _accuracy_and_f1,
    "qqp": _accuracy_and_f1,
    "sts-b": _correlations,
    "cola": _matthews,
}
