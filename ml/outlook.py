"""What the measured dates say of those to come: where the promise would be broken, and how far an estimate is to be
believed."""

import math
from collections.abc import Sequence

from ml.estimation import EstimateError
from ml.metrics import HIGHER_IS_BETTER, METRICS, Kind
from ml.realised import Line, Promise, RealisedDate, RealisedMetric, compared, error_of


def estimate_errors(dates: Sequence[RealisedDate]) -> list[EstimateError]:
    """By metric how far the estimates lay from what was realised, beside how far the promise did, over these dates."""
    distances: dict[str, list[tuple[float, float]]] = {}
    for metric in (metric for one in dates for metric in one.metrics):
        if metric.realised is not None and metric.estimated is not None and metric.promised is not None:
            off = abs(metric.estimated - metric.realised), abs(metric.promised - metric.realised)
            distances.setdefault(metric.metric, []).append(off)
    return [
        EstimateError(
            metric=name,
            dates=len(found),
            of_estimate=sum(estimate for estimate, _ in found) / len(found),
            of_promise=sum(promise for _, promise in found) / len(found),
        )
        for name, found in distances.items()
    ]


def verdict_lines(metrics: Sequence[RealisedMetric]) -> list[Line]:
    """Where each metric of the next date would be worse than promised, if that has as many customers and as much chance
    in it as the date of these."""
    found = []
    for one in metrics:
        if one.low is None or one.high is None or one.promised is None:
            continue
        higher = HIGHER_IS_BETTER[one.metric]
        if higher is None:  # what is outside is better where it is nearer to zero than what was promised
            below, above = min(one.low, -abs(one.promised)), max(one.high, abs(one.promised))
            found.append(Line(metric=one.metric, below=below, above=above))
        else:
            found.append(Line(metric=one.metric, below=one.low) if higher else Line(metric=one.metric, above=one.high))
    return found


def expected_metrics(promise: Promise, rows: int, kind: Kind) -> list[RealisedMetric]:
    """Where the metrics of a date of so many customers would lie if the promise holds, from the promise alone: its
    error, as of so many rows. Of a calibration error that can't be told before there is a date."""
    found = []
    for name in METRICS[kind]:
        interval = promise.intervals.get(name)
        if interval is not None and name != "calibration_error":
            error = error_of(promise.metrics[name], interval) * math.sqrt(promise.rows / rows)
            found.append(compared(name, promise.metrics[name], error, rows, 0.0, promise))
    return found
