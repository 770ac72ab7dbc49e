"""The metrics of the GLUE tasks."""

import warnings

import numpy as np


def glue_metrics(
    metric: str, predictions: np.ndarray, labels: np.ndarray, with_f1: bool = False
) -> dict[str, float]:
    """Return the metrics of a GLUE task (Table 1) as fractions, under the released code's keys.

    metric: "acc", "mcc" or "pearson", the one of the paper's tables; predictions, labels: [n],
    class numbers, or scores for "pearson". As in the released code, correlations of constant or
    single values are nan; F1 and Matthews correlation are 0.0 if there is one class only. Raises
    ValueError for an unknown metric, unequal shapes and n = 0.
    """
    if predictions.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        shapes = f"predictions {predictions.shape} and labels {labels.shape}"
        raise ValueError(f"{metric}: {shapes} must have the same shape [n]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of constants, as pruned models predict
        metrics = _compute(metric, predictions, labels, with_f1)
    return {name: float(value) for name, value in metrics.items()}


def _compute(
    metric: str, predictions: np.ndarray, labels: np.ndarray, with_f1: bool
) -> dict[str, float]:
    # scikit-learn and scipy take half a second to import: only when a run evaluates
    if metric == "pearson":
        from scipy.stats import pearsonr, spearmanr

        if len(labels) < 2:
            return {"pearson": np.nan, "spearmanr": np.nan, "corr": np.nan}
        pearson = pearsonr(predictions, labels)[0]
        spearman = spearmanr(predictions, labels)[0]
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    if metric == "mcc":
        from sklearn.metrics import matthews_corrcoef

        return {"mcc": matthews_corrcoef(labels, predictions)}
    if metric != "acc":
        raise ValueError(f"{metric!r} is not a metric of a GLUE task")
    accuracy = np.mean(predictions == labels)
    if not with_f1:
        return {"acc": accuracy}
    from sklearn.metrics import f1_score

    f1 = f1_score(labels, predictions, zero_division=0.0)
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}
