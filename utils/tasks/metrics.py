"""The metrics of the GLUE tasks."""

import math
import warnings

import numpy as np


def glue_metrics(
    metric: str, predictions: np.ndarray, labels: np.ndarray, with_f1: bool = False
) -> dict[str, float]:
    """Return the metrics of a GLUE task (Table 1) as fractions, under the released code's keys.

    metric: "acc", "mcc" or "pearson", the one of the paper's tables; predictions, labels: [n],
    class numbers, or scores for "pearson". As in the released code, correlations of constant or
    single values are nan; F1 and Matthews correlation are 0.0 if there is one class only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of constants, as pruned models predict
        # scikit-learn and scipy take half a second to import: only if their metrics are needed
        if metric == "pearson":
            from scipy.stats import pearsonr, spearmanr

            pearson = spearman = math.nan
            if len(labels) > 1:
                pearson = float(pearsonr(predictions, labels)[0])
                spearman = float(spearmanr(predictions, labels)[0])
            return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
        if metric == "mcc":
            from sklearn.metrics import matthews_corrcoef

            return {"mcc": float(matthews_corrcoef(labels, predictions))}
        accuracy = float(np.mean(predictions == labels))
        if not with_f1:
            return {"acc": accuracy}
        from sklearn.metrics import f1_score

        f1 = float(f1_score(labels, predictions, zero_division=0.0))
        return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}
