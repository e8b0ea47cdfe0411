"""Promised and realised, as a score's page and the API tell it. The pipeline writes the file."""

from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from ml.metrics import METRICS
from ml.realised import Performance, Verdict

FIGURES = "performance.json"
ROOM = 0.12  # of a chart's height, above and below


class Written(msgspec.Struct, frozen=True):
    """What the pipeline writes: the figures, and a hash of them."""

    of: str
    performance: Performance


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A date in a small chart, all in percent: where it is (`y` from the top), where it lies by chance alone if the
    promise holds, or of an estimate if the score is calibrated, and where the promise is; `told` says it in words."""

    x: float
    y: float
    top: float
    height: float
    promised: float
    left: float
    width: float
    verdict: Verdict | Literal["estimated"]
    told: str


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The headline metric of a date, before it is drawn."""

    day: date
    version: int
    value: float
    low: float
    high: float
    promised: float | None
    verdict: Verdict | Literal["estimated"]


class PerformanceView(msgspec.Struct, frozen=True, kw_only=True):
    """The section of a score's page: the headline metric as promised, and its marks, the oldest first: dates that have
    matured, then those that are estimated."""

    performance: Performance
    metric: str
    promised: float | None
    interval: tuple[float, float] | None
    marks: list[Mark]
    first: date | None
    last: date | None
    estimated: int
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
    found = _points(performance, name)
    numbers = [number for one in found for number in (one.value, one.low, one.high, one.promised) if number is not None]
    lowest, highest = min(numbers, default=0.0), max(numbers, default=1.0)
    spread = (highest - lowest) or abs(highest) or 1.0
    bottom, height = lowest - ROOM * spread, (1 + 2 * ROOM) * spread

    def y(number: float) -> float:
        return round(100 - 100 * (number - bottom) / height, 2)

    step = 100 / max(len(found), 1)
    marks = [
        Mark(
            x=round((place + 0.5) * step, 3),
            y=y(one.value),
            top=y(one.high),
            height=round(y(one.low) - y(one.high), 2),
            promised=y(one.value if one.promised is None else one.promised),
            left=round(place * step, 3),
            width=round(step, 3),
            verdict=one.verdict,
            told=f"{one.day}, version {one.version}: {one.value:,.4g}"
            + (f", promised {one.promised:,.4g}" if one.promised is not None else "")
            + f": {one.verdict}",
        )
        for place, one in enumerate(found)
    ]
    matured = [one for one in found if one.verdict != "estimated"]
    return PerformanceView(
        performance=performance,
        metric=name,
        promised=performance.promised.get(name),
        interval=performance.intervals.get(name),
        marks=marks,
        first=matured[0].day if matured else None,
        last=matured[-1].day if matured else None,
        estimated=len(found) - len(matured),
        lowest=lowest,
        highest=highest,
    )


def _points(performance: Performance, name: str) -> list[Point]:
    served = performance.model_version
    matured = [
        Point(
            day=one.as_of_date,
            version=one.model_version,
            value=metric.realised,
            low=metric.realised if metric.low is None else metric.low,
            high=metric.realised if metric.high is None else metric.high,
            promised=metric.promised,
            verdict=metric.verdict,
        )
        for one in performance.dates
        if one.model_version == (one.served_version or served)
        for metric in one.metrics
        if metric.metric == name and metric.realised is not None
    ]
    estimated = [
        Point(
            day=one.as_of_date,
            version=one.model_version,
            value=metric.estimated,
            low=metric.low,
            high=metric.high,
            promised=performance.promised.get(name) if one.model_version == served else None,
            verdict="estimated",
        )
        for one in performance.estimates
        if one.model_version == (one.served_version or served)
        for metric in one.metrics
        if metric.metric == name
    ]
    return matured + estimated
