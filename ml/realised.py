"""Promised and realised: what a version's gate metrics said, and what its predictions were worth once labels matured.

The promise is the metrics on the held-out dates, with their intervals; a later as-of date is measured by the same
metrics, and judged by the interval of the difference of the two. Beside both stand the naive forecast, and the estimate
of before the labels matured. Slices of the customers are measured in the same way, but the verdict is on all of them.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ml.estimation import EstimatedDate, EstimateError, ScoredDate
from ml.gains import Contact, Gain
from ml.intervals import NORMAL_95, standard_errors
from ml.metrics import CALIBRATION_BINS, HIGHER_IS_BETTER, METRICS, RANGES, Kind, evaluate
from ml.slices import Slice, large_parts

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Verdict = Literal["as promised", "worse", "better", "not measurable"]


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a version on its `rows` held-out rows: metrics, the 95 % intervals of those that have one,
    and the metrics of the naive forecast."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: int
    baseline: dict[str, float] = {}


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
    baseline_promised: Annotated[
        float | None, Meta(description="Of the naive forecast, on the held-out dates; null where it was not measured.")
    ] = None
    baseline_realised: Annotated[
        float | None, Meta(description="Of the naive forecast, applied to this very date; null where it was not kept.")
    ] = None
    estimated: Annotated[
        float | None, Meta(description="What the scores alone said of it; null where it can't be estimated.")
    ] = None


class RealisedDate(ScoredDate, frozen=True, kw_only=True):
    """What the predictions that a version made for an as-of date were worth, once all its labels had matured."""

    rows: Annotated[int, Meta(description="Customers with a prediction and a label.")]
    label_rate: Annotated[float | None, Meta(description="The mean label; null for a category.")]
    mean_score: Annotated[float, Meta(description="The mean score; of a category, that of the likeliest class.")]
    drifted: Annotated[
        float | None, Meta(description="Share of the importance that drifted features have; null if not reported.")
    ]
    metrics: list[RealisedMetric]


class RealisedSlice(msgspec.Struct, frozen=True, kw_only=True):
    """The customers of one date of whom a column has a value. Their verdicts break no promise: among twenty slices that
    keep it one lies outside by chance alone."""

    column: str
    value: Annotated[str, Meta(description="As text; unknown where the column is null.")]
    rows: int
    metrics: list[RealisedMetric]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Where a metric of the next date would be worse than promised: below the one, or above the other."""

    metric: str
    below: float | None = None
    above: float | None = None


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
    estimates: Annotated[
        list[EstimatedDate], Meta(description="Of the dates whose labels have not matured yet; of an amount none.")
    ] = []
    of_estimates: Annotated[
        list[EstimateError], Meta(description="How good the estimates were, beside believing the promise.")
    ] = []
    baseline_name: Annotated[str, Meta(description="What the naive forecast is.")] = ""
    baseline: Annotated[
        dict[str, float | None], Meta(description="Metric -> that of the naive forecast on the held-out dates.")
    ] = {}
    newest: Annotated[
        tuple[date, int] | None,
        Meta(description="As-of date and version of slices and gains: the champion's newest, if one has matured."),
    ] = None
    slices: Annotated[list[RealisedSlice], Meta(description="Parts of its customers; they break no promise.")] = []
    gains: Annotated[list[Gain], Meta(description="What its highest scores held; of a category none.")] = []
    promised_gains: Annotated[
        tuple[float, ...], Meta(description="Share of the outcomes held by each twentieth, on the held-out dates.")
    ] = ()
    contact: Annotated[Contact | None, Meta(description="What a contact is worth, if its owner declares it.")] = None
    lines: Annotated[
        list[Line], Meta(description="Where the next date would be worse than promised, if it is like the newest.")
    ] = []
    most_sampled: Annotated[int, Meta(description="Customers of a date that are measured at most.")] = 0
    seed: Annotated[int, Meta(description="Of the sample, and of the bootstrap behind the intervals.")] = 0


def realised_metrics(
    kind: Kind,
    label: "NDArray[Any]",
    score: "NDArray[Any]",
    promise: Promise,
    seed: int = 0,
    naive: "NDArray[Any] | None" = None,
    is_rough: bool = False,
) -> list[RealisedMetric]:
    """Every metric of the kind for one date's rows (one per customer) beside what was promised, in the order of
    `METRICS`.

    `label`, `score`, and what the naive forecast says, are as in `evaluate`, which raises `ValueError` for rows that
    can't be measured. The error may be rough: see `standard_errors`.
    """
    measured = evaluate(kind, label, score)
    errors = standard_errors(kind, label, score, np.arange(len(label)), seed, is_rough)
    of_naive = {} if naive is None else evaluate(kind, label, naive)
    chosen = score.max(axis=1) if kind == "category" else score
    spread = float((chosen * (1 - chosen)).mean()) if kind != "amount" else 0.0
    return [
        msgspec.structs.replace(
            compared(name, measured[name], errors.get(name, math.nan), len(label), spread, promise),
            baseline_promised=_known(promise.baseline.get(name, math.nan)),
            baseline_realised=_known(of_naive.get(name, math.nan)),
        )
        for name in METRICS[kind]
        if name in promise.metrics
    ]


def realised_slices(
    kind: Kind,
    rows: "pa.Table",
    label: "NDArray[Any]",
    score: "NDArray[Any]",
    promised: Sequence[Slice],
    columns: Sequence[str],
    seed: int = 0,
    naive: "NDArray[Any] | None" = None,
) -> list[RealisedSlice]:
    """The slices of a date that these columns of `rows` make, each beside the held-out slice of the same value.

    Labels, scores and the naive forecast are of the same rows. Without such a held-out slice nothing was promised.
    """
    known = {(one.column, one.value): one for one in promised}
    nothing = dict.fromkeys(METRICS[kind], math.nan)
    found = []
    for column, value, is_in in large_parts(kind, rows, label, columns):
        held_out = known.get((column, value))
        promise = Promise(
            metrics=nothing | (held_out.metrics if held_out else {}),
            intervals={},
            rows=held_out.rows if held_out else 0,
            baseline=held_out.baseline if held_out else {},
        )
        said = None if naive is None else naive[is_in]
        metrics = realised_metrics(kind, label[is_in], score[is_in], promise, seed, said, is_rough=True)
        found.append(RealisedSlice(column=column, value=value, rows=int(is_in.sum()), metrics=metrics))
    return found


def compared(name: str, realised: float, error: float, rows: int, spread: float, promise: Promise) -> RealisedMetric:
    """A metric beside its promise. The difference of two measurements has the error sqrt(a² + b²); the customers of
    both are partly the same, which makes it rather smaller, so that an alarm is the surer."""
    promised, interval = promise.metrics[name], promise.intervals.get(name)
    own: tuple[float | None, float | None] = (None, None)
    if math.isfinite(error):
        least, most = RANGES[name]
        own = (max(least, realised - NORMAL_95 * error), min(most, realised + NORMAL_95 * error))
    bounds: tuple[float | None, float | None] = (None, None)
    verdict: Verdict = "not measurable"
    if math.isfinite(realised) and math.isfinite(promised) and math.isfinite(error):
        # Of a version of before intervals were kept, and of a slice, there is none.
        of_promise = error_of(promised, interval) if interval else error * math.sqrt(rows / promise.rows)
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


def error_of(value: float, interval: tuple[float, float]) -> float:
    """The standard error behind an interval, which at the edge of what is possible is cut off on one side."""
    return max(value - interval[0], interval[1] - value) / NORMAL_95


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
