"""What has become of a column that drifted is told by the fault's name, with its figures."""

import re
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from ml.alerts import Alerts
from ml.encoding import ColumnType
from reports.comparing import Column, State, compare_date, reference_of
from reports.distances import Bins, Distribution, compare
from reports.faults import MOVES, Fault, InSegment, fault_of
from tests.test_distances import counted, of_values

EDGES = tuple(float(edge) for edge in np.quantile(np.random.default_rng(1).gamma(2, 20, 5000), np.arange(1, 10) / 10))
SPEND = Bins(name="spend", type="number", edges=EDGES)
COLOUR = Bins(name="colour", type="category", categories=("blue", "green", "red"))
MEMBER = Bins(name="member", type="boolean", categories=("false", "true"))
COLOURS = counted(300, 300, 400, 0)


def spend(seed: int = 1, rows: int = 5000) -> Any:
    return np.random.default_rng(seed).gamma(2, 20, rows)


def of_spend(values: Any) -> Distribution:
    return of_values(values, EDGES)


def nulls_in(values: Any, share: float) -> Any:
    return np.where(np.arange(len(values)) % 100 < 100 * share, np.nan, values)


def told_of(bins: Bins, current: Distribution, reference: Distribution, **options: Any) -> tuple[str, str]:
    found = fault_of(bins, current, reference, **options)
    return found.kind, found.told


def of_numbers(values: Any) -> tuple[str, str]:
    return told_of(SPEND, of_spend(values), of_spend(spend()))


# --- Nulls


def test_a_column_of_nulls_is_stuck_at_null() -> None:
    assert of_numbers(nulls_in(spend(2), 0.99)) == ("stuck at null", "99% of the rows are null, 0% were")
    nothing = counted(0, 0, 0, 0, nulls=1000)
    assert told_of(COLOUR, nothing, COLOURS) == ("stuck at null", "100% of the rows are null, 0% were")
    empty = Distribution(rows=500, nulls=500, counts=(0,) * SPEND.count)
    assert told_of(SPEND, empty, of_spend(spend()))[0] == "stuck at null", "though it has no moments"


def test_more_nulls_are_told_with_how_many_there_were() -> None:
    before = of_spend(nulls_in(spend(), 0.1))
    assert told_of(SPEND, of_spend(nulls_in(spend(2), 0.35)), before) == (
        "more nulls",
        "35% of the rows are null, 10% were",
    )


def test_what_became_of_the_values_says_more_than_that_some_are_missing_too() -> None:
    found = told_of(SPEND, of_spend(nulls_in(spend(2), 0.2) * 100), of_spend(nulls_in(spend(), 0.1)))
    assert found == ("unit change", "all values are 102 times what they were (dollars to cents?)")


def test_fewer_nulls_are_no_fault() -> None:
    assert told_of(SPEND, of_spend(spend(2)), of_spend(nulls_in(spend(), 0.3)))[0] == "shift"


# --- Numbers


def test_a_number_that_is_the_same_for_everybody_is_stuck() -> None:
    assert of_numbers(np.full(1000, 1234.5)) == ("stuck at a value", "all rows are 1,234")
    always = np.full(1000, 7.0)
    assert told_of(SPEND, of_spend(always + 1), of_spend(always))[0] == "shift", "it always was"


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (100, "all values are 100 times what they were (dollars to cents?)"),
        (1 / 100, "all values are 1/100 of what they were (cents to dollars?)"),
        (1000, "all values are 1e+03 times what they were (a thousandth of the unit?)"),
        (1 / 1000, "all values are 1/1e+03 of what they were (a unit 1000 times as large?)"),
        (1 / 60, "all values are 1/60 of what they were (seconds to minutes?)"),
        (4, "all values are 4 times what they were"),
        (1 / 5, "all values are 1/5 of what they were"),
    ],
)
def test_other_units_are_told_by_their_factor_and_by_name_where_they_have_one(factor: float, told: str) -> None:
    assert of_numbers(spend() * factor) == ("unit change", told)


def test_a_unit_change_is_seen_through_zeros_nulls_and_signs() -> None:
    values = spend() * np.where(np.arange(5000) % 2, -1, 1)
    values[::5] = 0
    before = of_spend(nulls_in(values, 0.1))
    assert told_of(SPEND, of_spend(nulls_in(values * 100, 0.1)), before)[0] == "unit change"


@pytest.mark.parametrize("factor", [1.1, 1.3, 0.8, 1.8])
def test_growth_is_no_unit_change(factor: float) -> None:
    kind, told = of_numbers(spend() * factor)
    assert kind == "shift"
    assert told.startswith("the mean went from 39.") and told.endswith(" σ)")


def test_a_heavier_tail_is_no_unit_change() -> None:
    values = np.where(np.random.default_rng(5).random(5000) < 0.2, spend(2) * 50, spend(2))
    assert of_numbers(values)[0] == "shift"


def test_an_offset_is_no_unit_change() -> None:
    assert of_numbers(spend() + 1000)[0] == "shift"


def test_a_mean_that_moves_far_from_one_date_to_the_next_has_jumped() -> None:
    assert told_of(SPEND, of_spend(spend() + 1000), of_spend(spend()), before=of_spend(spend(3)))[0] == "jump"


def test_a_sudden_change_is_told_beside_the_date_before_it() -> None:
    before = of_spend(spend(3) * 1.5)
    assert told_of(SPEND, of_spend(spend(3) * 150), of_spend(spend()), before=before) == (
        "unit change",
        "all values are 100 times what they were (dollars to cents?)",
    )


# --- Categories


def test_a_renamed_value_is_told_with_both_names() -> None:
    now = counted(300, 20, 400, 280, new=("lime",))
    assert told_of(COLOUR, now, COLOURS) == (
        "renamed",
        "'green' is gone, which 30% of the rows had, and 'lime' has come with 28%",
    )


def test_values_that_training_has_not_seen_are_named() -> None:
    now = counted(250, 250, 330, 170, new=("mauve", "puce"))
    assert told_of(COLOUR, now, COLOURS) == (
        "new values",
        "17% of the rows have values that training has not seen: 'mauve', 'puce'",
    )


def test_a_category_that_is_the_same_for_everybody_is_stuck() -> None:
    assert told_of(COLOUR, counted(5, 990, 5, 0), COLOURS) == (
        "stuck at a value",
        "99% of the rows are 'green', 30% were",
    )


def test_a_category_that_has_always_been_nearly_the_same_is_not_stuck() -> None:
    assert told_of(COLOUR, counted(0, 1000, 0, 0), counted(30, 970, 0, 0))[0] == "shift"


def test_values_that_move_between_known_categories_are_a_shift() -> None:
    assert told_of(COLOUR, counted(450, 200, 350, 0), COLOURS) == ("shift", "'blue' went from 30% to 45% of the rows")


def test_a_boolean_is_stuck_or_moves() -> None:
    before = counted(600, 400, 0)
    assert told_of(MEMBER, counted(1000, 0, 0), before) == (
        "stuck at a value",
        "100% of the rows are 'false', 60% were",
    )
    assert told_of(MEMBER, counted(300, 700, 0), before)[0] == "shift"
    assert told_of(MEMBER, counted(600, 0, 0, nulls=400), before)[0] == "more nulls"


def test_a_column_that_never_had_a_value_has_nothing_to_compare() -> None:
    nothing = Distribution(rows=1000, nulls=1000, counts=(0,) * SPEND.count)
    assert told_of(SPEND, of_spend(spend()), nothing) == ("shift", "no values to compare")


# --- Where in the customers


def in_parts(**parts: tuple[Distribution, Distribution]) -> list[InSegment]:
    return [
        InSegment(column="town", value=name, rows=now.rows, comparison=compare(now, before))
        for name, (now, before) in parts.items()
    ]


def test_a_change_of_a_part_of_the_customers_is_told_as_that() -> None:
    still, moved, was = of_spend(spend(2, 3000)), of_spend(spend(3, 1000) * 1.4), of_spend(spend())
    now = of_spend(np.concatenate([spend(2, 3000), spend(3, 1000) * 1.6]))
    found = told_of(SPEND, now, was, segments=in_parts(Bern=(still, was), Basel=(moved, was)))
    assert found[0] == "part of the customers"
    assert found[1].startswith("the mean went from 39.") and found[1].endswith(", only where town is 'Basel'")


def test_a_change_of_all_customers_is_a_shift_whatever_the_parts() -> None:
    was, moved = of_spend(spend()), of_spend(spend(3) * 1.4)
    assert told_of(SPEND, moved, was, segments=in_parts(Bern=(moved, was), Basel=(moved, was)))[0] == "shift"


def test_more_customers_of_a_part_are_another_mix() -> None:
    rich, poor = of_spend(spend(2) * 5), of_spend(spend(3))
    now, was = (of_spend(np.concatenate([spend(2, rows) * 5, spend(3, 1000)])) for rows in (3000, 1000))
    kind, told = told_of(SPEND, now, was, segments=in_parts(Bern=(rich, rich), Basel=(poor, poor)))
    assert kind == "mix"
    assert told.endswith("but not within each town: their shares have moved")


def test_every_column_makes_parts_of_its_own() -> None:
    was, now = of_spend(spend()), of_spend(np.concatenate([spend(2, 3000), spend(3, 1000) * 1.6]))
    still, moved = of_spend(spend(2, 3000)), of_spend(spend(3, 1000) * 1.6)
    half = of_spend(np.concatenate([spend(2, 1500), spend(3, 500) * 1.6]))
    by_age = [
        InSegment(column="age", value=value, rows=half.rows, comparison=compare(half, was))
        for value in ("old", "young")
    ]
    by_town = in_parts(Bern=(still, was), Basel=(moved, was))
    for segments in (by_town + by_age, by_age + by_town):
        kind, told = told_of(SPEND, now, was, segments=segments)
        assert (kind, told.endswith(", only where town is 'Basel'")) == ("part of the customers", True)


def test_one_part_alone_tells_nothing() -> None:
    was, moved = of_spend(spend()), of_spend(spend(3) * 1.4)
    assert told_of(SPEND, moved, was, segments=in_parts(Bern=(moved, was)))[0] == "shift"


@pytest.mark.parametrize(
    "kind",
    [
        "stuck at null",
        "more nulls",
        "stuck at a value",
        "unit change",
        "renamed",
        "new values",
        "part of the customers",
        *MOVES,
    ],
)
def test_only_what_the_season_and_the_business_do_is_no_breakage(kind: Any) -> None:
    assert Fault(kind, "").is_breakage == (kind not in ("shift", "mix", "calendar"))


# --- One as-of date after the other

FIRST = date(2024, 1, 1)


def week(number: int) -> date:
    return FIRST + timedelta(weeks=number)


def followed(bins: Bins, trained: list[Distribution], scored: list[Distribution], **alerts: Any) -> list[Column]:
    """The column at each date that is scored after those that were trained on."""
    reference = reference_of([bins], {bins.name: {week(place): one for place, one in enumerate(trained)}})
    states: dict[str, State] = {}
    return [
        column
        for place, one in enumerate(scored, start=len(trained))
        for column in compare_date(reference, states, week(place), {bins.name: one}, {}, Alerts(**alerts))
    ]


def steady(weeks: int) -> list[Distribution]:
    return [of_spend(spend(seed)) for seed in range(10, 10 + weeks)]


def test_a_column_has_drifted_since_the_first_date_of_it_and_is_in_order_again_when_it_is_back() -> None:
    broken = [of_spend(spend(seed) * 100) for seed in (30, 31)]
    found = followed(SPEND, steady(8), [*steady(2), *broken, *steady(2), *broken[:1]])
    assert [column.since for column in found] == [None, None, week(10), week(10), None, None, week(14)]
    assert [column.is_drifted for column in found] == [column.since is not None for column in found]
    assert [column.fault.kind for column in found if column.fault] == ["unit change"] * 3


def test_a_date_is_compared_with_the_newest_before_it_on_which_the_column_was_in_order() -> None:
    broken = [of_spend(spend(seed) * 100) for seed in (30, 31)]
    found = followed(SPEND, steady(8), [*steady(2), *broken, *steady(1)])
    beside = [{one.against: one.day for one in column.beside} for column in found]
    assert beside[0] == {"training": None}, "of the first there is none before"
    assert [days["previous"] for days in beside[1:]] == [week(8), week(9), week(9), week(9)]


def test_a_sudden_change_that_training_has_seen_from_date_to_date_is_none() -> None:
    by_turns = [of_spend(spend(seed) * (1.5 if seed % 2 else 1)) for seed in range(20)]
    assert not any(column.is_drifted for column in followed(SPEND, by_turns[:12], by_turns[12:]))
    assert any(column.is_drifted for column in followed(SPEND, by_turns[:12:2], by_turns[12:]))


def test_a_move_is_told_beside_what_it_is_furthest_from() -> None:
    usual = [of_spend(spend(seed)) for seed in range(10, 18)]
    high, low = of_spend(spend(30) * 1.05), of_spend(spend(31) * 0.85)
    (_, sudden) = followed(SPEND, usual, [high, low], effect=0.03)
    beside = {one.against: one.comparison.effect for one in sudden.beside}
    assert beside["previous"] > beside["training"]
    assert sudden.fault is not None
    assert sudden.fault.told.startswith(f"the mean went from {high.mean:,.4g} to {low.mean:,.4g} (")
    assert sudden.fault.told.endswith(f" since {week(8)}")
    (gone,) = followed(SPEND, usual, [low], effect=0.03)
    assert gone.fault is not None and "since" not in gone.fault.told


def test_a_broken_date_in_training_hides_no_fault() -> None:
    trained = steady(8)
    trained[3] = of_spend(spend(3) * 100)
    found = followed(SPEND, trained, [*steady(1), of_spend(spend(30) * 100)])
    assert [column.is_drifted for column in found] == [False, True]
    assert found[1].fault is not None and found[1].fault.kind == "unit change"


def test_what_rises_with_the_calendar_has_not_drifted_and_its_fault_says_so() -> None:
    rising = [of_values(np.random.default_rng(place).normal(place, 2, 2000), (2.0, 4.0, 6.0)) for place in range(16)]
    bins = Bins(name="age", type="number", edges=(2.0, 4.0, 6.0))
    found = followed(bins, rising[:8], [*rising[8:], rising[8]])
    assert [column.is_drifted for column in found] == [False] * 8 + [True]
    assert found[7].effect > 0.2
    assert found[7].fault is not None and found[7].fault.kind == "calendar"
    assert re.fullmatch(r"the mean goes on as in training, by \+(1|0\.99\d|1\.0\d) a week", found[7].fault.told)
    assert found[8].fault is not None and found[8].fault.kind != "calendar", "it has jumped back"


def test_too_few_rows_tell_no_drift() -> None:
    few = of_spend(spend(30, 150) * 100)
    assert [column.is_drifted for column in followed(SPEND, steady(8), [few])] == [False]
    assert [column.is_drifted for column in followed(SPEND, steady(8), [few], rows=100)] == [True]


def test_an_effect_below_what_the_owner_minds_is_no_drift() -> None:
    some = of_spend(spend(30) * 1.25)
    (found,) = followed(SPEND, steady(8), [some])
    assert found.is_drifted and 0.05 < found.effect < 0.2
    assert not followed(SPEND, steady(8), [some], effect=0.2)[0].is_drifted


def test_a_column_without_reference_or_values_at_the_date_is_left_out() -> None:
    other = Bins(name="other", type="number")
    reference = reference_of([SPEND, other], {"spend": {FIRST: of_spend(spend())}})
    assert list(reference.bins) == ["spend"]
    assert compare_date(reference, {}, week(1), {}, {}, Alerts()) == []


def test_held_out_dates_are_what_is_compared_with_and_training_tells_what_is_usual() -> None:
    trained = {week(place): counted(900 - 50 * (place % 2), 100 + 50 * (place % 2)) for place in range(6)}
    held_out = {week(6): counted(600, 400)}
    bins = Bins(name="the score", type="number", edges=(0.5,))
    reference = reference_of([bins], {"the score": trained}, {}, {"the score": held_out})
    assert reference.whole["the score"] == held_out[week(6)]
    assert reference.usual["the score"].distance == pytest.approx(0.025)


@pytest.mark.parametrize(("kind", "values"), [("category", ("a", "b")), ("boolean", ("false", "true"))])
def test_parts_are_compared_with_the_same_part_of_training(kind: ColumnType, values: tuple[str, ...]) -> None:
    bins = Bins(name="c", type=kind, categories=values)
    whole, moved = counted(500, 500, 0), counted(200, 800, 0)
    reference = reference_of([bins], {"c": {FIRST: whole}}, {("c", "town", "Bern"): whole})
    parts = {"c": {("town", "Bern"): moved, ("town", "never trained on"): moved}}
    (column,) = compare_date(reference, {}, week(1), {"c": moved}, parts, Alerts())
    (segment,) = column.segments
    assert (segment.segment_column, segment.segment, segment.comparison.distance) == (
        "town",
        "Bern",
        pytest.approx(0.3),
    )
