"""What the pages show: numbers, bars and reports made ready for the templates, and how they are written."""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import msgspec
from markupsafe import Markup

from serving.answers import ScoreSummary
from serving.generations.generation import Reason

NEAR, NEAR_LOW, NEAR_HIGH = 10, 12, 17  # percent of a phone's width that the figures of a scale need, and at its ends

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A band of a score as a piece of a bar: `start` and `width` in percent."""

    name: str
    lowest: float | None
    count: int
    share: str
    start: float
    width: float


class Metric(msgspec.Struct, frozen=True):
    """A metric of the model beside that of the naive forecast."""

    name: str
    value: float | None
    baseline: float | None


class ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    """An HTML report of a score, as /reports lists it."""

    score: str
    as_of_date: date
    name: str
    size: int  # bytes

    @property
    def title(self) -> str:
        return self.name.removesuffix(".html").replace("_", " ").capitalize()

    @property
    def url(self) -> str:
        return f"/reports/{self.score}/{self.as_of_date}/{self.name}"

    @property
    def told_size(self) -> str:
        return f"{self.size / 1e6:.1f} MB" if self.size >= 100_000 else f"{self.size / 1e3:.0f} kB"


class ScoreView(msgspec.Struct, frozen=True, kw_only=True):
    """A score as a card of the overview and the head of its page."""

    score: ScoreSummary
    bands: list[Band]
    metrics: list[Metric]
    report: ReportFile | None

    @property
    def headline(self) -> Metric | None:
        """The first metric, which is the one that its kind is judged by."""
        return self.metrics[0] if self.metrics else None


class ReasonBar(msgspec.Struct, frozen=True, kw_only=True):
    """A reason as a signed bar around the middle: `start` and `width` in percent."""

    feature: str
    value: str | None
    contribution: float
    text: str
    start: float
    width: float


class ClassBar(msgspec.Struct, frozen=True, kw_only=True):
    """A class of a category and its probability, as a bar: `width` in percent, `place` among the classes."""

    name: str
    probability: float
    width: float
    place: int


class Step(msgspec.Struct, frozen=True):
    """A band on the scale from 0 to 1: `start` and `width` in percent, `place` among the bands."""

    start: float
    width: float
    place: int


class Limit(msgspec.Struct, frozen=True):
    """A figure below that scale, at `x` percent, and where its text is anchored."""

    x: float
    told: str
    anchor: str = "middle"


def score_view(score: ScoreSummary, reports: Iterable[ReportFile]) -> ScoreView:
    """A score with its bands, its metrics and its newest report."""
    return ScoreView(
        score=score,
        bands=_bands(score),
        metrics=[Metric(name, value, score.baseline.get(name)) for name, value in score.metrics.items()],
        report=next((report for report in reports if report.score == score.name), None),
    )


def band_places(score: ScoreSummary) -> dict[str, int]:
    """Band -> its place, the highest first."""
    names = sorted({**score.bands, **score.band_counts}, key=lambda name: -score.bands.get(name, float("-inf")))
    return {name: place for place, name in enumerate(names)}


def _bands(score: ScoreSummary) -> list[Band]:
    total = sum(score.band_counts.values()) or 1
    bands, start = [], 0.0
    for name in band_places(score):
        count = score.band_counts.get(name, 0)
        width = 100 * count / total
        share = f"{width:.0f} %" if count == 0 or width >= 1 else "under 1 %"
        lowest = score.bands.get(name)
        bands.append(
            Band(name=name, lowest=lowest, count=count, share=share, start=round(start, 3), width=round(width, 3))
        )
        start += width
    return bands


def scale(score: ScoreSummary) -> list[Step]:
    """The bands of a probability along 0 to 1, the lowest first; empty where there is no such scale."""
    if score.kind != "probability" or not score.bands:
        return []
    places = band_places(score)
    starts = sorted((min(max(lowest, 0.0), 1.0), name) for name, lowest in score.bands.items())
    ends = [start for start, _ in starts[1:]] + [1.0]
    return [
        Step(round(100 * start, 3), round(100 * (end - start), 3), places[name])
        for (start, name), end in zip(starts, ends, strict=True)
    ]


def limits(steps: list[Step]) -> list[Limit]:
    """The limits of the bands below their scale, and its ends, but for those that would lie upon others on a phone."""
    inner: list[Limit] = []
    for step in steps:
        if 0 < step.start < 100 and (not inner or step.start - inner[-1].x >= NEAR):
            inner.append(Limit(step.start, f"{step.start:.3g} %"))
    first, last = (inner[0].x, inner[-1].x) if inner else (100.0, 0.0)
    low = [Limit(0, "0 %", "start")] if first >= NEAR_LOW else []
    high = [Limit(100, "100 %", "end")] if last <= 100 - NEAR_HIGH else []
    return [*low, *inner, *high] if steps else []


def reason_bars(reasons: list[Reason]) -> list[ReasonBar]:
    """Reasons with bars whose longest takes half the width."""
    longest = max((abs(reason.contribution) for reason in reasons), default=0.0) or 1.0
    bars = []
    for reason in reasons:
        width = 48 * abs(reason.contribution) / longest
        bars.append(
            ReasonBar(
                feature=reason.feature,
                value=reason.value,
                contribution=reason.contribution,
                text=reason.text,
                start=round(50 if reason.contribution > 0 else 50 - width, 3),
                width=round(width, 3),
            )
        )
    return bars


def class_bars(probabilities: dict[str, float] | None, places: dict[str, int]) -> list[ClassBar]:
    """The classes of a category, the likeliest first; empty of other kinds."""
    return [
        ClassBar(name=name, probability=one, width=round(100 * one, 3), place=places.get(name, len(places)))
        for name, one in sorted((probabilities or {}).items(), key=lambda pair: -pair[1])
    ]


def find_reports(folder: Path) -> list[ReportFile]:
    """The reports at <folder>/<score>/<as-of date>/<name>.html, the newest first. Reads the disk."""
    reports = []
    for path in folder.glob("*/*/*.html"):
        report = report_file(path, path.parts[-3], path.parts[-2], path.name)
        if report:
            reports.append(report)
    return sorted(reports, key=lambda report: (-report.as_of_date.toordinal(), report.score, report.name))


def report_file(path: Path, score: str, as_of_date: str, name: str) -> ReportFile | None:
    """A report by the parts of its address, None if they are not of the right form or there is no such file."""
    if not (name.endswith(".html") and all(_PART.fullmatch(part) for part in (score, as_of_date, name))):
        return None
    try:
        day, size = date.fromisoformat(as_of_date), path.stat().st_size
    except (ValueError, OSError):
        return None
    return ReportFile(score=score, as_of_date=day, name=name, size=size) if str(day) == as_of_date else None


def count(number: int) -> str:
    """12,345"""
    return f"{number:,}"


def percent(share: float | None) -> str:
    """A share with what is worth reading of it: 12 %, 3.3 %, 0.18 %; a dash for none."""
    if share is None:
        return "–"
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def measure(number: float | None) -> str:
    """A number with what is worth reading of it: 0.8812, 12.35, 1,234; a dash for none."""
    if number is None:
        return "–"
    if number == int(number) and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:,.4f}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"


def threshold(number: float) -> str:
    """A number as somebody wrote it: 0.6, 400, 1,500."""
    return f"{number:,.10g}"


def breakable(name: str) -> Markup:
    """A long name that may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def scored(value: float, kind: str) -> str:
    """A customer's value: a probability in percent, of a category too, an amount with two places."""
    return f"{value:,.2f}" if kind == "amount" else f"{100 * value:.1f} %"


def signed(number: float) -> str:
    """+0.81 or −0.25, with a true minus."""
    digits = 2 if abs(number) >= 0.1 or number == 0 else 3
    return f"{number:+,.{digits}f}".replace("-", "−")


def tidy(text: str) -> str:
    """A feature's value as people read it: long fractions are cut, all else stays."""
    if re.fullmatch(r"-?\d+\.\d{3,}(e-?\d+)?", text):
        return f"{float(text):,.4g}"
    return text


def capitalized(text: str) -> str:
    """A sentence that begins with a capital, all else as it is."""
    return text[:1].upper() + text[1:]


FILTERS = {
    "capitalized": capitalized,
    "count": count,
    "measure": measure,
    "percent": percent,
    "threshold": threshold,
    "breakable": breakable,
    "scored": scored,
    "signed": signed,
    "tidy": tidy,
}
