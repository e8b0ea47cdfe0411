"""Promised and realised: what a version's gate metrics said, and what its predictions were worth once labels matured.

The promise is the metrics on the held-out dates, with their intervals; a later as-of date is measured by the same
metrics, and judged by the interval of the difference of the two.
"""

import math
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ml.intervals import NORMAL_95, standard_errors
from ml.metrics import CALIBRATION_BINS, HIGHER_IS_BETTER, METRICS, Kind, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

Verdict = Literal["as promised", "worse", "better", "not measurable"]


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a version on its `rows` held-out rows: metrics, and the 95 % intervals of those that have
    one."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: int


class RealisedMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one as-of date beside what was promised of it; null where it can't be measured."""

    metric: str
    realised: float | None
    realised_low: Annotated[float | None, Meta(description="Of the 95 % bootstrap interval of the date's rows.")]
    realised_high: float | None
    promised: Annotated[float | None, Meta(description="The same metric on the held-out dates of the version.")]
    promised_low: Annotated[float | None, Meta(description="Of its 95 % interval; null where none was kept.")]
    promised_high: float | None
    low: Annotated[float | None, Meta(description="Where a single date lies in 95 of 100 cases if the promise holds.")]
    high: float | None
    verdict: Verdict


class RealisedDate(msgspec.Struct, frozen=True, kw_only=True):
    """What the predictions that a version made for an as-of date were worth, once all its labels had matured."""

    as_of_date: date
    model_version: int
    served_version: Annotated[
        int | None, Meta(description="The champion when the date was first scored; null if that can't be told.")
    ]
    rows: Annotated[int, Meta(description="Customers with a prediction and a label.")]
    sampled: Annotated[int, Meta(description="Of which the metrics are.")]
    label_rate: Annotated[float | None, Meta(description="The mean label; null for a category.")]
    mean_score: Annotated[float, Meta(description="The mean score; of a category, that of the likeliest class.")]
    drifted: Annotated[
        float | None, Meta(description="Share of the importance that drifted features have; null if not reported.")
    ]
    metrics: list[RealisedMetric]


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a promise was likely broken: the rule that applies, and the figures it applies by."""

    name: Literal["data quality", "contract", "base rate", "drift", "calibration", "none of these"]
    told: str


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """What was promised of a score's champion, and what was realised by it and the versions before and beside it.

    `dates` are the newest, the oldest first. `verdict` is of the newest date that the champion has scored and whose
    labels have matured; `told` says it in a sentence.
    """

    score: str
    kind: Kind
    model_version: Annotated[int, Meta(description="The champion.")]
    holdout_from: Annotated[date, Meta(description="The held-out dates, on which the promise was measured.")]
    holdout_to: date
    promised: Annotated[dict[str, float | None], Meta(description="Metric -> value on the held-out dates.")]
    intervals: Annotated[dict[str, tuple[float, float]], Meta(description="Metric -> 95 % interval of it.")]
    verdict: Literal["as promised", "worse", "better", "nothing matured yet"]
    told: str
    causes: Annotated[list[Cause], Meta(description="Where it is worse: what applies, the likeliest first.")]
    next_matures_on: Annotated[
        date | None, Meta(description="When labels of the champion's next date mature; null if it has no such date.")
    ]
    dates: list[RealisedDate]


def realised_metrics(
    kind: Kind, label: "NDArray[Any]", score: "NDArray[Any]", promise: Promise, seed: int = 0
) -> list[RealisedMetric]:
    """Every metric of the kind for one date's rows (one per customer) beside what was promised, in the order of
    `METRICS`.

    `label` and `score` are as in `evaluate`, which raises `ValueError` for rows that can't be measured.
    """
    measured = evaluate(kind, label, score)
    errors = standard_errors(kind, label, score, np.arange(len(label)), seed)
    chosen = score.max(axis=1) if kind == "category" else score
    spread = float((chosen * (1 - chosen)).mean()) if kind != "amount" else 0.0
    return [
        _compared(name, measured[name], errors.get(name, math.nan), len(label), spread, promise)
        for name in METRICS[kind]
        if name in promise.metrics
    ]


def _compared(name: str, realised: float, error: float, rows: int, spread: float, promise: Promise) -> RealisedMetric:
    """A metric beside its promise. The difference of two measurements has the error sqrt(a² + b²); the customers of
    both are partly the same, which makes it rather smaller, so that an alarm is the surer."""
    promised, interval = promise.metrics[name], promise.intervals.get(name)
    own = (realised - NORMAL_95 * error, realised + NORMAL_95 * error) if math.isfinite(error) else (None, None)
    bounds: tuple[float | None, float | None] = (None, None)
    verdict: Verdict = "not measurable"
    if math.isfinite(realised) and math.isfinite(promised) and math.isfinite(error):
        if interval is not None:  # at the edge of what is possible an interval is cut off on one side
            of_promise = max(promised - interval[0], interval[1] - promised) / NORMAL_95
        else:  # a version of before intervals were kept
            of_promise = error * math.sqrt(rows / promise.rows)
        expected = promised
        if name == "calibration_error":
            expected = _calibration_error_of(promised, promise.rows, rows, spread)
        room = NORMAL_95 * math.hypot(error, of_promise)
        bounds = (expected - room, expected + room)
        verdict = _verdict(name, realised, promised, expected - room, expected + room)
    return RealisedMetric(
        metric=name,
        realised=_known(realised),
        realised_low=own[0],
        realised_high=own[1],
        promised=_known(promised),
        promised_low=interval[0] if interval else None,
        promised_high=interval[1] if interval else None,
        low=bounds[0],
        high=bounds[1],
        verdict=verdict,
    )


def _verdict(name: str, realised: float, promised: float, low: float, high: float) -> Verdict:
    if low <= realised <= high:
        return "as promised"
    higher = HIGHER_IS_BETTER[name]
    is_better = abs(realised) <= abs(promised) if higher is None else (realised > high) == higher
    return "better" if is_better else "worse"


def _calibration_error_of(promised: float, promised_rows: int, rows: int, spread: float) -> float:
    """The calibration error to expect of `rows` rows of a score that had `promised` on others.

    It is a mean of absolute distances, so that chance alone makes it larger, and the more the fewer rows are in a bin:
    by the mean of |N(0, spread / rows of a bin)|, where `spread` is the mean of p (1 - p).
    """

    def by_chance(rows: int) -> float:
        return 2 / math.pi * spread * CALIBRATION_BINS / rows

    return math.sqrt(max(0.0, promised**2 + by_chance(rows) - by_chance(promised_rows)))


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def overall(metrics: "list[RealisedMetric]") -> Literal["as promised", "worse", "better"]:
    """The verdict on a date: worse if a metric is, else better if one is."""
    verdicts = {metric.verdict for metric in metrics}
    return "worse" if "worse" in verdicts else "better" if "better" in verdicts else "as promised"


def drifted_share(figures: Mapping[str, Any], importance: Mapping[str, float]) -> tuple[float, list[str]] | None:
    """Of a drift report's figures: the share of the importance that drifted features have, and they, the weightiest
    first. None if it compares none that has any importance."""
    verdicts = {name: figures.get(f"column.{name}.verdict") for name in importance}
    compared = sum(importance[name] for name, verdict in verdicts.items() if verdict in ("drifted", "stable"))
    if not compared:
        return None
    drifted = [name for name, verdict in verdicts.items() if verdict == "drifted" and importance[name] > 0]
    drifted.sort(key=lambda name: (-importance[name], name))
    return sum(importance[name] for name in drifted) / compared, drifted
