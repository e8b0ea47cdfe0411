"""What SQL publishes of each customer is what Python says of them: the JSON, the sentences, percentiles and ranking."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import sentences
from ml.declarations import Feature, Project
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.project import Paths
from orchestration.published_rows import customers, newest_predictions, ranking
from orchestration.publishing import publish
from orchestration.scoring import _make_table
from serving.generations.store import CustomerScore, Generation, PublicationError, Reason, payload
from tests.sample_generations import a_generation
from tests.small_data import a_score, a_warehouse

DAY = date(2024, 5, 6)
AWKWARD = 'the "blue" \\ one\n\tof grün\u2028 🙂 {0} \'s \x01/'
FEATURES = (
    Feature(name="days_away", data_type="INTEGER", description="Days since the last \"visit\"; at 'home', \\ or not."),
    Feature(name='sp"end', data_type="DOUBLE", description=""),
)


@contextmanager
def predictions(kind: Any = "probability") -> Iterator[tuple[duckdb.DuckDBPyConnection, Any]]:
    """An empty table of predictions, of a score that has two features."""
    score = a_score(kind)
    with duckdb.connect(config={"TimeZone": "UTC", "autoinstall_known_extensions": False}) as connection:
        connection.execute(
            f"create schema features;create table features.{score.features} (customer_id varchar, {score.as_of} date)"
        )
        _make_table(connection, score)
        yield connection, score


def said(
    connection: duckdb.DuckDBPyConnection, score: Any, rows: list[CustomerScore]
) -> tuple[Generation, dict[str, bytes]]:
    """The generation, and what SQL makes of these predictions."""
    for row in rows:
        reasons = [
            {"feature": one.feature, "value": one.value, "contribution": one.contribution} for one in row.reasons
        ]
        given: list[Any] = [row.customer_id, DAY, row.value, row.band, reasons]
        if row.probabilities is not None:
            given.append({"key": list(row.probabilities), "value": list(row.probabilities.values())})
        of_kind = "?::map(varchar, double), " if row.probabilities is not None else ""
        connection.execute(
            f"insert into predictions.{score.name} values (?, ?, ?, ?,"
            f" ?::struct(feature varchar, value varchar, contribution double)[], {of_kind}3, ?)",
            [*given, row.scored_at],
        )
    generation = a_generation("g1", score=score.name, as_of_date=DAY, model_version=3, features=FEATURES)
    newest = newest_predictions(connection, score, 3, DAY)
    return generation, dict(customers(connection, score, generation, newest.rows))


def a_row(customer_id: str, value: float, band: str | None = "high", **changes: Any) -> CustomerScore:
    facts: dict[str, Any] = {
        "score": "leaving",
        "customer_id": customer_id,
        "value": value,
        "band": band,
        "reasons": [],
        "as_of_date": DAY,
        "model_version": 3,
        "generation": "g1",
        "scored_at": datetime(2024, 5, 7, 6, 30, tzinfo=UTC),
    }
    return CustomerScore(**facts | changes)


def reasons_of(*told: tuple[str, str | None, float], of_class: str | None = None) -> list[Reason]:
    subjects = {feature.name: sentences.subject(feature.name, feature.description) for feature in FEATURES}
    return [
        Reason(
            feature=name,
            value=value,
            contribution=contribution,
            text=sentences.sentence(subjects.get(name, name), value, contribution, of_class),
        )
        for name, value, contribution in told
    ]


def test_what_is_stored_of_a_customer_is_what_python_would_write() -> None:
    reasons = reasons_of(
        ("days_away", "34", 0.5), ('sp"end', AWKWARD, -1e-7), ("days_away", None, 0.0), (AWKWARD, "", 5e-324)
    )
    rows = [
        a_row("1", 0.25, reasons=reasons),
        a_row("é, 🙂", 0.1 + 0.2, None),
        a_row(AWKWARD, 1 / 3, AWKWARD, scored_at=datetime(2024, 5, 7, 6, 30, 0, 250, tzinfo=UTC)),
        a_row("4", 5e-324),
        a_row("5", 1.7976931348623157e308),
        a_row("6", -0.0),
        a_row("7", 123456789012345680.0),
    ]
    with predictions() as (connection, score):
        _, stored = said(connection, score, rows)
    assert sorted(stored, key=str.encode) == list(stored)
    for row in rows:
        found = msgspec.json.decode(stored[row.customer_id], type=CustomerScore, strict=True)
        assert msgspec.structs.replace(found, percentile=None) == row
        assert found.percentile is not None
        ours, theirs = (msgspec.json.decode(one) for one in (stored[row.customer_id], payload(found)))
        assert ours == theirs, "texts, timestamps and all"
        assert list(ours) == list(theirs), "in the same order"


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=5, deadline=None)
@given(drawn=st.lists(st.tuples(NUMBERS, TEXTS), min_size=20, max_size=20))
def test_any_number_and_any_text_are_read_back_as_they_were(drawn: list[tuple[float, str]]) -> None:
    rows = {
        f"{place:02d}": a_row(
            f"{place:02d}", value, text, reasons=reasons_of(("days_away", text, value), (text, text, 0.5))
        )
        for place, (value, text) in enumerate(drawn)
    }
    with predictions() as (connection, score):
        _, stored = said(connection, score, list(rows.values()))
    found = {key: msgspec.json.decode(one, type=CustomerScore) for key, one in stored.items()}
    assert {key: msgspec.structs.replace(one, percentile=None) for key, one in found.items()} == rows


def test_a_category_is_told_with_all_probabilities_and_for_or_against_its_class() -> None:
    classes = {"soon": 0.5, "it's never": 0.25, "later": 0.25}
    row = a_row(
        "1",
        0.5,
        "it's never",
        probabilities=classes,
        reasons=reasons_of(("days_away", "34", -0.5), of_class="it's never"),
    )
    with predictions("category") as (connection, score):
        _, stored = said(connection, score, [row])
    found = msgspec.json.decode(stored["1"], type=CustomerScore)
    assert msgspec.structs.replace(found, percentile=None) == row
    assert found.reasons[0].text.endswith(": 34, which speaks against it's never.")


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["value", "contribution", "probability"])
def test_a_number_that_is_not_finite_is_not_published(broken: float, place: str) -> None:
    rows = [a_row("1", 0.5, probabilities={"soon": 0.5}), a_row("2", 0.5, probabilities={"soon": 0.5})]
    changes: dict[str, dict[str, Any]] = {
        "value": {"value": broken},
        "contribution": {"reasons": reasons_of(("days_away", "34", 0.5), ("days_away", "34", broken))},
        "probability": {"probabilities": {"soon": 0.5, "never": broken}},
    }
    rows[1] = msgspec.structs.replace(rows[1], **changes[place])
    with (
        predictions("category") as (connection, score),
        pytest.raises(PublicationError, match="leaving: customer '2' has a score that is not a number"),
    ):
        said(connection, score, rows)


def test_a_percentile_is_the_share_that_scores_no_higher_and_quantiles_tell_the_same() -> None:
    values = [0.9, 0.1, 0.5, 0.5, 0.7, 0.1, 0.2]
    with predictions() as (connection, score):
        _, stored = said(connection, score, [a_row(str(place), value) for place, value in enumerate(values)])
        quantiles = newest_predictions(connection, score, 3, DAY).quantiles
    assert set(quantiles) == {""} and len(quantiles[""]) == 101
    for place, value in enumerate(values):
        percentile = msgspec.json.decode(stored[str(place)], type=CustomerScore).percentile
        assert percentile == round(100 * sum(one <= value for one in values) / len(values), 2)
        reached = sum(quantile <= value for quantile in quantiles[""]) - 1
        assert reached == int(percentile), "the last quantile that the value reaches"


def test_a_percentile_of_a_category_is_among_those_of_the_same_class() -> None:
    rows = [("1", 0.9, "soon"), ("2", 0.6, "soon"), ("3", 0.5, "never"), ("4", 0.4, "soon"), ("5", 0.4, "never")]
    with predictions("category") as (connection, score):
        scores = [a_row(key, value, band, probabilities={band: value}) for key, value, band in rows]
        _, stored = said(connection, score, scores)
        newest = newest_predictions(connection, score, 3, DAY)
        ranked = list(ranking(connection, score, ["soon", "never"], newest.rows))
    found = {key: msgspec.json.decode(one, type=CustomerScore).percentile for key, one in stored.items()}
    assert found == {"1": 100, "2": 66.67, "3": 100, "4": 33.33, "5": 50}
    assert set(newest.quantiles) == {"never", "soon"}
    assert (newest.quantiles["never"][0], newest.quantiles["never"][-1]) == (0.4, 0.5)
    assert ranked == ["1", "2", "4", "3", "5"], "class by class, in the order asked for"


def test_customers_are_ranked_by_band_then_value_then_id_and_last_who_has_no_band() -> None:
    rows = [("b", 0.7, "high"), ("a", 0.7, "high"), ("c", 0.05, None), ("d", 0.9, "high"), ("e", 0.3, "low")]
    with predictions() as (connection, score):
        said(connection, score, [a_row(*row) for row in rows])
        newest = newest_predictions(connection, score, 3, DAY)
        assert list(ranking(connection, score, list(score.bands), newest.rows)) == ["d", "a", "b", "e", "c"]
    assert newest.band_counts == {"high": 3, "low": 1}


def test_as_many_generations_are_kept_as_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, where = a_score(), Paths(project=tmp_path, data=tmp_path)
    shop = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(score,))
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, score, "n", rows=10)

        def again(title: str) -> set[str]:
            renamed = msgspec.structs.replace(score, title=title)
            publish(connection, renamed, shop, where)
            return {path.name for path in (where.generations / score.name).glob("2*")}

        scoring.score_dates(connection, score, current_champion(connection, score), where)
        assert [len(again(title)) for title in "abcd"] == [1, 2, 3, 3]
        monkeypatch.setenv("SCOREHOUSE_KEEP_GENERATIONS", "1")
        kept = again("e")
        assert len(kept) == 1
        for wrong in ("0", "-1", "many", "1.5"):
            monkeypatch.setenv("SCOREHOUSE_KEEP_GENERATIONS", wrong)
            with pytest.raises(
                PublicationError, match=f"SCOREHOUSE_KEEP_GENERATIONS is '{wrong}', not a whole number from 1"
            ):
                again("f")
        assert {path.name for path in (where.generations / score.name).glob("2*")} == kept
