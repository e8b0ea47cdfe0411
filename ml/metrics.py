"""How good a score is: the metrics of each kind, of scores against what happened.

Each is defined once, for rows that stand as often as a weight says: rows as they are have weights of one, and all
resamples of a bootstrap are measured at once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    there are no rows, the lengths differ, a value is not finite, or a probability is below 0 or above 1.
    """
    measured = evaluate_resamples(kind, label, score, np.ones((1, np.size(label))))
    return {name: float(value) for name, (value,) in measured.items()}


def evaluate_resamples(
    kind: Kind, label: "NDArray[Any]", score: "NDArray[Any]", weights: "NDArray[np.float64]"
) -> dict[str, "NDArray[np.float64]"]:
    """Every metric as `evaluate` would give it of each resample, (resamples,).

    Weights are (resamples, rows): how often each row stands in each resample, a whole number. None may be empty.
    """
    truth, scores = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or scores.shape[:1] != truth.shape or scores.ndim != 1 + (kind == "category") or not len(truth):
        raise ValueError(
            f"metrics need as many scores as labels, and one at least: {scores.shape} scores, {truth.shape} labels"
        )
    if not (np.isfinite(truth).all() and np.isfinite(scores).all()):
        raise ValueError("metrics need finite numbers, but a label or score is null, NaN or infinite")
    if kind != "amount" and (scores.min() < 0 or scores.max() > 1):
        raise ValueError("the score of a probability or category lies between 0 and 1")
    measure = {"probability": _probability_metrics, "amount": _amount_metrics, "category": _category_metrics}[kind]
    measured = measure(truth, scores, weights)
    return {name: measured[name] for name in METRICS[kind]}


def without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as JSON can tell them: what is no finite number is None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _probability_metrics(
    label: "NDArray[np.float64]", score: "NDArray[np.float64]", weights: "NDArray[np.float64]"
) -> dict[str, "NDArray[np.float64]"]:
    if not ((label == 0) | (label == 1)).all():
        raise ValueError("the label of a probability is 0 or 1")
    ranking = _ranking(label, score, weights)
    surprise = _surprise(np.where(label == 1, score, 1 - score))
    log_loss, brier = _sums(weights, [surprise, (score - label) ** 2]) / weights.sum(axis=1)
    return {
        "roc_auc": _roc_auc(ranking),
        "average_precision": _average_precision(ranking),
        "log_loss": log_loss,
        "brier": brier,
        "lift_top_decile": _lift(ranking, share=0.1),
        "calibration_error": _calibration_error(ranking),
    }


def _amount_metrics(
    label: "NDArray[np.float64]", score: "NDArray[np.float64]", weights: "NDArray[np.float64]"
) -> dict[str, "NDArray[np.float64]"]:
    rows, error = weights.sum(axis=1), score - label
    absolute, squared, bias, mean = _sums(weights, [np.abs(error), error**2, error, label]) / rows
    variance = (weights * (label - mean[:, None]) ** 2).sum(axis=1) / rows
    is_in = weights > 0
    differs = np.where(is_in, label, -np.inf).max(axis=1) > np.where(is_in, label, np.inf).min(axis=1)
    return {
        "r2": 1 - _ratio(squared, np.where(differs, variance, 0)),
        "mae": absolute,
        "rmse": np.sqrt(squared),
        "bias": bias,
    }


def _category_metrics(
    label: "NDArray[np.float64]", score: "NDArray[np.float64]", weights: "NDArray[np.float64]"
) -> dict[str, "NDArray[np.float64]"]:
    """A class that the model does not know is one more, of which every row has a probability of 0."""
    known = score.shape[1]
    truth = np.where((label >= 0) & (label < known), label, known).astype(np.int64)
    chosen = score.argmax(axis=1)
    is_of, is_told = (np.equal.outer(np.arange(known + 1), places).astype(np.float64) for places in (truth, chosen))
    own = np.where(truth < known, score[np.arange(len(score)), np.minimum(truth, known - 1)], 0)
    rows = weights.sum(axis=1)
    happened, told, right = _sums(weights, is_of), _sums(weights, is_told), _sums(weights, is_of * is_told)
    aucs = np.stack([_roc_auc(_ranking(is_of[place], score[:, place], weights)) for place in range(known)])
    return {
        "balanced_accuracy": _mean(_ratio(right, happened), happened > 0),
        "accuracy": right.sum(axis=0) / rows,
        "f1_macro": _mean(_ratio(2 * right, told + happened), happened > 0),
        "roc_auc": _mean(aucs, np.isfinite(aucs)),
        "log_loss": _sums(weights, [_surprise(own)])[0] / rows,
        "calibration_error": _calibration_error(
            _ranking((chosen == truth).astype(np.float64), score.max(axis=1), weights)
        ),
    }


def _sums(weights: "NDArray[np.float64]", quantities: Iterable["NDArray[np.float64]"]) -> "NDArray[np.float64]":
    """Of quantities of each row their sums in each resample, (quantities, resamples)."""
    return np.stack([(weights * quantity).sum(axis=1) for quantity in quantities])


def _surprise(probability: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The negative log of the probability that was given to what happened, which is finite where that was 0."""
    least = np.finfo(np.float64).eps
    surprise: NDArray[np.float64] = -np.log(np.clip(probability, least, 1 - least))
    return surprise


def _ratio(part: "NDArray[np.float64]", whole: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Part by whole; NaN where the whole is 0."""
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole != 0)
    return ratio


def _mean(values: "NDArray[np.float64]", is_in: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """Of (classes, resamples) the mean over the classes that are in; NaN where none is."""
    return _ratio(np.where(is_in, values, 0).sum(axis=0), is_in.sum(axis=0))


@dataclass(frozen=True)
class _Ranking:
    """Rows of equal score together, the lowest first: the score of each group, (groups,), and of each resample how many
    rows and hits, the sum of their labels, the group has, (resamples, groups)."""

    score: "NDArray[np.float64]"
    rows: "NDArray[np.float64]"
    hits: "NDArray[np.float64]"


def _ranking(label: "NDArray[np.float64]", score: "NDArray[np.float64]", weights: "NDArray[np.float64]") -> _Ranking:
    order = np.argsort(score)
    values = score[order]
    rows = weights[:, order]
    hits = rows * label[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] > values[:-1]]))
    if len(starts) < len(order):
        rows, hits = np.add.reduceat(rows, starts, axis=1), np.add.reduceat(hits, starts, axis=1)
    return _Ranking(values[starts], rows, hits)


def _roc_auc(ranking: _Ranking) -> "NDArray[np.float64]":
    """Of all pairs of a hit and a miss the share in which the hit scores above; half of those that tie."""
    misses = ranking.rows - ranking.hits
    below = np.cumsum(misses, axis=1) - misses / 2
    return _ratio((ranking.hits * below).sum(axis=1), ranking.hits.sum(axis=1) * misses.sum(axis=1))


def _average_precision(ranking: _Ranking) -> "NDArray[np.float64]":
    """The hits of each group times the precision down to it, over all hits."""
    hits = ranking.hits[:, ::-1]
    rows_to, hits_to = np.cumsum(ranking.rows[:, ::-1], axis=1), np.cumsum(hits, axis=1)
    return _ratio((hits * hits_to / np.maximum(rows_to, 1)).sum(axis=1), hits_to[:, -1])


def lift(label: "NDArray[np.float64]", score: "NDArray[np.float64]", share: float) -> float:
    """Rate in the highest `share` of scores (one row at least) over the rate in all; a tie at the edge has its mean."""
    return float(_lift(_ranking(label, score, np.ones((1, len(label)))), share)[0])


def _lift(ranking: _Ranking, share: float) -> "NDArray[np.float64]":
    rows, hits = ranking.rows.sum(axis=1), ranking.hits.sum(axis=1)
    chosen = np.ceil(rows * share)
    below = _of_lowest(ranking, ranking.hits, (rows - chosen)[:, None])[:, 0]
    return _ratio((hits - below) / chosen, hits / rows)


def _of_lowest(
    ranking: _Ranking, of_group: "NDArray[np.float64]", counts: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    """How much of a quantity of each group is in the lowest so many rows of a resample, (resamples, counts).

    The rows of a group have equal shares of it, so that their order makes no difference.
    """
    before = np.zeros((len(counts), 1))
    rows, sums = (np.hstack([before, np.cumsum(part, axis=1)]) for part in (ranking.rows, of_group))
    return np.stack([np.interp(*resample) for resample in zip(counts, rows, sums, strict=True)])


def _bin_ends(rows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """How many rows lie below the upper end of each bin, (resamples, bins), as `np.array_split` cuts: where the rows
    can't be split evenly the first bins have one more, so that of fewer rows than bins the last have none."""
    size, over = np.divmod(rows[:, None], CALIBRATION_BINS)
    places = np.arange(1.0, CALIBRATION_BINS + 1)
    ends: NDArray[np.float64] = size * places + np.minimum(places, over)
    return ends


def _calibration_error(ranking: _Ranking) -> "NDArray[np.float64]":
    """Expected calibration error over ten bins of equal count, weighted by their rows.

    The error is that of Naeini, Cooper and Hauskrecht (AAAI 2015); bins of equal count, as it is less biased with them:
    Roelofs, Cain, Shlens and Mozer (AISTATS 2022, arXiv:2012.08668).
    """
    rows = ranking.rows.sum(axis=1)
    too_much = _of_lowest(ranking, ranking.score * ranking.rows - ranking.hits, _bin_ends(rows))
    of_bin = np.abs(np.diff(too_much, axis=1, prepend=0))
    return _ratio(of_bin.sum(axis=1), rows)


def equal_bins(label: "NDArray[np.float64]", score: "NDArray[np.float64]") -> list[Bin]:
    """Ten bins of equal count by score, the lowest first; fewer where there are fewer rows.

    Rows of equal score share their mean label, so that the order of rows makes no difference.
    """
    ranking = _ranking(label, score, np.ones((1, len(score))))
    ends = _bin_ends(ranking.rows.sum(axis=1))
    scores = _of_lowest(ranking, ranking.score * ranking.rows, ends)
    hits = _of_lowest(ranking, ranking.hits, ends)
    bins = zip(*(np.diff(sums[0], prepend=0) for sums in (scores, hits, ends)), strict=True)
    return [Bin(float(score / rows), float(hits / rows), int(rows)) for score, hits, rows in bins if rows]
