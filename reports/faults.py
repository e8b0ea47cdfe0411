"""What has become of a column that drifted: the fault by its name, if it has one, and where in the customers it is."""

import math
from collections.abc import Sequence
from datetime import date
from typing import Literal

import msgspec
import numpy as np

from reports.distances import Bins, Comparison, Distribution, shares

Kind = Literal["stuck at null", "more nulls", "stuck at a value", "unit change", "renamed", "new values",
               "jump", "part of the customers", "mix", "shift", "calendar", "lost source"]  # fmt: skip
# What the business or the season may do by itself; all others are faults of data until somebody knows better.
MOVES: tuple[Kind, ...] = ("shift", "mix", "calendar")

STUCK = 0.98  # of the rows
LEAST_FACTOR = 3.0  # of a unit change, either way: what a business does by itself is less, miles to kilometres are too
NEAR_STANDARD = 0.05  # how far a factor may lie from a known one, as a share
JUMP = 2.0  # standard deviations that a mean moves by from one date to the next, at the least
SAME_SPREAD = 0.1  # how far the spreads of the logarithms may lie apart
GONE = 0.1  # what is left of a category that is gone, as a share of what it was
LEAST_OF_A_CATEGORY = 0.01
STANDARD = {  # what is known to be converted into each other
    100: "dollars to cents", 1000: "a thousandth of the unit", 60: "minutes to seconds", 24: "days to hours",
    7: "weeks to days", 12: "years to months",
}  # fmt: skip


class Fault(msgspec.Struct, frozen=True):
    """What has become of a column: `told` has the figures."""

    kind: Kind
    told: str

    @property
    def is_breakage(self) -> bool:
        return self.kind not in MOVES


class InSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A column in a part of the customers, beside the same part of the reference."""

    column: str
    value: str
    rows: int
    comparison: Comparison


def fault_of(
    bins: Bins,
    current: Distribution,
    reference: Distribution,
    before: Distribution | None = None,
    segments: Sequence[InSegment] = (),
    effect: float = 0.05,
    moved_since: date | None = None,
) -> Fault:
    """The fault of a column that has drifted by `effect` or more.

    `reference` is what the model learned from; `before` the newest date on which the column was in order, which tells a
    sudden change best. `moved_since` is that date, if the column lies further from it than from the reference.
    """
    was = before or reference
    # More nulls tell least: the rows that have a value say whether something else has become of them.
    found = (
        _stuck_at_null(current, was)
        or (_of_categories(bins, current, was, effect) if bins.is_category else _of_numbers(current, before, reference))
        or _more_nulls(current, was, effect)
    )
    if found is not None:
        return found
    told = _moved(bins, current, was if moved_since else reference)
    told += f" since {moved_since}" if moved_since else ""
    return _where(segments, told, effect) or Fault("shift", told)


def _stuck_at_null(current: Distribution, was: Distribution) -> Fault | None:
    is_stuck = current.null_share >= STUCK > was.null_share
    return Fault("stuck at null", _nulls(current, was)) if is_stuck else None


def _more_nulls(current: Distribution, was: Distribution, effect: float) -> Fault | None:
    has_more = current.null_share - was.null_share >= effect
    return Fault("more nulls", _nulls(current, was)) if has_more else None


def _nulls(current: Distribution, was: Distribution) -> str:
    return f"{current.null_share:.0%} of the rows are null, {was.null_share:.0%} were"


def _of_categories(bins: Bins, current: Distribution, was: Distribution, effect: float) -> Fault | None:
    p, q = shares(current), shares(was)
    values = [*bins.categories]
    gone = [place for place in range(len(values)) if q[place] >= LEAST_OF_A_CATEGORY and p[place] <= GONE * q[place]]
    lost, come = float(sum(q[place] - p[place] for place in gone)), float(p[len(values)] - q[len(values)])
    named = ", ".join(repr(values[place]) for place in gone[:3]) + (f" and {len(gone) - 3} more" if gone[3:] else "")
    new = ", ".join(map(repr, current.new[:3]))
    if gone and come >= effect / 2 and abs(come - lost) <= max(0.25 * lost, 0.01):
        had, verb = float(sum(q[place] for place in gone)), "are" if gone[1:] else "is"
        told = f"{named} {verb} gone, which {had:.0%} of the rows had, and {new} has come with {come:.0%}"
        return Fault("renamed", told)
    if come >= effect:
        return Fault("new values", f"{p[len(values)]:.0%} of the rows have values that training has not seen: {new}")
    top = int(np.argmax(p[:-1])) if len(p) > 1 else 0
    if p[top] >= STUCK > q[top] + effect:
        only = repr(values[top]) if top < len(values) else new
        return Fault("stuck at a value", f"{p[top]:.0%} of the rows are {only}, {q[top]:.0%} were")
    return None


def _of_numbers(current: Distribution, before: Distribution | None, reference: Distribution) -> Fault | None:
    was = before or reference
    if current.low is not None and current.low == current.high and was.low != was.high:
        return Fault("stuck at a value", f"all rows are {_number(current.low)}")
    for other in (was, reference):
        factor = _factor(current, other)
        if factor is not None:
            return Fault("unit change", f"all values are {_times(factor)} what they were{_known(factor)}")
    if before is not None and before.sd and current.mean is not None and before.mean is not None:
        sigmas = (current.mean - before.mean) / before.sd
        if abs(sigmas) > JUMP:
            went = f"the mean went from {_number(before.mean)} to {_number(current.mean)} at once ({sigmas:+.2f} σ)"
            return Fault("jump", went)
    return None


def _factor(current: Distribution, was: Distribution) -> float | None:
    """What all values seem to be multiplied by: their logarithms have moved, and are spread as before; None if not."""
    if current.log_mean is None or was.log_mean is None or current.log_sd is None or was.log_sd is None:
        return None
    factor = math.exp(current.log_mean - was.log_mean)
    filled, was_filled = (one.nonzero / max(one.rows - one.nulls, 1) for one in (current, was))
    if abs(current.log_sd - was.log_sd) > SAME_SPREAD * max(was.log_sd, 0.5) or abs(filled - was_filled) > SAME_SPREAD:
        return None
    return factor if abs(math.log(factor)) >= math.log(LEAST_FACTOR) else None


def _times(factor: float) -> str:
    return f"{factor:.3g} times" if factor >= 1 else f"1/{1 / factor:.3g} of"


def _known(factor: float) -> str:
    for standard, told in STANDARD.items():
        if abs(factor / standard - 1) <= NEAR_STANDARD:
            return f" ({told}?)"
        if abs(factor * standard - 1) <= NEAR_STANDARD:
            ends = told.split(" to ")
            return f" ({' to '.join(reversed(ends))}?)" if len(ends) == 2 else f" (a unit {standard:g} times as large?)"
    return ""


def _moved(bins: Bins, current: Distribution, reference: Distribution) -> str:
    if bins.is_category:
        p, q = shares(current), shares(reference)
        names = [*map(repr, bins.categories), "others", "null"]
        place = int(np.argmax(np.abs(p - q)))
        return f"{names[place]} went from {q[place]:.0%} to {p[place]:.0%} of the rows"
    if current.mean is None or reference.mean is None:
        return "no values to compare"
    told = f"the mean went from {_number(reference.mean)} to {_number(current.mean)}"
    return told + (f" ({(current.mean - reference.mean) / reference.sd:+.2f} σ)" if reference.sd else "")


def _where(segments: Sequence[InSegment], told: str, effect: float) -> Fault | None:
    """Whether only a part of the customers has moved, or none within its part: then the parts' shares have.

    Each column makes parts of all customers, so each is looked at alone, the first that tells something counts.
    """
    by_column: dict[str, list[InSegment]] = {}
    for one in segments:
        by_column.setdefault(one.column, []).append(one)
    return next((found for parts in by_column.values() if (found := _in_parts(parts, told, effect))), None)


def _in_parts(segments: Sequence[InSegment], told: str, effect: float) -> Fault | None:
    rows = sum(one.rows for one in segments)
    if len(segments) < 2 or not rows:
        return None
    moved = [one for one in segments if one.comparison.effect >= effect]
    if not moved:
        within = sum(one.rows * one.comparison.effect for one in segments) / rows
        if within < effect / 4:
            return Fault("mix", f"{told}, but not within each {segments[0].column}: their shares have moved")
        return None
    still = [one for one in segments if one.comparison.effect < effect / 4]
    if len(moved) + len(still) == len(segments) and still and sum(one.rows for one in moved) < rows / 2:
        parts = ", ".join(repr(one.value) for one in moved[:3])
        return Fault("part of the customers", f"{told}, only where {moved[0].column} is {parts}")
    return None


def _number(value: float) -> str:
    return f"{value:,.4g}"
