"""How good a score is: the metrics of each kind, of scores against what happened."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["probability", "amount", "category"]

METRICS: dict[Kind, dict[str, str]] = {
    "probability": {
        "roc_auc": "Chance that a row with the outcome scores above one without (0.5 is guessing, 1 is perfect).",
        "average_precision": "Mean share of hits among the highest scores, over all hits (a guess gets the base rate).",
        "log_loss": "Mean negative log of the probability given to what happened (0 is perfect).",
        "brier": "Mean squared distance of the probability from what happened, 0 or 1 (0 is perfect).",
        "lift_top_decile": "Rate of the outcome in the highest tenth of scores, over the rate in all (1 is guessing).",
        "calibration_error": "Mean distance of probability from the rate that came true, in ten bins (0 is perfect).",
    },
    "amount": {
        "r2": "Share of the amounts' variance that the forecast explains (0 is forecasting the mean, 1 is perfect).",
        "mae": "Mean absolute error, in the unit of the amount (0 is perfect).",
        "rmse": "Root of the mean squared error, in the unit of the amount (0 is perfect).",
        "bias": "Mean forecast minus mean amount, in the unit of the amount (0 is perfect, above 0 is too much).",
    },
    "category": {
        "balanced_accuracy": "Share of rows whose likeliest class came true, the mean over classes (1 is perfect).",
        "accuracy": "Share of rows whose likeliest class came true (1 is perfect).",
        "f1_macro": "Harmonic mean of precision and recall of a class, the mean over classes (1 is perfect).",
        "roc_auc": "Chance that a row of a class has more of its probability than another row, the mean over classes.",
        "log_loss": "Mean negative log of the probability given to what happened (0 is perfect).",
        "calibration_error": "Mean distance of the likeliest class's probability from how often it came true.",
    },
}
# True: more is better; False: less is; None: nearer to zero is.
HIGHER_IS_BETTER: dict[str, bool | None] = {
    "roc_auc": True,
    "average_precision": True,
    "log_loss": False,
    "brier": False,
    "lift_top_decile": True,
    "calibration_error": False,
    "r2": True,
    "mae": False,
    "rmse": False,
    "bias": None,
    "balanced_accuracy": True,
    "accuracy": True,
    "f1_macro": True,
}
# The least and the most that a metric can be.
RANGES: dict[str, tuple[float, float]] = {
    "roc_auc": (0, 1),
    "average_precision": (0, 1),
    "log_loss": (0, math.inf),
    "brier": (0, 1),
    "lift_top_decile": (0, math.inf),
    "calibration_error": (0, 1),
    "r2": (-math.inf, 1),
    "mae": (0, math.inf),
    "rmse": (0, math.inf),
    "bias": (-math.inf, math.inf),
    "balanced_accuracy": (0, 1),
    "accuracy": (0, 1),
    "f1_macro": (0, 1),
}
CALIBRATION_BINS = 10


class Bin(msgspec.Struct, frozen=True):
    """Rows with scores next to each other: their mean score, the mean of what came, and how many they are."""

    predicted: float
    observed: float
    rows: int


def evaluate(kind: Kind, label: "NDArray[Any]", score: "NDArray[Any]") -> dict[str, float]:
    """Every metric of this kind for scores against what happened.

    Labels are (rows,): 0 or 1, amounts, or places of classes. Scores are (rows,); of a category (rows, classes), each
    row's probabilities, and a label that is no place of theirs is a class that the model does not know. A metric that
    has no meaning on these rows (an AUC without both outcomes, an R2 of equal amounts) is NaN. Raises `ValueError` if
    there are no rows, the lengths differ, or a value is not finite.
    """
    truth, scores = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or scores.shape[:1] != truth.shape or scores.ndim != 1 + (kind == "category") or not len(truth):
        raise ValueError(
            f"metrics need as many scores as labels, and one at least: {scores.shape} scores, {truth.shape} labels"
        )
    if not (np.isfinite(truth).all() and np.isfinite(scores).all()):
        raise ValueError("metrics need finite numbers, but a label or score is null, NaN or infinite")
    measure = {"probability": _probability_metrics, "amount": _amount_metrics, "category": _category_metrics}[kind]
    measured = measure(truth, scores)
    return {name: float(measured[name]) for name in METRICS[kind]}


def without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as JSON can tell them: what is no finite number is None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _probability_metrics(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> dict[str, float]:
    from sklearn import metrics

    if not np.isin(label, (0.0, 1.0)).all():
        raise ValueError("the label of a probability is 0 or 1")
    both = 0 < label.sum() < len(label)
    return {
        "roc_auc": metrics.roc_auc_score(label, score) if both else math.nan,
        "average_precision": metrics.average_precision_score(label, score) if label.any() else math.nan,
        "log_loss": metrics.log_loss(label, score, labels=[0, 1]),
        "brier": metrics.brier_score_loss(label, score, pos_label=1),
        "lift_top_decile": lift(label, score, share=0.1),
        "calibration_error": _calibration_error(label, score),
    }


def _amount_metrics(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> dict[str, float]:
    from sklearn import metrics

    return {
        "r2": metrics.r2_score(label, score) if np.ptp(label) > 0 else math.nan,
        "mae": metrics.mean_absolute_error(label, score),
        "rmse": metrics.root_mean_squared_error(label, score),
        "bias": float(score.mean() - label.mean()),
    }


def _category_metrics(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> dict[str, float]:
    from sklearn import metrics

    known = score.shape[1]
    truth = np.where((label >= 0) & (label < known), label, known).astype(np.int64)
    chosen = score.argmax(axis=1)
    happened = np.unique(truth)
    padded = np.column_stack([score, np.zeros(len(score))]) if known in happened else score
    two_sided = [place for place in happened if place < known and 0 < (truth == place).sum() < len(truth)]
    aucs = [metrics.roc_auc_score(truth == place, score[:, place]) for place in two_sided]
    recalls = [float((chosen[truth == place] == place).mean()) for place in happened]
    return {
        "balanced_accuracy": float(np.mean(recalls)),
        "accuracy": float((chosen == truth).mean()),
        "f1_macro": metrics.f1_score(truth, chosen, labels=happened, average="macro", zero_division=0.0),
        "roc_auc": float(np.mean(aucs)) if aucs else math.nan,
        "log_loss": metrics.log_loss(truth, padded, labels=range(padded.shape[1])),
        "calibration_error": _calibration_error((chosen == truth).astype(np.float64), score.max(axis=1)),
    }


def lift(label: "NDArray[np.float64]", score: "NDArray[np.float64]", share: float) -> float:
    """Rate in the highest `share` of scores (one row at least) over the rate in all; a tie at the edge has its mean."""
    if not label.any():
        return math.nan
    chosen = math.ceil(len(label) * share)
    edge = np.partition(score, -chosen)[-chosen]
    above, tied = score > edge, score == edge
    hits = label[above].sum() + (chosen - above.sum()) * label[tied].mean()
    return float(hits / chosen / label.mean())


def _calibration_error(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> float:
    """Expected calibration error over ten bins of equal count, weighted by their rows.

    The error is that of Naeini, Cooper and Hauskrecht (AAAI 2015); bins of equal count, as it is less biased with them:
    Roelofs, Cain, Shlens and Mozer (AISTATS 2022, arXiv:2012.08668).
    """
    bins = equal_bins(label, score)
    return float(np.average([abs(one.predicted - one.observed) for one in bins], weights=[one.rows for one in bins]))


def equal_bins(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> list[Bin]:
    """Ten bins of equal count by score, the lowest first; fewer where there are fewer rows.

    Rows of equal score share their mean label, so that the order of rows makes no difference.
    """
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rates = np.bincount(place, weights=label, minlength=len(values)) / counts
    in_order, rate_in_order = np.repeat(values, counts), np.repeat(rates, counts)
    parts = [part for part in np.array_split(np.arange(len(score)), CALIBRATION_BINS) if len(part)]
    return [Bin(float(in_order[part].mean()), float(rate_in_order[part].mean()), len(part)) for part in parts]
