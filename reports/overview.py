"""A score's own page: what was promised, estimated and realised of it, its drift, its volume, and what is wrong now.

One time axis for all, so that what happened together stands together. No scripts; each picture is a small SVG that
stretches to its place, with its figures beside it as text.
"""

from collections.abc import Callable, Sequence
from datetime import date

import msgspec
from markupsafe import Markup, escape

from ml.metrics import METRICS
from ml.realised import Performance, RealisedMetric
from reports.incidents import next_step
from reports.templating import template

WIDTH, HEIGHT = 600.0, 130.0  # of a picture, in units of its own
MARGIN = 14.0  # of it above and below, so that no dot is cut
SMALL_WIDTH, SMALL_HEIGHT = 200.0, 56.0
FEATURES = 12  # that have a picture


class OnDate(msgspec.Struct, frozen=True, kw_only=True):
    """An as-of date: who was scored, by which version, how much of the importance had drifted, where to read more."""

    as_of_date: date
    model_version: int
    customers: int
    drifted: float | None  # share of the importance, 0 to 1; None: not measured
    weighs: float | None = None  # the sum of effect × importance
    drifted_columns: int = 0
    pages: tuple[str, ...] = ()  # names of files


class Mark(msgspec.Struct, frozen=True):
    """What happened as of a date: a version became champion, a generation was published."""

    day: date
    what: str
    is_version: bool


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """An incident, as people read it."""

    incident: str
    kind: str
    severity: str
    told: str
    origin: str | None
    began_on: date
    alerted_on: date
    closed_on: date | None

    @property
    def is_promise(self) -> bool:
        """Whether it is of the score's performance, and not of its data or customers."""
        return self.kind == "worse than promised"


class FeatureSeries(msgspec.Struct, frozen=True, kw_only=True):
    """A feature on the as-of dates: its mean, or of a category the share of what moved most, beside the range that it
    had on the dates that the champion learned from; and how much of its rows is null."""

    name: str
    what: str
    importance: float
    low: float
    high: float
    points: tuple[tuple[date, float], ...]
    nulls: tuple[tuple[date, float], ...]
    effect: float
    since: date | None
    told: str | None


class DriftedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column that has drifted at the newest date: by how much, since when, and what has become of it."""

    name: str
    importance: float | None  # None of the score itself
    effect: float
    since: date
    told: str | None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows of a score. `dates` are the newest, the oldest first; `troubles` the newest first."""

    score: str
    title: str
    description: str
    as_of_date: date
    performance: Performance
    dates: list[OnDate]
    marks: list[Mark]
    troubles: list[Trouble]
    features: list[FeatureSeries]
    drifted: list[DriftedColumn] = []
    rule: str
    sample: str
    reference: str

    @property
    def open(self) -> list[Trouble]:
        """What is wrong now with the data, then the customers; that the promise is broken `performance` says."""
        lasting = [one for one in self.troubles if one.closed_on is None and not one.is_promise]
        return sorted(lasting, key=lambda one: one.severity != "error")


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the timeline: its SVG, the figures at its upper and lower edge, and what it shows in words."""

    name: str
    told: str
    svg: Markup
    high: str
    low: str


def overview_page(overview: Overview) -> str:
    """The page, which has all that it needs; the same text for the same figures.

    Raises `ValueError` if there is no as-of date to show.
    """
    if not overview.dates:
        raise ValueError(f"'{overview.title}': nothing has been scored yet, so there is nothing to draw")
    axis = _axis([one.as_of_date for one in overview.dates], WIDTH)
    days = [one.as_of_date for one in overview.dates]
    return template("overview.html", figure=figure, percent=percent).render(
        overview=overview,
        panels=[_metric_panel(overview, axis), _drift_panel(overview, axis), _volume_panel(overview, axis)],
        features=[(one, _feature_picture(one)) for one in overview.features[:FEATURES]],
        labels=[days[0], days[len(days) // 2], days[-1]] if len(days) > 2 else days,
        next_step=next_step,
        headline=next(iter(METRICS[overview.performance.kind])),
        reports=[one for one in reversed(overview.dates) if one.pages],
    )


def figure(number: float | None) -> str:
    """A figure of the page: 0.8812, 12.35, 1,234; a dash for none."""
    if number is None:
        return "–"
    return f"{number:.4g}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"


def percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


Axis = Callable[[date], float]


def _axis(days: Sequence[date], width: float) -> Axis:
    first, last = min(days), max(days)
    span = (last - first).days or 1
    edge = width / (2 * max(len(days), 2))
    return lambda day: round(edge + (width - 2 * edge) * min(max((day - first).days / span, 0.0), 1.0), 1)


def _scale(numbers: Sequence[float], height: float, margin: float) -> tuple[Callable[[float], float], float, float]:
    """Where a number stands from above, and the lowest and highest of them."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    span = (high - low) or abs(high) or 1.0
    return lambda number: round(height - margin - (height - 2 * margin) * (number - low) / span, 1), low, high


def _svg(parts: Sequence[str], told: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _line(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>' if len(points) > 1 else ""


def _dot(x: float, y: float, kind: str, told: str) -> str:
    """A point, as a line of no length with round ends: it stays round however the picture is stretched."""
    return f'<path class="{kind}" d="M{x} {y}h0"><title>{escape(told)}</title></path>'


def _behind(overview: Overview, axis: Axis, of_promise: bool = False) -> list[str]:
    """What stands behind a picture: the time of incidents, of drift or of a broken promise, and where another version
    began to serve."""
    last = overview.dates[-1].as_of_date
    first = overview.dates[0].as_of_date
    parts = []
    for one in (one for one in overview.troubles if one.is_promise == of_promise):
        end = one.closed_on or last
        if end < first:
            continue
        start = axis(max(one.began_on, first))
        width = max(axis(end) - start, 6.0)
        parts.append(
            f'<rect class="{one.severity}" x="{start}" y="0" width="{round(width, 1)}" height="{HEIGHT:g}">'
            f"<title>{escape(one.told)}</title></rect>"
        )
    for mark in overview.marks:
        if mark.is_version and first <= mark.day <= last:
            x = axis(mark.day)
            parts.append(f'<path class="version" d="M{x} 0V{HEIGHT:g}"><title>{escape(mark.what)}</title></path>')
    return parts


def _metric_panel(overview: Overview, axis: Axis) -> Panel:
    """The headline metric: promised, with the room that chance leaves, estimated, realised, and the naive one's."""
    performance = overview.performance
    name, about = next(iter(METRICS[performance.kind].items()))
    first = overview.dates[0].as_of_date
    champion = performance.model_version
    began = next((one.as_of_date for one in overview.dates if one.model_version == champion), first)
    begins = 0.0 if began == first else axis(began)  # before that another version was there, with a promise of its own
    realised: list[tuple[date, RealisedMetric]] = [
        (one.as_of_date, metric)
        for one in performance.dates
        if one.model_version == (one.served_version or performance.model_version) and one.as_of_date >= first
        for metric in one.metrics
        if metric.metric == name and metric.realised is not None
    ]
    estimated = [
        (one.as_of_date, metric)
        for one in performance.estimates
        if one.model_version == performance.model_version and one.as_of_date >= first
        for metric in one.metrics
        if metric.metric == name
    ]
    promised, interval = performance.promised.get(name), performance.intervals.get(name)
    naive = performance.baseline.get(name)
    of_others = [
        (one.as_of_date, metric.promised)
        for one in performance.dates
        if first <= one.as_of_date < began and one.model_version == one.served_version != champion
        for metric in one.metrics
        if metric.metric == name and metric.promised is not None
    ]
    numbers = [
        number
        for number in (
            promised,
            *(number for _, number in of_others),
            naive,
            *(interval or ()),
            *(part for _, one in realised for part in (one.realised, one.realised_low, one.realised_high)),
            *(part for _, one in estimated for part in (one.estimated, one.low, one.high)),
        )
        if number is not None
    ]
    y, low, high = _scale(numbers, HEIGHT, MARGIN)
    parts = _behind(overview, axis, of_promise=True)
    if interval is not None:
        parts.append(
            f'<rect class="room" x="{begins:g}" width="{WIDTH - begins:g}" y="{y(interval[1])}"'
            f' height="{round(y(interval[0]) - y(interval[1]), 1)}"/>'
        )
    if promised is not None:
        parts.append(f'<path class="promised" d="M{begins:g} {y(promised)}H{WIDTH:g}"><title>promised</title></path>')
    half = _bar_width(overview) / 2
    parts += [
        f'<path class="promised" d="M{round(axis(day) - half, 1)} {y(number)}h{round(2 * half, 1)}">'
        "<title>promised by the version before</title></path>"
        for day, number in of_others
    ]
    if naive is not None:
        parts.append(f'<path class="naive" d="M0 {y(naive)}H{WIDTH:g}"><title>naive forecast</title></path>')
    for day, known in realised:
        if known.realised_low is not None and known.realised_high is not None:
            parts.append(f'<path class="error-bar" d="M{axis(day)} {y(known.realised_low)}V{y(known.realised_high)}"/>')
    for day, guess in estimated:
        if guess.low is not None and guess.high is not None:
            parts.append(f'<path class="error-bar guessed" d="M{axis(day)} {y(guess.low)}V{y(guess.high)}"/>')
    parts.append(_line([(axis(day), y(one.realised or 0.0)) for day, one in realised], "realised"))
    for day, known in realised:
        told = f"{day}: realised {figure(known.realised)}, promised {figure(known.promised)}: {known.verdict}"
        parts.append(_dot(axis(day), y(known.realised or 0.0), f"dot {known.verdict.replace(' ', '-')}", told))
    for day, guess in estimated:
        x, place = axis(day), y(guess.estimated)
        parts.append(_dot(x, place, "dot estimated", f"{day}: estimated {figure(guess.estimated)}"))
        parts.append(f'<path class="dot hole" d="M{x} {place}h0"/>')
    return Panel(name=name, told=about, svg=_svg(parts, f"{name} over time"), high=figure(high), low=figure(low))


def _drift_panel(overview: Overview, axis: Axis) -> Panel:
    """How much of the importance had drifted at each date."""
    most = max((one.drifted or 0.0 for one in overview.dates), default=0.0)
    high = max(most, 0.2)  # so that little looks like little
    parts = _behind(overview, axis)
    width = _bar_width(overview)
    for one in overview.dates:
        if one.drifted is None:
            continue
        height = (HEIGHT - MARGIN) * one.drifted / high
        height = max(height, 1.5)
        told = (
            f"{one.as_of_date}: {one.drifted_columns} columns with {percent(one.drifted)} of the importance had drifted"
        )
        parts.append(_bar(axis(one.as_of_date), width, height, "drift", told))
    return Panel(
        name="drift",
        told="Share of the importance that drifted columns have. Shaded: incidents, red of broken data.",
        svg=_svg(parts, "drift over time"),
        high=percent(high),
        low="0 %",
    )


def _volume_panel(overview: Overview, axis: Axis) -> Panel:
    """How many customers were scored at each date, and what was published."""
    most = max(one.customers for one in overview.dates) or 1
    parts = _behind(overview, axis)
    width = _bar_width(overview)
    for one in overview.dates:
        height = max((HEIGHT - MARGIN) * one.customers / most, 1.5)
        told = f"{one.as_of_date}: {one.customers:,} customers scored by version {one.model_version}"
        parts.append(_bar(axis(one.as_of_date), width, height, "volume", told))
    days = {one.as_of_date for one in overview.dates}
    for mark in overview.marks:
        if not mark.is_version and mark.day in days:
            parts.append(_dot(axis(mark.day), HEIGHT - 6, "dot published", mark.what))
    return Panel(
        name="customers",
        told="Customers scored. Dots: generations that can still be served; dotted lines: another version serves.",
        svg=_svg(parts, "customers over time"),
        high=f"{most:,}",
        low="0",
    )


def _bar_width(overview: Overview) -> float:
    return round(0.7 * WIDTH / max(len(overview.dates), 8), 1)


def _bar(x: float, width: float, height: float, kind: str, told: str) -> str:
    return (
        f'<rect class="{kind}" x="{round(x - width / 2, 1)}" width="{width}" y="{round(HEIGHT - height, 1)}"'
        f' height="{round(height, 1)}"><title>{escape(told)}</title></rect>'
    )


def _feature_picture(one: FeatureSeries) -> Panel:
    """A feature over time within the range that it had in training; dashed the share of nulls, where there are any."""
    axis = _axis([day for day, _ in one.points] or [date.min], SMALL_WIDTH)
    y, low, high = _scale([one.low, one.high, *(value for _, value in one.points)], SMALL_HEIGHT, 6.0)
    parts = [
        f'<rect class="room" x="0" width="{SMALL_WIDTH:g}" y="{y(one.high)}"'
        f' height="{round(max(y(one.low) - y(one.high), 1.0), 1)}"/>'
    ]
    if one.since is not None:
        start = axis(one.since)
        parts.insert(0, f'<rect class="warn" x="{start}" y="0" width="{round(SMALL_WIDTH - start, 1)}" height="56"/>')
    if any(share > 0.005 for _, share in one.nulls):
        null_y = [(axis(day), round(SMALL_HEIGHT - 6 - (SMALL_HEIGHT - 12) * share, 1)) for day, share in one.nulls]
        parts.append(_line(null_y, "nulls"))
    parts.append(_line([(axis(day), y(value)) for day, value in one.points], "realised"))
    if one.points:
        day, value = one.points[-1]
        parts.append(_dot(axis(day), y(value), "dot", f"{day}: {figure(value)}"))
    svg = _svg(parts, f"{one.name} over time", SMALL_WIDTH, SMALL_HEIGHT)
    return Panel(name=one.name, told=one.what, svg=svg, high=figure(high), low=figure(low))
