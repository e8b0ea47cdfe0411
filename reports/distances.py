"""How far two distributions of a column lie apart, and how far apart they lie without anything having happened.

Columns are compared by their binned counts, so that every row counts, whatever their number, and none is in memory.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ml.encoding import ColumnType

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SHARE = 1e-4  # of a bin, as the PSI of an empty one would be infinite
# What chance alone makes of a distance: of a thousand columns a few lie beyond its mean and so many deviations, nor do
# more beyond so many deviations of one bin, which is what counts where there are few.
NOISE_ERRORS = 3.0
NOISE_OF_ONE = 3.3
# A training date is left out of what is usual if it lies so far off the median of all, in shares of the rows, and so
# many times as far as most do: a trend's ends do by twice, a holiday by less than a quarter of the rows.
FAR, FAR_OFF = 0.25, 5.0
LEAST_DATES = 5  # of which most may tell what is in order


class Bins(msgspec.Struct, frozen=True, kw_only=True):
    """How a column's values are counted: a number, date or boolean by the upper edges of its bins, of which one more
    is beyond the last; a category by its `categories`, with one more for all others."""

    name: str
    type: ColumnType
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def is_category(self) -> bool:
        return self.type in ("category", "boolean")

    @property
    def count(self) -> int:
        return 1 + len(self.categories if self.is_category else self.edges)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A column's values in some rows: `counts` by its bins, without the `nulls`. Of a category there are no moments;
    `new` are the most frequent of the values that are none of its categories. `log_mean` and `log_sd` are of ln|x|
    where x is not 0, in `nonzero` rows: other units move the one, and leave the other as it is."""

    rows: int
    nulls: int
    counts: tuple[int, ...]
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    log_mean: float | None = None
    log_sd: float | None = None
    nonzero: int = 0
    new: tuple[str, ...] = ()

    @property
    def null_share(self) -> float:
        return self.nulls / self.rows if self.rows else 0.0


class Allowance(msgspec.Struct, frozen=True):
    """How far a column lies from its reference although nothing has happened: by all bins, by the nulls alone, and of a
    category by the values that training has not seen alone."""

    distance: float = 0.0
    nulls: float = 0.0
    unseen: float = 0.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A column of some rows beside a reference.

    `distance` is the share of the rows that would have to be in another bin for both to be alike, nulls being a bin of
    their own (the total variation distance): 0 to 1. `usual` is how much of it is no news, `effect` what is beyond it.
    `psi` is the population stability index (Siddiqi, "Credit Risk Scorecards", 2006): the sum of (p - q) ln(p / q).
    """

    distance: float
    psi: float
    usual: float
    effect: float


def shares(one: Distribution) -> "NDArray[np.float64]":
    """The share of the rows in each bin, the nulls last."""
    counts = np.array([*one.counts, one.nulls], dtype=np.float64)
    return counts / max(one.rows, 1)


def merged(parts: Sequence[Distribution]) -> Distribution:
    """The distribution of all the rows of some parts. Raises `ValueError` if there is no part."""
    if not parts:
        raise ValueError("nothing to merge: a distribution needs one part at least")
    known = [one for one in parts if one.rows > one.nulls]
    mean, sd = _pooled([(one.rows - one.nulls, one.mean, one.sd) for one in known])
    log_mean, log_sd = _pooled([(one.nonzero, one.log_mean, one.log_sd) for one in known])
    return Distribution(
        rows=sum(one.rows for one in parts),
        nulls=sum(one.nulls for one in parts),
        counts=tuple(map(sum, zip(*(one.counts for one in parts), strict=True))),
        mean=mean,
        sd=sd,
        low=min((one.low for one in known if one.low is not None), default=None),
        high=max((one.high for one in known if one.high is not None), default=None),
        log_mean=log_mean,
        log_sd=log_sd,
        nonzero=sum(one.nonzero for one in parts),
        new=tuple(dict.fromkeys(name for one in parts for name in one.new)),
    )


def _pooled(parts: Sequence[tuple[int, float | None, float | None]]) -> tuple[float | None, float | None]:
    """Mean and deviation of all rows, from those of parts with so many rows each."""
    known = [(rows, mean, sd) for rows, mean, sd in parts if rows and mean is not None and sd is not None]
    total = sum(rows for rows, _, _ in known)
    if not total:
        return None, None
    mean = sum(rows * mean for rows, mean, _ in known) / total
    square = sum(rows * (sd**2 + (own - mean) ** 2) for rows, own, sd in known) / total
    return mean, float(np.sqrt(square))


NOTHING = Allowance()


def compare(
    current: Distribution, reference: Distribution, usual: Allowance = NOTHING, *, is_category: bool = False
) -> Comparison:
    """A column beside its reference; `usual` is what it may differ by besides chance, which the rows decide.

    Nulls, and of a category values that are not among those counted, are looked at alone too: among many bins a few
    percent of either would be taken for chance.
    """
    p, q = shares(current), shares(reference)
    distance = float(np.abs(p - q).sum() / 2)
    deviations = np.sqrt(q * (1 - q) * (1 / max(current.rows, 1) + 1 / max(reference.rows, 1)))
    allowed = max(usual.distance, _noise(q, deviations))
    alone = [(-1, usual.nulls), *([(-2, usual.unseen)] if is_category else [])]
    beyond = [abs(p[place] - q[place]) - max(most, NOISE_OF_ONE * float(deviations[place])) for place, most in alone]
    return Comparison(
        distance=distance,
        psi=_psi(p, q),
        usual=min(allowed, 1.0),
        effect=float(max(distance - allowed, *beyond, 0.0)) if current.rows and reference.rows else 0.0,
    )


def _psi(p: "NDArray[np.float64]", q: "NDArray[np.float64]") -> float:
    # A bin that is empty on both sides says nothing.
    seen = (p > 0) | (q > 0)
    p, q = np.maximum(p[seen], LEAST_SHARE), np.maximum(q[seen], LEAST_SHARE)
    return float(((p - q) * np.log(p / q)).sum())


def _noise(q: "NDArray[np.float64]", deviations: "NDArray[np.float64]") -> float:
    """The distance from a reference that rows drawn from it hardly exceed, by the deviations of their bins' shares.

    Each bin's difference d is about normal, so |d| has the mean sqrt(2/pi) and the variance 1 - 2/pi, in units of its
    deviation. Those of two bins are correlated by r = -sqrt(p q / ((1 - p) (1 - q))), and their absolute values by r^2
    at most: it matters where a few bins hold most rows, as of two the one gains what the other loses.
    """
    mean = np.sqrt(2 / np.pi) * deviations.sum() / 2
    tied = deviations * q / np.maximum(1 - q, np.finfo(np.float64).tiny)
    variance = (deviations**2).sum() + tied.sum() ** 2 - (tied**2).sum()
    deviation = np.sqrt((1 - 2 / np.pi) * max(variance, 0.0)) / 2
    return float(max(mean + NOISE_ERRORS * deviation, NOISE_OF_ONE * deviations.max()))


def in_order(dates: Mapping[date, Distribution]) -> dict[date, Distribution]:
    """These dates without those on which a column was broken: they lie far off what most dates have in common.

    A single broken date that a version has learned from would else be what is usual, and hide any fault as large. The
    newest dates stay, however far off: what has not gone back to what it was is how the column is now.
    """
    known = {day: shares(one) for day, one in dates.items() if one.rows}
    if len(known) < LEAST_DATES:
        return dict(dates)
    off = np.abs(np.array(list(known.values())) - np.median(list(known.values()), axis=0)).sum(axis=1) / 2
    is_far = off > max(FAR, FAR_OFF * float(np.median(off)))
    far = {day for day, is_one in zip(known, is_far, strict=True) if is_one}
    back = max(known.keys() - far)
    return {day: one for day, one in dates.items() if day not in far or day > back}


def usual_of_whole(dates: Mapping[date, Distribution]) -> Allowance:
    """How far single dates lay from all of them together: the most that any did. Season and trend are in it."""
    known = [one for one in dates.values() if one.rows]
    if len(known) < 2:
        return NOTHING
    q = shares(merged(known))
    return _most(np.array([shares(one) - q for one in known]))


def usual_between(dates: Mapping[date, Distribution], days: int) -> Allowance:
    """How far two dates lay apart that had so many days between them: the most that any pair did.

    Where no pair had just that distance those of the nearest distance count.
    """
    known = {day.toordinal(): shares(one) for day, one in sorted(dates.items()) if one.rows}
    if len(known) < 2:
        return NOTHING
    when, of_days = np.array(list(known)), np.array(list(known.values()))
    earlier, later = np.triu_indices(len(when), 1)
    off = np.abs(when[later] - when[earlier] - days)
    is_nearest = off == off.min()
    return _most(of_days[later[is_nearest]] - of_days[earlier[is_nearest]])


def _most(apart: "NDArray[np.float64]") -> Allowance:
    """The largest of some differences of shares, one a row."""
    each = np.abs(apart)
    distance, nulls, unseen = each.sum(axis=1).max() / 2, each[:, -1].max(), each[:, -2].max()
    return Allowance(float(distance), float(nulls), float(unseen))
