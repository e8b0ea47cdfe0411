"""What rises or falls with the calendar: a column whose mean was a straight line in training, and goes on as it."""

from collections.abc import Mapping
from datetime import date

import msgspec
import numpy as np

from reports.distances import Distribution

LEAST_DATES = 6
LEAST_FIT = 0.95  # R2 of the line
NEAR = 0.1  # of the way that the line has come since the middle of the training, which the mean may be off it
WIDER = 1.5  # times that the values of a date may spread wider or less than those of any in training
ERRORS = 3.0  # or so many deviations of the dates from the line


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """The line of a column's means: `slope` a day, `middle` at the date `of`, and how far dates lay from it; the most
    nulls of a date, and how far the values of single dates spread, the least and the most."""

    of: date
    middle: float
    slope: float
    spread: float
    nulls: float
    least_sd: float
    most_sd: float

    def goes_on(self, day: date, current: Distribution, effect: float) -> bool:
        """Whether a column of a date lies on the line, its values spread as in training and no more of them null, by
        the share of the rows that counts, `effect`."""
        if current.mean is None or current.sd is None or current.null_share - self.nulls >= effect:
            return False
        if not self.least_sd / WIDER <= current.sd <= self.most_sd * WIDER:
            return False
        way = self.slope * (day - self.of).days
        return abs(current.mean - self.middle - way) <= max(NEAR * abs(way), ERRORS * self.spread)

    def told(self) -> str:
        return f"the mean goes on as in training, by {7 * self.slope:+.3g} a week"


def trend_of(dates: Mapping[date, Distribution]) -> Trend | None:
    """The line of these dates; None if there are too few of them, or their means are no line."""
    known = {day: one.mean for day, one in sorted(dates.items()) if one.mean is not None}
    spreads = [one.sd for one in dates.values() if one.sd is not None]
    if len(known) < LEAST_DATES:
        return None
    of = min(known)
    days, means = np.array([(day - of).days for day in known], dtype=np.float64), np.array(list(known.values()))
    spread = means.std()
    if not spread:
        return None
    slope, start = np.polyfit(days, means, 1)
    off = means - start - slope * days
    if 1 - off.var() / spread**2 < LEAST_FIT:
        return None
    middle = days.mean()
    return Trend(
        of=date.fromordinal(of.toordinal() + round(middle)),
        middle=float(start + slope * round(middle)),
        slope=float(slope),
        spread=float(off.std()),
        nulls=max(one.null_share for one in dates.values()),
        least_sd=min(spreads),
        most_sd=max(spreads),
    )
