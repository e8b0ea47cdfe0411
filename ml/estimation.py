"""What a score's metrics will likely be once its labels have matured, from the scores alone.

Confidence-based performance estimation: if a score is calibrated, each row counts as an outcome with its probability,
and as none with the rest, so that every metric has an expected value before anything has come true. The expectation of
a ratio is taken as the ratio of expectations, and its spread by the delta method, which among hundreds of rows makes no
difference. Sources: Kivimäki, Białek, Kuberski and Nurminen, "Performance estimation in binary classification using
calibrated confidence", 2025 (arXiv:2505.05295), and NannyML's documentation, "How it works: performance estimation".

It sees that customers have become easier or harder to tell apart. It can't see that what makes an outcome has changed
(concept drift), nor that the score is off its level, so `calibration_error` has no estimate, and an amount has none.
"""

import math
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from ml.intervals import NORMAL_95
from ml.metrics import METRICS, RANGES, Kind, lift
from ml.slices import LEAST_OUTCOMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # The expected value of a metric, and how much one label more adds to it: (rows,), of a category (rows, classes).
    Expected = tuple[float, NDArray[np.float64]]

LEAST_EXPECTED = 1.0  # outcomes of either kind: with fewer nothing may happen at all, and a rank has no meaning


class EstimatedMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric before its labels have matured, if the score is calibrated."""

    metric: str
    estimated: float
    low: Annotated[float, Meta(description="Where the realised one lies in 95 of 100 cases if it is calibrated.")]
    high: float


class ScoredDate(msgspec.Struct, frozen=True, kw_only=True):
    """An as-of date that a version has scored, of which there are metrics."""

    as_of_date: date
    model_version: int
    served_version: Annotated[
        int | None, Meta(description="The champion when the date was first scored; null if that can't be told.")
    ]
    sampled: Annotated[int, Meta(description="Customers of whom the metrics are.")]


class EstimatedDate(ScoredDate, frozen=True, kw_only=True):
    """What the metrics of a version will likely be on an as-of date whose labels have not matured yet."""

    rows: Annotated[int, Meta(description="Customers with a prediction.")]
    metrics: list[EstimatedMetric]


class EstimateError(msgspec.Struct, frozen=True, kw_only=True):
    """How good the estimates of a metric were, over the dates that have matured since: mean absolute distances."""

    metric: str
    dates: int
    of_estimate: Annotated[float, Meta(description="Of the estimate from what was realised.")]
    of_promise: Annotated[float, Meta(description="Of the promise from it: what believing the promise would give.")]


def estimated_metrics(kind: Kind, score: "NDArray[Any]") -> list[EstimatedMetric]:
    """The metrics of the kind that can be estimated for these rows, in the order of `METRICS`; of an amount none.

    Scores are as in `evaluate`. The interval is what chance alone leaves of these very rows. Takes n log n steps.
    """
    scores = np.asarray(score, dtype=np.float64)
    if kind == "amount" or not len(scores):
        return []
    expected = _probability(scores) if kind == "probability" else _category(scores)
    found = []
    for name in METRICS[kind]:
        if name in expected:
            value, effect = expected[name]
            half = NORMAL_95 * _spread(scores, effect)
            least, most = RANGES[name]
            low, high = max(least, value - half), min(most, value + half)
            found.append(EstimatedMetric(metric=name, estimated=float(value), low=float(low), high=float(high)))
    return found


def _spread(scores: "NDArray[np.float64]", effect: "NDArray[np.float64]") -> float:
    """The standard deviation of a sum over rows, each of which adds `effect` where its outcome, or class, comes."""
    if effect.ndim == 1:
        return math.sqrt(float((scores * (1 - scores) * effect**2).sum()))
    of_row = (scores * effect**2).sum(axis=1) - (scores * effect).sum(axis=1) ** 2
    return math.sqrt(max(0.0, float(of_row.sum())))


def _probability(p: "NDArray[np.float64]") -> "dict[str, Expected]":
    rows, outcomes = len(p), p.sum()
    inside = np.clip(p, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    log_odds = np.log(inside) - np.log1p(-inside)
    entropy = -(p * np.log(inside) + (1 - p) * np.log1p(-inside))
    found: dict[str, Expected] = {
        "log_loss": (entropy.mean(), -log_odds / rows),
        "brier": ((p * (1 - p)).mean(), (1 - 2 * p) / rows),
    }
    if min(outcomes, rows - outcomes) >= LEAST_EXPECTED:
        found["roc_auc"] = _roc_auc(p, p)
        found["average_precision"] = _average_precision(p)
        found["lift_top_decile"] = _lift(p)
    return found


def _roc_auc(score: "NDArray[np.float64]", p: "NDArray[np.float64]") -> "Expected":
    """By pairs of rows: each counts p as one with the outcome and 1 - p as one without, but never both in one pair."""
    _, place = np.unique(score, return_inverse=True)
    with_outcome, without = np.bincount(place, weights=p), np.bincount(place, weights=1 - p)
    # Of each row the rows without that it is above and those with that are above it, half of those beside it.
    below = (np.cumsum(without) - without / 2)[place] - (1 - p) / 2
    above = (p.sum() - np.cumsum(with_outcome) + with_outcome / 2)[place] - p / 2
    pairs = p.sum() * (1 - p).sum() - (p * (1 - p)).sum()
    value = float((p * below).sum() / pairs)
    more_pairs = ((1 - p).sum() - (1 - p)) - (p.sum() - p)
    return value, (below - above - value * more_pairs) / pairs


def _average_precision(p: "NDArray[np.float64]") -> "Expected":
    """The hits of each group of equal scores times the precision down to it, over all hits."""
    _, place, rows = np.unique(-p, return_inverse=True, return_counts=True)
    hits, noise = np.bincount(place, weights=p), np.bincount(place, weights=p * (1 - p))
    down_to, rows_to = np.cumsum(hits), np.cumsum(rows)
    # The square of a group's hits is expected to be larger than that of its expected hits, by their variance.
    value = float(((hits * down_to + noise) / rows_to).sum() / p.sum())
    further = np.cumsum((hits / rows_to)[::-1])[::-1] - hits / rows_to
    own = (hits[place] + down_to[place] - 2 * p + 1) / rows_to[place]
    return value, (own + further[place] - value) / p.sum()


def _lift(p: "NDArray[np.float64]") -> "Expected":
    value = lift(p, p, share=0.1)
    chosen = math.ceil(len(p) * 0.1)
    edge = np.partition(p, -chosen)[-chosen]
    is_above, is_tied = p > edge, p == edge
    weight = is_above + is_tied * (chosen - is_above.sum()) / is_tied.sum()
    return value, (len(p) * weight / chosen - value) / p.sum()


def _category(p: "NDArray[np.float64]") -> "dict[str, Expected]":
    """Balanced accuracy, F1 and AUC are means over the classes that happen: they are estimated where each class is
    expected ten times at least, so that it is sure to."""
    rows, classes = p.shape
    inside = np.clip(p, np.finfo(np.float64).tiny, 1)
    chosen = np.zeros_like(p)
    chosen[np.arange(rows), p.argmax(axis=1)] = 1
    found: dict[str, Expected] = {
        "accuracy": ((p * chosen).sum(axis=1).mean(), chosen / rows),
        "log_loss": (-(p * np.log(inside)).sum(axis=1).mean(), -np.log(inside) / rows),
    }
    expected, told, right = p.sum(axis=0), chosen.sum(axis=0), (p * chosen).sum(axis=0)
    if expected.min() < LEAST_OUTCOMES:
        return found
    recall, f1 = right / expected, 2 * right / (told + expected)
    found["balanced_accuracy"] = (recall.mean(), (chosen - recall) / expected / classes)
    found["f1_macro"] = (f1.mean(), (2 * chosen - f1) / (told + expected) / classes)
    if (rows - expected).min() >= LEAST_EXPECTED:
        aucs, effects = zip(*(_roc_auc(p[:, place], p[:, place]) for place in range(classes)), strict=True)
        found["roc_auc"] = (float(np.mean(aucs)), np.column_stack(effects) / classes)
    return found
