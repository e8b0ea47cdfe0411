"""What is learned from and what is held out: the newest as-of dates are, with a maturity gap before them."""

from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from ml.labels import LEAST_ROWS, MATURES_ON, TrainingError
from ml.scores import Score

MOST_HELD_OUT = 4  # as-of dates
SHARE_HELD_OUT = 4  # one date in four, where there are fewer than four times MOST_HELD_OUT
SHARE_MATURED = 0.99  # of labels: by the time in which so many mature a date is whole
EARLY = 0.9  # of that time: a label that matures before it matured early


class TooFewDates(TrainingError):
    """Not enough as-of dates with matured labels to hold some out and train on the others."""


def held_out_dates(dates: int) -> int:
    """How many of so many as-of dates are held out: 4, or a quarter where there are fewer than 16, 1 at least."""
    return max(1, min(MOST_HELD_OUT, dates // SHARE_HELD_OUT))


def holdout_split(rows: pa.Table, as_of: str, newest: int) -> tuple[pa.Table, pa.Table]:
    """Split by time into training and held-out rows: the `newest` as-of dates are held out.

    Training rows are those whose label had matured on or before the first held-out date, so that nothing was learnt
    which was not known then, of the as-of dates that were whole by then (`whole_dates`). A random split would let the
    model see other days of the same customer (leakage). Raises `TooFewDates` if that leaves no training row.
    """
    dates = sorted(pc.unique(rows.column(as_of)).to_pylist())
    if len(dates) <= newest:
        raise TooFewDates(
            f"{len(dates)} as-of dates with matured labels: {newest} to hold out and one before them are needed"
        )
    first = dates[-newest]
    held_out = pc.greater_equal(rows.column(as_of), pa.scalar(first, rows.schema.field(as_of).type))
    day = pa.scalar(first, rows.schema.field(as_of).type).cast(pa.date32())
    matured = pc.less_equal(rows.column(MATURES_ON).cast(pa.date32(), safe=False), day)
    training = whole_dates(rows.filter(pc.and_(matured, pc.invert(held_out))), rows, as_of, day.as_py())
    if not training.num_rows:
        raise TooFewDates(
            f"{len(dates)} as-of dates with matured labels, of which {newest} are held out, from {day} on: none of"
            f" the {len(dates) - newest} before had its labels matured by then (the first matures on"
            f" {pc.min(rows.column(MATURES_ON))}, nearly all within {usual_days(rows, as_of)} days)"
        )
    return training, rows.filter(held_out)


def whole_dates(rows: pa.Table, all_rows: pa.Table, as_of: str, until: date) -> pa.Table:
    """Those of the rows whose as-of date was whole on the day `until`: as long ago as 99 of 100 labels take to mature,
    or of another length (a short month) and without a label that matured early.

    A label that is known as soon as its event happens matures early where it happens. Of a date too new there are
    such rows alone, and who learns from them, or measures on them, takes the event for commoner than it is.
    """
    usual = usual_days(all_rows, as_of)
    took = pa.table({as_of: rows.column(as_of).cast(pa.date32(), safe=False), "took": _days_to_mature(rows, as_of)})
    soonest = took.group_by(as_of).aggregate([("took", "min")])
    old_enough = pc.less_equal(soonest.column(as_of), pa.scalar(until - timedelta(days=usual), pa.date32()))
    none_early = pc.greater_equal(soonest.column("took_min"), EARLY * usual)
    whole = soonest.filter(pc.or_(old_enough, none_early)).column(as_of)
    return rows.filter(pc.is_in(took.column(as_of), value_set=whole.combine_chunks()))


def usual_days(rows: pa.Table, as_of: str) -> int:
    """The days in which 99 of 100 labels mature."""
    (days,) = pc.quantile(_days_to_mature(rows, as_of), SHARE_MATURED, interpolation="higher").to_pylist()
    return int(days)


def _days_to_mature(rows: pa.Table, as_of: str) -> pa.ChunkedArray:
    return pc.days_between(*(rows.column(name).cast(pa.date32(), safe=False) for name in (as_of, MATURES_ON)))


def date_count(rows: pa.Table, as_of: str) -> int:
    return len(pc.unique(rows.column(as_of)))


def split(rows: pa.Table, score: Score) -> tuple[pa.Table, pa.Table]:
    """The training and the held-out rows of a training set. Raises `TooFewDates`."""
    known_until = pc.max(rows.column(MATURES_ON).cast(pa.date32(), safe=False)).as_py()
    rows = whole_dates(rows, rows, score.as_of, known_until)
    return holdout_split(rows, score.as_of, held_out_dates(date_count(rows, score.as_of)))


def window(training: pa.Table, holdout: pa.Table, score: Score) -> pa.Table:
    """The training rows of the rolling window, which ends with the first held-out date; all where there is none."""
    if score.learning.train_on_days is None:
        return training
    first = pc.min(holdout.column(score.as_of)).as_py() - timedelta(days=score.learning.train_on_days)
    as_of = training.column(score.as_of)
    return training.filter(pc.greater_equal(as_of, pa.scalar(first).cast(as_of.type)))


def longer_window(training: pa.Table, holdout: pa.Table, score: Score) -> str:
    """How long a window that holds too few rows would have to be, if any length is enough."""
    if score.learning.train_on_days is None or training.num_rows < LEAST_ROWS:
        return ""
    dates = training.column(score.as_of).cast(pa.date32(), safe=False)  # in order
    first = pc.min(holdout.column(score.as_of).cast(pa.date32(), safe=False)).as_py()
    needed = (first - dates[-LEAST_ROWS].as_py()).days
    return (
        f", which a train_on of {needed} days would have: the window ends on {first}, the first held-out date, and the"
        f" newest labels that had matured by then are of {dates[-1]}"
    )
