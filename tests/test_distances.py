"""How far two distributions lie apart is what the textbook says, and chance and the calendar are no news."""

from datetime import date, timedelta
from math import log
from typing import Any

import numpy as np
import pytest

from ml.alerts import Alerts
from reports.distances import (
    NOTHING,
    Allowance,
    Bins,
    Distribution,
    compare,
    in_order,
    merged,
    shares,
    usual_between,
    usual_of_whole,
)
from reports.trends import Trend, trend_of

DAY = date(2024, 1, 1)


def counted(*counts: int, nulls: int = 0, **moments: Any) -> Distribution:
    return Distribution(rows=sum(counts) + nulls, nulls=nulls, counts=counts, **moments)


def of_values(values: Any, edges: tuple[float, ...] = (-1.0, 0.0, 1.0)) -> Distribution:
    """The distribution of numbers, NaN being null, as numpy counts it."""
    known = values[~np.isnan(values)]
    logs = np.log(np.abs(known[known != 0]))
    return Distribution(
        rows=len(values),
        nulls=len(values) - len(known),
        counts=tuple(np.bincount(np.searchsorted(edges, known), minlength=len(edges) + 1).tolist()),
        mean=float(known.mean()),
        sd=float(known.std()),
        low=float(known.min()),
        high=float(known.max()),
        log_mean=float(logs.mean()),
        log_sd=float(logs.std()),
        nonzero=len(logs),
    )


def by_week(*parts: Distribution) -> dict[date, Distribution]:
    return {DAY + timedelta(weeks=place): one for place, one in enumerate(parts)}


# --- Distances


def test_the_distance_is_the_share_of_rows_that_would_have_to_move() -> None:
    assert compare(counted(500, 500), counted(700, 300)).distance == pytest.approx(0.2)
    assert compare(counted(0, 1000), counted(1000, 0)).distance == 1
    assert compare(counted(50, 50), counted(5000, 5000)).distance == 0, "shares are compared, not counts"


def test_nulls_are_a_bin_of_their_own() -> None:
    found = compare(counted(400, 400, nulls=200), counted(500, 500))
    assert found.distance == pytest.approx(0.2)
    assert shares(counted(400, 400, nulls=200)) == pytest.approx([0.4, 0.4, 0.2])


def test_the_psi_is_as_calculated_by_hand() -> None:
    found = compare(counted(500, 300, 200), counted(600, 300, 100))
    assert found.psi == pytest.approx(-0.1 * log(0.5 / 0.6) + 0.1 * log(0.2 / 0.1))
    empty = compare(counted(500, 500, 0, 0), counted(900, 0, 100, 0)).psi
    assert empty == pytest.approx(
        -0.4 * log(0.5 / 0.9) + (0.5 - 1e-4) * log(0.5 / 1e-4) + (1e-4 - 0.1) * log(1e-4 / 0.1)
    ), "an empty bin counts as one row of ten thousand, and one that is empty on both sides not at all"


@pytest.mark.parametrize(
    ("q", "rows", "reference_rows"),
    [
        ([0.1] * 10, 200, 100_000),
        ([0.1] * 10, 5000, 5000),
        ([0.02, 0.98], 1000, 4000),
        ([0.3, 0.3, 0.4], 1000, 4000),
        ([0.6, 0.3, 0.05, 0.03, 0.02], 400, 800),
        ([1 / 250] * 250, 3000, 20_000),
    ],
    ids=["few rows", "deciles", "a rare value", "three values", "a category", "250 categories"],
)
def test_chance_alone_hardly_ever_has_an_effect(q: list[float], rows: int, reference_rows: int) -> None:
    """The last bin is of the nulls, the last but one of unseen values: both are looked at alone too."""
    random = np.random.default_rng(4)
    current, reference = random.multinomial(rows, q, 1000), random.multinomial(reference_rows, q, 1000)
    found = [
        compare(counted(*one[:-1], nulls=one[-1]), counted(*other[:-1], nulls=other[-1]), is_category=True)
        for one, other in zip(current.tolist(), reference.tolist(), strict=True)
    ]
    assert sum(one.effect > 0 for one in found) <= 12
    assert max(one.effect for one in found) < Alerts().effect
    assert np.mean([one.distance for one in found]) > 0, "though they do differ"


def test_an_effect_is_what_is_beyond_the_usual() -> None:
    current, reference = counted(60_000, 40_000), counted(50_000, 50_000)
    by_chance = compare(current, reference)
    assert 0.09 < by_chance.effect < by_chance.distance == pytest.approx(0.1)
    assert by_chance.effect == pytest.approx(by_chance.distance - by_chance.usual)
    seasonal = compare(current, reference, Allowance(distance=0.08))
    assert (seasonal.usual, seasonal.effect) == (0.08, pytest.approx(0.02))
    assert compare(current, reference, Allowance(distance=0.1)).effect == 0


def test_a_few_more_nulls_are_seen_though_many_bins_hide_them_in_chance() -> None:
    many = [20] * 200
    found = compare(counted(*many, nulls=240), counted(*[10 * one for one in many]))
    assert found.distance < found.usual
    assert found.effect > 0.05
    assert compare(counted(*many, nulls=240), counted(*[10 * one for one in many]), Allowance(nulls=0.1)).effect == 0


def test_a_few_unseen_values_are_seen_alone_too_but_only_of_a_category() -> None:
    current, reference = counted(*[20] * 200, 240), counted(*[200] * 200, 0)
    assert compare(current, reference, is_category=True).effect > 0.05
    assert compare(current, reference).effect == 0
    assert compare(current, reference, Allowance(unseen=0.1), is_category=True).effect == 0


def test_a_side_without_rows_has_no_effect() -> None:
    for found in (compare(counted(0, 0), counted(5, 5)), compare(counted(5, 5), counted(0, 0))):
        assert found.effect == 0
        assert np.isfinite([found.distance, found.psi, found.usual]).all()


def test_all_null_on_one_side_is_as_far_apart_as_it_gets() -> None:
    found = compare(counted(0, 0, nulls=5000), counted(2500, 2500))
    assert found.distance == 1 and found.effect > 0.9
    assert compare(counted(0, 0, nulls=50), counted(0, 0, nulls=900)).distance == 0


# --- Together


def test_what_is_merged_is_the_distribution_of_all_rows() -> None:
    random = np.random.default_rng(2)
    parts = [random.normal(center, 2, size).round(1) for center, size in ((0, 10), (5, 300), (-1, 70))]
    parts[1][::7] = np.nan
    found, whole = merged([of_values(part) for part in parts]), of_values(np.concatenate(parts))
    assert (found.rows, found.nulls, found.counts, found.nonzero) == (
        (whole.rows, whole.nulls, whole.counts, whole.nonzero)
    )
    for moment in ("mean", "sd", "low", "high", "log_mean", "log_sd"):
        assert getattr(found, moment) == pytest.approx(getattr(whole, moment)), moment


def test_parts_without_values_or_rows_change_no_moment() -> None:
    one = of_values(np.array([1.0, 2.0, 4.0]))
    found = merged([counted(0, 0, 0, 0, nulls=7), one, counted(0, 0, 0, 0)])
    assert (found.rows, found.nulls, found.mean, found.low) == (10, 7, one.mean, one.low)
    nothing = merged([counted(0, nulls=2), counted(0)])
    assert (nothing.rows, nothing.mean, nothing.sd, nothing.low) == (2, None, None, None)


def test_new_values_are_named_once() -> None:
    assert merged([counted(1, new=("a", "b")), counted(2, new=("b", "c"))]).new == ("a", "b", "c")


def test_nothing_can_be_merged_of_no_part() -> None:
    with pytest.raises(ValueError, match="a distribution needs one part at least"):
        merged([])


def test_bins_have_one_more_than_edges_or_categories() -> None:
    assert Bins(name="n", type="number", edges=(1.0, 2.0)).count == 3
    assert Bins(name="c", type="category", categories=("a",)).count == 2
    assert Bins(name="b", type="boolean", categories=("false", "true")).is_category
    assert not Bins(name="d", type="date").is_category


# --- What is usual


def test_usual_is_the_most_that_a_date_lay_from_all_of_them() -> None:
    dates = by_week(counted(50, 50), counted(50, 50), counted(80, 20, nulls=0), counted(60, 40))
    assert usual_of_whole(dates).distance == pytest.approx(0.2)  # 80 % beside 60 % of all
    assert usual_of_whole(dates).nulls == 0


def test_usual_knows_nulls_and_unseen_values_alone() -> None:
    found = usual_of_whole(by_week(counted(90, 10), counted(80, 0, nulls=20)))
    assert (found.nulls, found.unseen) == (pytest.approx(0.1), pytest.approx(0.05))


def test_usual_between_is_the_most_of_any_two_dates_so_far_apart() -> None:
    dates = by_week(counted(50, 50), counted(60, 40), counted(65, 35), counted(90, 10))
    assert usual_between(dates, 7).distance == pytest.approx(0.25)
    assert usual_between(dates, 14).distance == pytest.approx(0.3)
    assert usual_between(dates, 21).distance == usual_between(dates, 300).distance == pytest.approx(0.4)
    assert usual_between(dates, 8).distance == usual_between(dates, 7).distance, "the nearest there is"


def test_of_one_date_nothing_is_known_to_be_usual() -> None:
    for dates in ({}, by_week(counted(5, 5)), by_week(counted(5, 5), counted(0, 0))):
        assert usual_of_whole(dates) == usual_between(dates, 7) == NOTHING


# --- Dates on which a column was broken


def test_a_training_date_far_off_all_others_tells_nothing_of_what_is_usual() -> None:
    steady = [counted(500 + 10 * (place % 3), 500 - 10 * (place % 3)) for place in range(10)]
    dates = by_week(*steady[:4], counted(30, 970), *steady[4:])
    assert in_order(dates) == {day: one for day, one in dates.items() if one.counts != (30, 970)}
    nulls = by_week(*steady[:4], counted(10, 10, nulls=980), *steady[4:])
    assert len(in_order(nulls)) == 10


@pytest.mark.parametrize(
    "counts",
    [
        [500, 520, 700, 510, 500, 490, 505, 500],  # a holiday
        [100, 200, 300, 400, 500, 600, 700, 800, 900],  # a trend
        [500] * 8 + [50, 60],  # it is so since
        [500, 500, 20, 500],  # of few dates none can be told from the others
        [500] * 4 + [50] * 5,  # it has been so for long
    ],
    ids=["holiday", "trend", "newest", "few", "a step"],
)
def test_what_a_column_does_by_itself_is_usual(counts: list[int]) -> None:
    dates = by_week(*(counted(count, 1000 - count) for count in counts))
    kept = in_order(dates)
    assert max(kept) == max(dates)
    if counts[-1] == counts[0] - 450 and counts[4] == 50:
        assert set(kept) >= {day for day, one in dates.items() if one.counts[0] == 50}
    else:
        assert kept == dates


# --- Trends


def weeks_of(*means: float | None, nulls: int = 0) -> dict[date, Distribution]:
    return by_week(*(counted(100 - nulls, nulls=nulls, mean=mean, sd=5.0) for mean in means))


def a_trend() -> Trend:
    trend = trend_of(weeks_of(*(10.0 + place for place in range(10))))
    assert trend is not None
    return trend


def test_a_mean_that_rises_by_the_week_is_a_trend() -> None:
    trend = a_trend()
    assert 7 * trend.slope == pytest.approx(1)
    assert trend.told() == "the mean goes on as in training, by +1 a week"


@pytest.mark.parametrize(
    "means",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [3.0] * 10,
        [1.0, 9.0] * 5,
        [1.0] * 9 + [9.0],
        [1.0, 2.0, None, 4.0, 5.0, None],
    ],
    ids=["few dates", "constant", "up and down", "a step", "few with values"],
)
def test_what_is_no_line_is_no_trend(means: list[float | None]) -> None:
    assert trend_of(weeks_of(*means)) is None


@pytest.mark.parametrize(
    ("current", "goes_on"),
    [
        ({"mean": 30.0}, True),
        ({"mean": 31.0}, True),  # within a tenth of the way
        ({"mean": 19.0}, False),  # it has stopped
        ({"mean": 40.0}, False),
        ({"mean": 30.0, "nulls": 4}, True),
        ({"mean": 30.0, "nulls": 5}, False),
        ({"mean": 30.0, "sd": 0.0}, False),  # all the same
        ({"mean": 30.0, "sd": 11.0}, False),
        ({"mean": None}, False),
    ],
)
def test_a_trend_goes_on_where_the_mean_lies_on_its_line_and_nothing_else_changed(
    current: dict[str, Any], goes_on: bool
) -> None:
    nulls = current.pop("nulls", 0)
    now = counted(100 - nulls, nulls=nulls, **{"sd": 5.0, **current})
    assert a_trend().goes_on(DAY + timedelta(weeks=20), now, effect=0.05) is goes_on
