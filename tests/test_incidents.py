"""What has drifted is put together by its cause, and told once for as long as it lasts."""

from datetime import date, timedelta
from typing import Any

import pytest

from ml.alerts import Alerts
from reports.faults import Fault, Kind
from reports.incidents import Drifted, Incident, Lost, alerts_of, incidents_of, told

DAY = date(2024, 5, 6)
MADE_OF = {
    "spend": ["raw.visits.spend", "raw.visits.at"],
    "baskets": ["raw.visits.at"],
    "average": ["raw.visits.spend"],
    "age": ["raw.people.born_on"],
    "town": ["raw.people.town"],
    "rate": ["raw.rates.rate"],
}
IMPORTANCE = dict.fromkeys(MADE_OF, 0.1)


def drifted(column: str, kind: Kind = "shift", effect: float = 0.2, importance: float = 0.1, weeks: int = 1) -> Drifted:
    """A column that has drifted for some weeks before the day."""
    return Drifted(
        column=column,
        effect=effect,
        importance=importance,
        began=DAY - timedelta(weeks=weeks),
        fault=Fault(kind, f"{column} is odd"),
        roots=tuple(MADE_OF.get(column, ())),
    )


def grouped(
    *columns: Drifted, lost: dict[str, Lost] | None = None, said: Any = ()
) -> list[tuple[str, str | None, list[str]]]:
    found = incidents_of(columns, MADE_OF, lost or {}, IMPORTANCE, said)
    return [(one.kind, one.cause, [column.column for column in one.columns]) for one in found]


def test_without_drift_there_is_no_incident() -> None:
    assert incidents_of([], MADE_OF, {}, IMPORTANCE) == []


def test_columns_of_a_lost_table_are_one_incident_with_the_evidence() -> None:
    columns = [drifted("spend", "more nulls"), drifted("baskets"), drifted("age", "more nulls", weeks=2)]
    found = incidents_of(columns, MADE_OF, {"raw.visits": Lost(DAY, "its newest at is old")}, IMPORTANCE)
    assert [(one.kind, one.cause, one.evidence) for one in found] == [
        ("lost source", "raw.visits", "its newest at is old"),
        ("more nulls", "raw.people.born_on", ""),
    ]
    assert [one.column for one in found[0].columns] == ["baskets", "spend", "average"], "all that is made from it"
    assert found[0].columns[-1].fault.told == "has not drifted yet"
    assert found[0].is_breakage and found[0].impact == pytest.approx(0.3), "of stale features all of the importance"


def test_columns_of_one_table_that_broke_alike_on_one_date_are_one_incident() -> None:
    columns = [drifted("age", "stuck at null"), drifted("town", "stuck at null"), drifted("rate", "stuck at null")]
    assert grouped(*columns) == [
        ("stuck at null", "raw.people", ["age", "town"]),
        ("stuck at null", "raw.rates.rate", ["rate"]),
    ]
    apart = [drifted("age", "stuck at null"), drifted("town", "stuck at null", weeks=3)]
    assert [cause for _, cause, _ in grouped(*apart)] == ["raw.people.born_on", "raw.people.town"]


def test_broken_columns_are_put_together_by_the_raw_column_that_made_most_of_them_and_least_else() -> None:
    assert grouped(drifted("average", "unit change"), drifted("spend", "unit change", importance=0.3)) == [
        ("unit change", "raw.visits.spend", ["spend", "average"])
    ]
    assert grouped(drifted("spend", "unit change"), drifted("baskets", "stuck at a value", effect=0.1)) == [
        ("unit change", "raw.visits.at", ["spend", "baskets"])
    ]


def test_two_causes_are_two_incidents_the_weightiest_first() -> None:
    assert grouped(drifted("average", "unit change"), drifted("town", "renamed", effect=0.5)) == [
        ("renamed", "raw.people.town", ["town"]),
        ("unit change", "raw.visits.spend", ["average"]),
    ]


def test_what_moved_since_the_date_that_its_raw_column_broke_goes_with_it_and_else_does_not() -> None:
    assert grouped(drifted("average", "unit change", weeks=3), drifted("spend", weeks=1)) == [
        ("unit change", "raw.visits.spend", ["average", "spend"])
    ]
    assert grouped(drifted("average", "unit change"), drifted("spend")) == [
        ("unit change", "raw.visits.spend", ["average", "spend"])
    ]
    assert grouped(drifted("average", "unit change"), drifted("spend", weeks=5)) == [
        ("unit change", "raw.visits.spend", ["average"]),
        ("shift", None, ["spend"]),
    ]


def test_all_that_merely_moved_is_one_incident_after_the_breakages_however_weighty() -> None:
    assert grouped(
        drifted("age", effect=0.9), drifted("baskets", "mix", weeks=4), drifted("average", "stuck at null", effect=0.06)
    ) == [("stuck at null", "raw.visits.spend", ["average"]), ("shift", None, ["age", "baskets"])]
    assert grouped(drifted("age", "mix"), drifted("town", "mix"))[0][0] == "mix"


def test_a_broken_column_of_unknown_making_is_an_incident_of_its_own() -> None:
    assert grouped(drifted("unknown", "stuck at null"), drifted("average", "unit change", effect=0.5)) == [
        ("unit change", "raw.visits.spend", ["average"]),
        ("stuck at null", None, ["unknown"]),
    ]


def test_columns_that_no_raw_column_has_in_common_are_put_together_by_their_table_and_date() -> None:
    made_of = {f"spend {place}": ["raw.visits.at", "raw.visits.spend"] for place in range(20)} | {"town": ["raw.p.t"]}

    def one(column: str, kind: Kind, weeks: int = 1) -> Drifted:
        return Drifted(
            column=column,
            effect=0.2,
            importance=0.1,
            began=DAY - timedelta(weeks=weeks),
            fault=Fault(kind, ""),
            roots=tuple(made_of[column]),
        )

    columns = [one("spend 0", "unit change"), one("spend 1", "jump"), one("spend 2", "shift"), one("town", "shift")]
    found = incidents_of([*columns, one("spend 3", "jump", weeks=4), one("spend 4", "shift", weeks=4)], made_of, {}, {})
    assert [(one.kind, one.cause, [column.column for column in one.columns]) for one in found] == [
        ("unit change", "raw.visits", ["spend 0", "spend 1", "spend 2"]),
        ("jump", "raw.visits", ["spend 3", "spend 4"]),
        ("shift", None, ["town"]),
    ]
    alone = incidents_of([one("spend 0", "jump")], made_of, {}, {})
    assert [(one.kind, one.cause) for one in alone] == [("jump", None)]


def test_a_raw_column_that_made_much_else_is_no_cause() -> None:
    made_of = {f"feature {place}": ["raw.visits.at"] for place in range(9)}
    column = Drifted(
        column="feature 0",
        effect=0.2,
        importance=0.1,
        began=DAY,
        fault=Fault("more nulls", ""),
        roots=("raw.visits.at",),
    )
    (found,) = incidents_of([column], made_of, {}, {})
    assert (found.kind, found.cause) == ("more nulls", None)


def test_the_score_goes_with_the_weightiest_incident_as_its_consequence() -> None:
    said = [drifted("the score", importance=1.0), drifted("the band", importance=1.0)]
    assert grouped(drifted("age", effect=0.9), drifted("average", "unit change"), said=said) == [
        ("unit change", "raw.visits.spend", ["average", "the score", "the band"]),
        ("shift", None, ["age"]),
    ]
    assert grouped(said=said) == [("score", None, ["the band", "the score"])]


# --- What is worth an alert


def alerts(*columns: Drifted, dates: int = 5, said: Any = (), **declared: Any) -> list[Incident]:
    measured = [DAY - timedelta(weeks=place) for place in range(dates)][::-1]
    return alerts_of(columns, said, measured, MADE_OF, {}, IMPORTANCE, Alerts(**declared))


def test_an_alert_takes_so_many_dates_in_a_row() -> None:
    assert alerts(drifted("age", weeks=0)) == []
    assert len(alerts(drifted("age", weeks=1))) == 1
    assert alerts(drifted("age", weeks=1), dates=3) and not alerts(drifted("age", weeks=1), dates=1)
    (found,) = alerts(drifted("age", weeks=2), drifted("town", weeks=1), said=[drifted("the score")])
    assert found.began == DAY - timedelta(weeks=2)


def test_one_date_is_enough_where_the_owner_says_so() -> None:
    measured = [DAY]
    assert len(alerts_of([drifted("age", weeks=0)], [], measured, MADE_OF, {}, IMPORTANCE, Alerts(dates=1))) == 1
    assert alerts_of([drifted("age", weeks=0)], [], measured, MADE_OF, {}, IMPORTANCE, Alerts(dates=3)) == []


def test_a_lost_source_is_worth_an_alert_before_its_features_drift_on_the_second_date() -> None:
    days = [DAY - timedelta(weeks=1), DAY]
    for since, count in ((days[0], 1), (days[1], 0)):
        lost = {"raw.rates": Lost(since, "silent")}
        assert len(alerts_of([], [], days, MADE_OF, lost, IMPORTANCE, Alerts())) == count


def test_an_alert_takes_columns_that_weigh_enough_together() -> None:
    light = [drifted(name, importance=0.01) for name in ("age", "town")]
    (found,) = alerts(*light)
    assert found.impact == pytest.approx(0.004)
    assert alerts(*light[:1]) == []
    assert len(alerts(*light[:1], impact=0.002)) == 1


def test_the_score_alone_is_worth_an_alert() -> None:
    (found,) = alerts(said=[drifted("the score", importance=1.0)])
    assert (found.kind, found.is_breakage) == ("score", False)


@pytest.mark.parametrize("kind", ["stuck at null", "shift"])
def test_a_column_that_weighs_nothing_does_not_hide_that_the_score_has_moved(kind: Kind) -> None:
    said = [drifted("the score", importance=1.0)]
    (found,) = alerts(drifted("age", kind, importance=0.0001), said=said)
    assert (found.kind, found.impact) == ("score", pytest.approx(0.2))
    broken, moved = drifted("age", "stuck at null", importance=0.0001), drifted("rate")
    (found,) = alerts(broken, moved, said=said)
    assert [one.column for one in found.columns] == ["rate", "the score"]


# --- In words


def test_an_incident_is_a_sentence_of_what_since_when_by_which_columns_and_from_where() -> None:
    columns = [drifted("average", "unit change", importance=0.3), drifted("spend")]
    (found,) = incidents_of(columns, MADE_OF, {}, IMPORTANCE)
    assert told(found) == (
        "unit change, since 2024-04-29: average (30.0% of the importance, 20% beyond the usual: average is odd);"
        " spend (10.0% of the importance, 20% beyond the usual: spend is odd); made from raw.visits.spend"
    )
    assert told(found, most=1).endswith("average is odd); 1 more; made from raw.visits.spend")


def test_a_lost_source_is_told_with_its_evidence() -> None:
    (found,) = incidents_of(
        [drifted("rate")], MADE_OF, {"raw.rates": Lost(DAY, "its last load failed: no file")}, IMPORTANCE
    )
    assert told(found).startswith(
        "nothing comes from raw.rates any more (its last load failed: no file), since 2024-04-29: rate ("
    )
    assert "made from" not in told(found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shift", "customers are not as they were"),
        ("mix", "the mix of customers has changed"),
        ("part of the customers", "a part of the customers has moved"),
    ],
)
def test_moves_are_told_in_plain_words(kind: Kind, words: str) -> None:
    (found,) = incidents_of([drifted("age", kind)], MADE_OF, {}, IMPORTANCE)
    assert told(found).startswith(f"{words}, since 2024-04-29: age (")


def test_a_score_that_moved_alone_has_no_importance_to_tell() -> None:
    (found,) = incidents_of([], MADE_OF, {}, IMPORTANCE, [drifted("the score", importance=1.0)])
    assert told(found) == (
        "the scores have moved, though no feature that weighs enough, since 2024-04-29:"
        " the score (20% beyond the usual: the score is odd)"
    )
