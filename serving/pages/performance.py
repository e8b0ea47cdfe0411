"""Promised and realised, as a score's page and the API tell it. The pipeline writes the file."""

from datetime import date
from pathlib import Path

import msgspec

from ml.metrics import METRICS
from ml.realised import Performance, RealisedMetric, Verdict

FIGURES = "performance.json"
ROOM = 0.12  # of a chart's height, above and below


class Written(msgspec.Struct, frozen=True):
    """What the pipeline writes: the figures, and a hash of them."""

    of: str
    performance: Performance


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A date in a small chart, all in percent: where it is (`y` from the top), where it lies by chance alone if the
    promise holds, and where the promise is; `told` says it in words."""

    x: float
    y: float
    top: float
    height: float
    promised: float
    left: float
    width: float
    verdict: Verdict
    told: str


class PerformanceView(msgspec.Struct, frozen=True, kw_only=True):
    """The section of a score's page: the headline metric as promised, and its marks, the oldest first."""

    performance: Performance
    metric: str
    promised: float | None
    interval: tuple[float, float] | None
    marks: list[Mark]
    first: date | None
    last: date | None
    lowest: float
    highest: float


def read_performance(reports: Path, score: str) -> Performance | None:
    """What the pipeline wrote last of a score; None before that. Reads the disk."""
    files = sorted((reports / score).glob(f"????-??-??/{FIGURES}"))
    for file in reversed(files):
        try:
            return msgspec.json.decode(file.read_bytes(), type=Written).performance
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            continue
    return None


def performance_view(performance: Performance) -> PerformanceView:
    """The headline metric on each date, by the version that served it then; where that can't be told, by the champion.

    A challenger's figures are in the report.
    """
    name = next(iter(METRICS[performance.kind]))
    found: list[tuple[date, int, RealisedMetric]] = [
        (one.as_of_date, one.model_version, metric)
        for one in performance.dates
        if one.model_version == (one.served_version or performance.model_version)
        for metric in one.metrics
        if metric.metric == name and metric.realised is not None
    ]
    numbers = [
        number
        for *_, metric in found
        for number in (metric.realised, metric.low, metric.high, metric.promised)
        if number is not None
    ]
    lowest, highest = min(numbers, default=0.0), max(numbers, default=1.0)
    spread = (highest - lowest) or abs(highest) or 1.0
    bottom, height = lowest - ROOM * spread, (1 + 2 * ROOM) * spread

    def y(number: float) -> float:
        return round(100 - 100 * (number - bottom) / height, 2)

    step = 100 / max(len(found), 1)
    marks = []
    for place, (day, version, metric) in enumerate(found):
        realised, promised = metric.realised or 0.0, metric.promised
        low = metric.low if metric.low is not None else realised
        high = metric.high if metric.high is not None else realised
        marks.append(
            Mark(
                x=round((place + 0.5) * step, 3),
                y=y(realised),
                top=y(high),
                height=round(y(low) - y(high), 2),
                promised=y(realised if promised is None else promised),
                left=round(place * step, 3),
                width=round(step, 3),
                verdict=metric.verdict,
                told=f"{day}, version {version}: {realised:,.4g}"
                + (f", promised {promised:,.4g}" if promised is not None else "")
                + f": {metric.verdict}",
            )
        )
    return PerformanceView(
        performance=performance,
        metric=name,
        promised=performance.promised.get(name),
        interval=performance.intervals.get(name),
        marks=marks,
        first=found[0][0] if found else None,
        last=found[-1][0] if found else None,
        lowest=lowest,
        highest=highest,
    )
