"""The columns of one as-of date after the other, each beside what the model learned from and beside its own past."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Literal

import msgspec

from ml.alerts import Alerts
from reports.distances import (
    Allowance,
    Bins,
    Comparison,
    Distribution,
    compare,
    in_order,
    merged,
    usual_between,
    usual_of_whole,
)
from reports.faults import Fault, InSegment, fault_of
from reports.trends import Trend, trend_of

Against = Literal["training", "previous"]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What a version's columns are compared with: of each its bins, its distribution at each as-of date, in all of them
    together, how far single dates lay from that, and in a part of the customers, by segment column and segment."""

    bins: dict[str, Bins]
    dates: dict[str, dict[date, Distribution]]
    whole: dict[str, Distribution]
    usual: dict[str, Allowance]
    trends: dict[str, Trend]
    of_segments: dict[tuple[str, str, str], Distribution] = {}
    usual_after: dict[tuple[str, int], Allowance] = {}  # of a column by days between two dates, as they are asked for

    def usual_between(self, column: str, days: int) -> Allowance:
        if (column, days) not in self.usual_after:
            self.usual_after[column, days] = usual_between(self.dates[column], days)
        return self.usual_after[column, days]


class State(msgspec.Struct):
    """What is known of a column before a date: its distributions, when it last was in order, since when it is not."""

    seen: dict[date, Distribution] = {}
    in_order: date | None = None
    since: date | None = None


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution beside another: the training rows, or of the newest date (`day`) on which the column was in order;
    in a segment, or in all rows."""

    against: Against
    current: Distribution
    other: Distribution
    comparison: Comparison
    day: date | None = None
    segment_column: str | None = None
    segment: str | None = None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column at a date: whether it has drifted from either reference, since when, and what has become of it.

    One that goes on with the calendar as it did in training has not drifted, and its `fault` says so.
    """

    name: str
    is_drifted: bool
    since: date | None
    fault: Fault | None
    beside: tuple[Beside, ...]
    segments: tuple[Beside, ...]

    @property
    def effect(self) -> float:
        return max(one.comparison.effect for one in self.beside)


Parts = Mapping[str, Mapping[tuple[str, str], Distribution]]  # by column, and by segment column and segment


def reference_of(
    bins: Sequence[Bins],
    dates: Mapping[str, dict[date, Distribution]],
    of_segments: Mapping[tuple[str, str, str], Distribution] = {},
    held_out: Mapping[str, dict[date, Distribution]] = {},
) -> Reference:
    """The reference of these columns. One without a date is left out: there is nothing to compare it with.

    Dates on which a column was broken are no part of its reference, though the version has learned from them. Of a
    column that is `held_out` these dates are what it is compared with, and `dates` tell only what is usual.
    """
    known = [one for one in bins if dates.get(one.name)]
    dates = {one.name: in_order(dates[one.name]) for one in known}
    held_out = {name: in_order(of_days) for name, of_days in held_out.items()}
    whole = {one.name: merged(list((held_out.get(one.name) or dates[one.name]).values())) for one in known}
    usual = {}
    for one in known:
        both = [usual_of_whole(dates[one.name]), usual_of_whole(held_out.get(one.name, {}))]
        usual[one.name] = Allowance(*(max(pair) for pair in zip(*map(msgspec.structs.astuple, both), strict=True)))
    return Reference(
        bins={one.name: one for one in known},
        dates=dates,
        whole=whole,
        usual=usual,
        trends={one.name: trend for one in known if (trend := trend_of(dates[one.name])) is not None},
        of_segments=dict(of_segments),
    )


def compare_date(
    reference: Reference,
    states: dict[str, State],
    day: date,
    columns: Mapping[str, Distribution],
    parts: Parts,
    alerts: Alerts,
) -> list[Column]:
    """The columns of a date, in the order of the reference; `states` are those before it, and after it when it is done.

    Dates are to be given one after the other. A column that the date does not have is left out.
    """
    return [
        _compared(reference, states.setdefault(name, State()), day, columns[name], bins, parts, alerts)
        for name, bins in reference.bins.items()
        if name in columns
    ]


def _compared(
    reference: Reference, state: State, day: date, current: Distribution, bins: Bins, parts: Parts, alerts: Alerts
) -> Column:
    name, whole = bins.name, reference.whole[bins.name]
    found = [
        Beside(
            against="training",
            current=current,
            other=whole,
            comparison=compare(current, whole, reference.usual[name], is_category=bins.is_category),
        )
    ]
    before = state.seen.get(state.in_order) if state.in_order else None
    if before is not None and state.in_order is not None:
        usual = reference.usual_between(name, (day - state.in_order).days)
        compared = compare(current, before, usual, is_category=bins.is_category)
        found.append(Beside(against="previous", current=current, other=before, comparison=compared, day=state.in_order))
    segments = [
        Beside(
            against="training",
            current=part,
            other=other,
            comparison=compare(part, other, reference.usual[name], is_category=bins.is_category),
            segment_column=column,
            segment=value,
        )
        for (column, value), part in parts.get(name, {}).items()
        if (other := reference.of_segments.get((name, column, value))) is not None
    ]
    moved = any(is_beyond(one, alerts) for one in found)
    trend = reference.trends.get(name)
    goes_on = trend is not None and trend.goes_on(day, current, alerts.effect)
    fault = None
    if moved:
        going = Fault("calendar", trend.told()) if goes_on and trend else None
        fault = going or _fault(bins, whole, found, segments, alerts)
    is_drifted = moved and not goes_on
    state.seen[day] = current
    state.since = (state.since or day) if is_drifted else None
    state.in_order = state.in_order if is_drifted else day
    return Column(
        name=name,
        is_drifted=is_drifted,
        since=state.since,
        fault=fault,
        beside=tuple(found),
        segments=tuple(segments),
    )


def is_beyond(one: Beside, alerts: Alerts) -> bool:
    return one.current.rows >= alerts.rows and one.comparison.effect >= alerts.effect


def _fault(
    bins: Bins, whole: Distribution, found: Sequence[Beside], segments: Sequence[Beside], alerts: Alerts
) -> Fault:
    parts = [
        InSegment(
            column=one.segment_column or "",
            value=one.segment or "",
            rows=one.current.rows,
            comparison=one.comparison,
        )
        for one in segments
    ]
    before = next((one.other for one in found if one.against == "previous"), None)
    furthest = max(found, key=lambda one: one.comparison.effect)
    return fault_of(bins, found[0].current, whole, before, parts, alerts.effect, furthest.day)
