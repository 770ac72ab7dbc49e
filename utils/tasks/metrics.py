"""The metrics of the GLUE tasks, and which metric of each task the paper's tables give."""

import warnings

import numpy as np

_BY_ACCURACY = ("mnli", "mnli-mm", "qqp", "wnli", "qnli", "mrpc", "rte", "sst-2")
_OTHERS = {"sts-b": "pearson", "cola": "mcc", "squad": "f1", "mlm": "accuracy"}
SCORE = dict.fromkeys(_BY_ACCURACY, "acc") | _OTHERS  # task -> its metric in Table 2


def glue_metrics(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of a GLUE task (Table 1) as fractions, under the released code's keys.

    predictions, labels: [n], class numbers, or scores for sts-b. As in the released code,
    correlations of constant or single values are nan; F1 and Matthews correlation are 0.0 if there
    is one class only. Raises ValueError for an unknown task, unequal shapes and n = 0.
    """
    if task not in SCORE or task in ("squad", "mlm"):
        raise ValueError(f"{task!r} is not a GLUE task")
    if predictions.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        shapes = f"predictions {predictions.shape} and labels {labels.shape}"
        raise ValueError(f"{task}: {shapes} must have the same shape [n]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of constants, as pruned models predict
        metrics = _compute(task, predictions, labels)
    return {name: float(value) for name, value in metrics.items()}


def _compute(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    # scikit-learn and scipy take half a second to import: only when a run evaluates
    if task == "sts-b":
        from scipy.stats import pearsonr, spearmanr

        if len(labels) < 2:
            return {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan}
        pearson = pearsonr(predictions, labels)[0]
        spearman = spearmanr(predictions, labels)[0]
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    if task == "cola":
        from sklearn.metrics import matthews_corrcoef

        return {"mcc": matthews_corrcoef(labels, predictions)}
    accuracy = np.mean(predictions == labels)
    if task not in ("mrpc", "qqp"):
        return {"acc": accuracy}
    from sklearn.metrics import f1_score

    f1 = f1_score(labels, predictions, zero_division=0.0)
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}
