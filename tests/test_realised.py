"""What was promised of a version is held against what came of it, and a broken promise names its likely cause."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml import registry
from ml.baseline import Naive, naive_forecast
from ml.declarations import Project, Score
from ml.estimation import estimated_metrics
from ml.evaluation import Evaluation
from ml.gains import Contact
from ml.intervals import intervals
from ml.learning import Retrain
from ml.metrics import METRICS, Kind, evaluate
from ml.realised import Promise, RealisedMetric, overall, realised_metrics
from ml.slices import Slice
from orchestration import promises, realised, versions
from orchestration.estimating import estimate
from orchestration.figures import create_tables
from orchestration.performance import performance_asset, report_performance
from orchestration.performance_tables import ESTIMATED, GAINS, REALISED
from orchestration.performance_tables import create_tables as create_monitored
from orchestration.project import Paths
from orchestration.promises import broken_promise, kept
from orchestration.realised import measure
from orchestration.retraining import decide
from orchestration.training_sets import ScoringError, training_set_file
from orchestration.warehouse import Connection, exists, open_warehouse
from serving.pages.performance import read_performance
from tests.small_data import TRAINED_AT, a_model, a_score

CUSTOMERS = 800
TRAINING_SET = "f" * 64
LAST_HELD_OUT = date(2024, 4, 15)  # of version 3, as small_data trains it
DAY = date(2024, 4, 22)
MATURED = DAY + timedelta(days=14)
SCORE = a_score()


def some_outcomes(seed: int = 1, rows: int = CUSTOMERS) -> tuple[Any, Any]:
    """Scores, and labels that come true as often as they say."""
    random = np.random.default_rng(seed)
    scores = random.beta(0.6, 1.4, rows)
    return scores, (random.random(rows) < scores).astype(float)


def a_promise(kind: Kind = "probability") -> Promise:
    scores, labels = some_outcomes(0, 4 * CUSTOMERS)
    metrics = evaluate(kind, labels, scores)
    found = intervals(kind, labels, scores, np.arange(len(labels)), metrics)
    return Promise(metrics=metrics, intervals=found, rows=4 * CUSTOMERS)


PROMISE = a_promise()


# --- The comparison


def compared(labels: Any, scores: Any, promise: Promise = PROMISE) -> dict[str, RealisedMetric]:
    return {found.metric: found for found in realised_metrics("probability", labels, scores, promise)}


def test_what_differs_by_chance_is_as_promised() -> None:
    apart = 0
    for seed in range(1, 6):
        scores, labels = some_outcomes(seed)
        found = compared(labels, scores)
        assert list(found) == list(METRICS["probability"])
        apart += sum(metric.verdict != "as promised" for metric in found.values())
    assert apart <= 3, "of 30, one in twenty may lie outside"


def test_a_verdict_is_whether_the_figure_lies_within_its_room_and_on_which_side() -> None:
    scores, labels = some_outcomes()
    worse = compared(np.roll(labels, 1), scores)  # who comes true has nothing to do with the score
    better = compared((scores > 0.3).astype(float), scores)
    for found, verdict in ((worse, "worse"), (better, "better")):
        auc = found["roc_auc"]
        assert auc.verdict == verdict
        assert None not in (auc.realised, auc.low, auc.high)
        assert not auc.low <= auc.realised <= auc.high  # type: ignore[operator]
        assert (auc.promised, auc.promised_low) == (PROMISE.metrics["roc_auc"], PROMISE.intervals["roc_auc"][0])


def test_a_calibration_error_that_is_larger_by_few_rows_alone_is_as_promised() -> None:
    scores, labels = some_outcomes(rows=200)
    error = compared(labels, scores)["calibration_error"]
    assert error.realised is not None and error.realised > 2 * PROMISE.metrics["calibration_error"]
    assert error.verdict == "as promised"


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "better"), (3.0, "as promised"), (9.0, "worse"), (-9.0, "worse")])
def test_a_bias_is_the_worse_the_further_it_is_from_zero_on_either_side(shift: float, verdict: str) -> None:
    label = np.random.default_rng(3).normal(100, 20, 4000)
    promise = Promise(metrics={"bias": 3.0}, intervals={"bias": (2.5, 3.5)}, rows=16_000)
    (bias,) = realised_metrics("amount", label, label + shift + np.random.default_rng(4).normal(0, 5, 4000), promise)
    assert bias.verdict == verdict


def test_a_metric_that_has_no_meaning_on_a_date_has_no_verdict() -> None:
    scores, _ = some_outcomes(rows=50)
    found = compared(np.zeros(50), scores)
    assert found["roc_auc"].realised is None and found["roc_auc"].verdict == "not measurable"
    assert found["log_loss"].verdict != "not measurable"


def test_without_a_kept_interval_the_promise_has_the_error_of_as_many_rows() -> None:
    scores, labels = some_outcomes()
    plain = Promise(metrics=PROMISE.metrics, intervals={}, rows=PROMISE.rows)
    with_interval, without = compared(labels, scores)["roc_auc"], compared(labels, scores, plain)["roc_auc"]
    assert without.promised_low is None
    assert without.low == pytest.approx(with_interval.low, abs=0.005)


# --- The measuring


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml.intervals.RESAMPLES", 25)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    sources = {"source.shop.raw.visits": {"schema": "raw", "identifier": "visits"}}
    parents = {SCORE.features_id: ["source.shop.raw.visits"]}
    # What dbt would say of the project, in seconds.
    monkeypatch.setattr(promises, "load_manifest", lambda _: {"sources": sources, "parent_map": parents})
    return Paths(project=tmp_path, data=tmp_path)


@pytest.fixture
def connection(where: Paths) -> Iterator[Connection]:
    with a_warehouse(where) as connection:
        yield connection


@contextmanager
def a_warehouse(where: Paths) -> Iterator[Connection]:
    """Version 3, the champion, whose promise is `PROMISE`, and tables of predictions and labels without a row."""
    with open_warehouse(where.warehouse) as connection:
        versions.create_tables(connection)
        create_tables(connection)
        connection.execute("""
            create schema predictions; create schema labels;
            create table predictions.leaving (
                customer_id bigint, as_of_date date, score double, probabilities map(varchar, double),
                model_version integer
            );
            create table labels.customer_left (customer_id bigint, week date, label varchar, matures_on date)
        """)
        a_version(connection, where, 3)
        _, labels = some_outcomes(0, 4 * CUSTOMERS)
        held_out = {
            "customer_id": [*range(CUSTOMERS)] * 4,
            "week": [LAST_HELD_OUT] * 4 * CUSTOMERS,
            "label": labels,
            "matures_on": [MATURED] * 4 * CUSTOMERS,
        }
        file = training_set_file(where.training_sets, SCORE, TRAINING_SET)
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table(held_out), file)
        yield connection


def a_version(connection: Connection, where: Paths, version: int, promoted: bool = True, **changes: Any) -> None:
    model = a_model()
    told = {"metrics": PROMISE.metrics, "intervals": PROMISE.intervals, "rows": {"train": 240, "holdout": PROMISE.rows}}
    card = registry.Card(**({name: getattr(model.card, name) for name in model.card.__struct_fields__} | told | changes
                            | {"version": version}))  # fmt: skip
    registry.save(where.models / "leaving" / str(version), model.booster, card)
    versions.record_version(connection, card, "engine")
    if promoted:
        versions.record_gate(connection, SCORE, version, [])


def scored(
    connection: Connection, scores: Any, labels: Any, day: date = DAY, version: int = 3, made_from: str = "a"
) -> None:
    """A date that a version has scored, and its labels, which replace those that were there."""
    ids = np.arange(len(labels))
    rows = pa.table({"id": ids, "score": np.asarray(scores), "label": pa.array(labels)})
    connection.register("rows_of_date", rows)
    connection.execute(f"""
        insert into predictions.leaving select id, date '{day}', score, null, {version} from rows_of_date;
        delete from labels.customer_left where week = date '{day}';
        insert into labels.customer_left select id, date '{day}', label, date '{day}' + 14 from rows_of_date;
        insert into ml.scored_dates values ('leaving', {version}, '{day}', {len(ids)}, '{made_from}', now())
    """)
    connection.unregister("rows_of_date")


def measured(connection: Connection, where: Paths, today: date = MATURED, score: Score = SCORE) -> list[Any]:
    return measure(connection, score, today, where)


def champion(connection: Connection) -> dict[str, Any]:
    found = versions.champion(connection, SCORE)
    assert found is not None
    return found


def test_a_date_is_measured_once_all_its_labels_have_matured(connection: Connection, where: Paths) -> None:
    scores, labels = some_outcomes()
    scored(connection, scores, labels)
    connection.execute("update labels.customer_left set matures_on = matures_on + 1 where customer_id = 0")
    assert measured(connection, where, MATURED) == []
    assert measured(connection, where, MATURED + timedelta(days=1)) == [(3, DAY)]
    found = connection.execute(
        "select metric, realised, rows, sampled, promised from monitoring.realised_performance"
    ).fetchall()
    expected = evaluate("probability", labels, scores)
    assert {metric: value for metric, value, *_ in found} == pytest.approx(expected)
    assert {row[2:] for row in found} == {(CUSTOMERS, CUSTOMERS, PROMISE.metrics[row[0]]) for row in found}


def test_held_out_dates_and_those_before_are_no_realised_performance(connection: Connection, where: Paths) -> None:
    scored(connection, *some_outcomes(), day=LAST_HELD_OUT)
    assert measured(connection, where) == []


def test_a_date_is_measured_again_only_when_its_predictions_or_labels_have_changed(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *some_outcomes())
    scored(connection, *some_outcomes(2), day=DAY + timedelta(days=7))
    later = MATURED + timedelta(days=7)
    assert len(measured(connection, where, later)) == 2
    assert measured(connection, where, later) == []
    connection.execute(f"update labels.customer_left set label = '0' where customer_id = 1 and week = '{DAY}'")
    assert measured(connection, where, later) == [(3, DAY)]
    connection.execute(f"update ml.scored_dates set made_from = 'b' where as_of_date = '{DAY}'")
    assert measured(connection, where, later) == [(3, DAY)]
    assert connection.execute("select count(*) from monitoring.realised_performance").fetchall() == [(12,)]


def test_what_is_withdrawn_of_the_predictions_is_withdrawn_of_what_was_realised(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *some_outcomes())
    measured(connection, where)
    connection.execute("delete from ml.scored_dates")
    measured(connection, where)
    assert connection.execute("select count(*) from monitoring.realised_performance").fetchall() == [(0,)]


def test_every_version_with_predictions_is_measured_beside_the_one_that_served(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *some_outcomes())
    a_version(connection, where, 4, promoted=False)  # a challenger
    scored(connection, *some_outcomes(), version=4)
    assert measured(connection, where) == [(3, DAY), (4, DAY)]
    served = "select distinct model_version, served_version from monitoring.realised_performance order by 1"
    assert connection.execute(served).fetchall() == [(3, 3), (4, 3)]


def test_of_very_many_rows_a_sample_is_measured_which_is_always_the_same(
    connection: Connection, where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realised, "SAMPLED", 300)
    scored(connection, *some_outcomes())
    measured(connection, where)
    first = connection.execute(
        "select metric, realised, rows, sampled from monitoring.realised_performance order by 1"
    ).fetchall()
    assert {row[2:] for row in first} == {(CUSTOMERS, 300)}
    connection.execute("delete from monitoring.realised_performance")
    measured(connection, where)
    assert (
        connection.execute(
            "select metric, realised, rows, sampled from monitoring.realised_performance order by 1"
        ).fetchall()
        == first
    )


def test_a_category_is_measured_by_the_probabilities_of_its_classes(connection: Connection, where: Paths) -> None:
    random = np.random.default_rng(5)
    probabilities = random.dirichlet([1, 1, 1], 400)
    places = np.array([random.choice(3, p=row) for row in probabilities])
    promise = evaluate("category", places, probabilities)
    a_version(connection, where, 5, kind="category", classes=("b", "a", "c"), metrics=promise, intervals={})
    scored(connection, probabilities.max(axis=1), np.array(["b", "a", "c"])[places], version=5)
    for place, name in enumerate(("b", "a", "c")):
        connection.register("p", pa.table({"id": np.arange(400), "p": probabilities[:, place]}))
        connection.execute(f"""
            update predictions.leaving
            set probabilities = map_concat(coalesce(probabilities, map {{}}), map {{'{name}': p}})
            from p where id = customer_id and model_version = 5
        """)
    assert measured(connection, where, score=a_score("category", bands={})) == [(5, DAY)]
    found = dict(connection.execute("select metric, realised from monitoring.realised_performance").fetchall())
    assert found == pytest.approx(promise)


# --- Beside it: the naive forecast, slices, estimates, gains


def features(connection: Connection, scores: Any) -> None:
    """What was known of the customers at `DAY`: `days_away` tells who leaves, as the score does, with some noise."""
    away = np.round(60 * np.clip(scores + np.random.default_rng(6).normal(0, 0.2, len(scores)), 0, 1)).astype(int)
    known = {
        "customer_id": np.arange(len(scores)),
        "week": [DAY] * len(scores),
        "days_away": [None if number % 9 == 0 else int(days) for number, days in enumerate(away)],
        "colour": [("blue", "green", "red", None)[number % 4] for number in range(len(scores))],
        "zone": [number % 2 for number in range(len(scores))],
    }
    connection.register("known", pa.table(known))
    connection.execute("create schema features; create table features.customer_features as from known")


HELD_OUT = Evaluation(
    bins={},
    gains={"score": tuple(place / 20 for place in range(1, 21))},
    slices=(
        Slice(column="colour", value="blue", rows=400, metrics={"roc_auc": 0.75}, baseline={"roc_auc": 0.7}),
        Slice(column="week", value=str(LAST_HELD_OUT), rows=400, metrics={"roc_auc": 0.75}),
    ),
)
NAIVE = Naive(
    kind="probability", told="days_away alone", base=(0.3,), feature="days_away", values=(0.0, 60.0),
    says=((0.0,), (1.0,)), of_null=(0.3,),
)  # fmt: skip


def test_the_naive_forecast_is_applied_to_the_very_date_beside_what_it_was_on_the_held_out_rows(
    connection: Connection, where: Paths
) -> None:
    a_version(connection, where, 4, naive=NAIVE, baseline={"roc_auc": 0.71})
    scores, labels = some_outcomes()
    features(connection, scores)
    scored(connection, scores, labels, version=4)
    connection.execute("alter table features.customer_features rename days_away to days_gone")
    measured(connection, where)
    query = (
        f"select baseline_realised, baseline_promised from {REALISED} where metric = 'roc_auc' and slice_column is null"
    )
    assert connection.execute(f"{query} and model_version = 4").fetchall() == [(None, 0.71)], "its column is gone"
    connection.execute(f"alter table features.customer_features rename days_gone to days_away; delete from {REALISED}")
    measured(connection, where)
    away = connection.execute("select days_away from features.customer_features order by customer_id").fetchnumpy()
    values = away["days_away"].astype(float).filled(np.nan)
    expected = evaluate("probability", labels, naive_forecast(NAIVE, values))["roc_auc"]
    assert connection.execute(query).fetchall() == [(pytest.approx(expected), 0.71)]


def test_a_version_of_before_naive_forecasts_were_kept_has_none_beside_it(connection: Connection, where: Paths) -> None:
    a_version(connection, where, 4, naive=None)
    scores, labels = some_outcomes()
    features(connection, scores)
    scored(connection, scores, labels, version=4)
    measured(connection, where)
    query = f"select distinct baseline_realised from {REALISED}"
    assert connection.execute(query).fetchall() == [(None,)]


def test_slices_of_the_card_and_of_the_gate_are_measured_and_never_break_the_promise(
    connection: Connection, where: Paths
) -> None:
    score = a_score(gate=("min_by('zone', roc_auc) >= 0.5",))
    a_version(connection, where, 4, evaluation=HELD_OUT, naive=NAIVE)
    scores, labels = some_outcomes()
    features(connection, scores)
    is_blue = np.arange(CUSTOMERS) % 4 == 0
    labels[is_blue] = np.roll(labels[is_blue], 1)  # of whom the score can't tell any more who leaves
    scored(connection, scores, labels, version=4)
    measured(connection, where, score=score)
    rows = connection.execute(f"""
        select slice_column, slice_value, realised, promised, baseline_promised, verdict, rows
        from {REALISED} where metric = 'roc_auc' and slice_column is not null order by 1, 2
    """).fetchall()
    assert [(column, value, rows) for column, value, *_, rows in rows] == [
        ("colour", "blue", 200), ("colour", "green", 200), ("colour", "red", 200), ("colour", "unknown", 200),
        ("zone", "0", 400), ("zone", "1", 400),
    ]  # fmt: skip
    blue, green = rows[0], rows[1]
    assert blue[2] == pytest.approx(evaluate("probability", labels[is_blue], scores[is_blue])["roc_auc"])
    assert blue[3:6] == (0.75, 0.7, "worse")
    assert green[3:6] == (None, None, "not measurable"), "nothing was promised of it"
    found = report_performance(connection, score, MATURED, where)["performance"]
    assert {one.column for one in found.slices} == {"colour", "zone"}
    assert found.verdict == overall(found.dates[-1].metrics)
    assert len(found.dates[-1].metrics) == len(METRICS["probability"])


def test_a_date_whose_features_are_gone_has_neither_slices_nor_a_naive_forecast(
    connection: Connection, where: Paths
) -> None:
    a_version(connection, where, 4, evaluation=HELD_OUT, naive=NAIVE)
    scores, labels = some_outcomes()
    features(connection, scores)
    connection.execute("delete from features.customer_features")
    scored(connection, scores, labels, version=4)
    assert measured(connection, where) == [(4, DAY)]
    query = f"select distinct slice_column, baseline_realised from {REALISED}"
    assert connection.execute(query).fetchall() == [(None, None)]


def test_a_date_is_estimated_once_and_again_only_when_its_predictions_have_changed(
    connection: Connection, where: Paths
) -> None:
    scores, labels = some_outcomes()
    scored(connection, scores, labels)
    scored(connection, scores, labels, day=LAST_HELD_OUT)  # of which the promise is
    create_monitored(connection)
    assert estimate(connection, SCORE, where) == [(3, DAY)]
    assert estimate(connection, SCORE, where) == []
    found = connection.execute(f"select metric, estimated, low, high, rows from {ESTIMATED}").fetchall()
    expected = [(one.metric, one.estimated, one.low, one.high) for one in estimated_metrics("probability", scores)]
    assert [row[:4] for row in found] == [(name, *map(pytest.approx, figures)) for name, *figures in expected]
    assert {row[4] for row in found} == {CUSTOMERS}
    connection.execute(f"update ml.scored_dates set made_from = 'b' where as_of_date = '{DAY}'")
    assert estimate(connection, SCORE, where) == [(3, DAY)]
    connection.execute("delete from ml.scored_dates")
    estimate(connection, SCORE, where)
    assert connection.execute(f"select count(*) from {ESTIMATED}").fetchall() == [(0,)]


def test_of_a_category_the_estimate_is_by_the_probabilities_of_its_classes(
    connection: Connection, where: Paths
) -> None:
    a_version(connection, where, 5, kind="category", classes=("b", "a"), metrics={}, intervals={})
    scored(connection, np.full(100, 0.8), np.array(["b"] * 100), version=5)
    connection.execute("update predictions.leaving set probabilities = map {'a': 0.2, 'b': 0.8}")
    create_monitored(connection)
    assert estimate(connection, a_score("category", bands={}), where) == [(5, DAY)]
    query = f"select estimated from {ESTIMATED} where metric = 'accuracy'"
    assert connection.execute(query).fetchall() == [(pytest.approx(0.8),)]


def test_once_a_date_has_matured_its_estimate_stands_beside_it_and_is_judged(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *some_outcomes())
    scored(connection, *some_outcomes(2), day=DAY + timedelta(days=7))
    measured(connection, where)
    found = report_performance(connection, SCORE, MATURED, where)["performance"]
    (date_,) = found.dates
    assert [one.as_of_date for one in found.estimates] == [DAY + timedelta(days=7)], "what has matured is no estimate"
    assert {one.metric for one in date_.metrics if one.estimated is None} == {"calibration_error"}
    auc = date_.metrics[0]
    (judged, *_) = found.of_estimates
    assert (judged.metric, judged.dates) == ("roc_auc", 1)
    assert judged.of_estimate == pytest.approx(abs(auc.estimated - auc.realised))
    assert judged.of_promise == pytest.approx(abs(auc.promised - auc.realised))


def test_what_the_highest_scores_held_is_kept_and_valued_by_what_is_declared_now(
    connection: Connection, where: Paths
) -> None:
    scores, labels = some_outcomes()
    scored(connection, scores, labels)
    measured(connection, where)
    query = f"select share, customers, held, lift, value_per_contact, value_total from {GAINS} order by share"
    rows = connection.execute(query).fetchall()
    highest = labels[np.argsort(-scores)][: CUSTOMERS // 10]
    assert [row[0] for row in rows] == pytest.approx(np.arange(1, 21) / 20)
    assert rows[1] == (0.1, 80, pytest.approx(highest.sum() / labels.sum(), abs=1e-5),
                       pytest.approx(highest.mean() / labels.mean(), abs=1e-3), None, None)  # fmt: skip
    for contact in (Contact(value=10.0, cost=2.0), Contact(value=4.0, cost=3.5)):
        score = a_score(contact=contact)
        assert measured(connection, where, score=score) == [], "nothing is measured again"
        rows = connection.execute(query).fetchall()
        assert rows[1][4] == pytest.approx(contact.value * highest.mean() - contact.cost, abs=1e-3)
        assert rows[1][5] == pytest.approx(80 * rows[1][4])
    found = report_performance(connection, score, MATURED, where)["performance"]
    assert (found.newest, found.contact, len(found.gains)) == ((DAY, 3), contact, 20)


def test_what_was_realised_in_the_table_of_before_is_carried_over_once(connection: Connection, where: Paths) -> None:
    scored(connection, *some_outcomes())
    measured(connection, where)
    before = connection.execute(f"select metric, realised, made_from from {REALISED}").fetchall()
    connection.execute(f"""
        create table ml.realised as select * exclude (
            slice_column, slice_value, baseline_realised, baseline_promised, estimated
        ) from {REALISED};
        drop table {REALISED}
    """)
    found = realised.realised_dates(connection, SCORE, 1)
    assert [(one.as_of_date, one.model_version, len(one.metrics)) for one in found] == [(DAY, 3, 6)]
    assert connection.execute(f"select metric, realised, made_from from {REALISED}").fetchall() == before
    assert not exists(connection, "ml", "realised")
    assert measured(connection, where) == [], "what has not changed is not measured again"


def test_labels_that_cant_be_measured_are_told_by_version_and_date(connection: Connection, where: Paths) -> None:
    scores, labels = some_outcomes()
    scored(connection, scores, labels + 1)
    with pytest.raises(ScoringError) as raised:
        measured(connection, where)
    assert str(raised.value) == (
        f"score 'leaving': what version 3 said for {DAY} can't be measured by its labels in labels.customer_left:"
        " the label of a probability is 0 or 1"
    )


# --- The promise, and why it is broken


def causes(connection: Connection, where: Paths, score: Score = SCORE) -> dict[str, str]:
    """Cause -> what is told of it, the likeliest first."""
    measured(connection, where, score=score)
    return {cause.name: cause.told for cause in kept(connection, score, champion(connection), where).causes}


def drift_report(where: Paths, *features: str) -> None:
    file = where.reports / "leaving" / str(DAY) / "drift.json"
    file.parent.mkdir(parents=True)
    verdicts = {name: "drifted" if name in features else "stable" for name in a_model().card.importance}
    metrics = {f"column.{name}.verdict": verdict for name, verdict in verdicts.items()}
    file.write_text(json.dumps({"model_version": 3, "metrics": metrics}))


def shuffled() -> tuple[Any, Any]:
    """Scores that no longer tell who it is that leaves."""
    scores, labels = some_outcomes()
    return scores, np.roll(labels, 1)


def test_a_kept_promise_has_no_cause(connection: Connection, where: Paths) -> None:
    scored(connection, *some_outcomes())
    assert causes(connection, where) == {}
    assert broken_promise(connection, SCORE, champion(connection), where) is None


def test_a_broken_promise_starts_a_training_where_that_is_declared(connection: Connection, where: Paths) -> None:
    scored(connection, *shuffled())
    for retrain, starts in ((Retrain(performance=True), True), (Retrain(every_days=1000.0), False)):
        score = msgspec.structs.replace(SCORE, retrain=retrain)
        decision = decide(connection, score, {"training_set": "new"}, "engine", True, DAY + timedelta(days=60), where)
        assert (decision.trigger or "").startswith(f"performance: version 3 at {DAY}, on 800 customers") == starts


def test_before_anything_has_matured_nothing_is_broken(connection: Connection, where: Paths) -> None:
    assert measured(connection, where) == []
    found = kept(connection, SCORE, champion(connection), where)
    assert (found.verdict, found.told) == (
        "nothing matured yet",
        f"no labels have matured yet of what version 3 scored after {LAST_HELD_OUT}",
    )


def test_drifted_features_are_named_where_customers_are_ranked_worse(connection: Connection, where: Paths) -> None:
    importance = a_model().card.importance
    weightiest = max(importance, key=lambda name: importance[name])
    scored(connection, *shuffled())
    drift_report(where, weightiest)
    found = causes(connection, where)
    assert list(found) == ["drift"]
    assert f"had drifted at {DAY}: {weightiest} ({importance[weightiest]:.0f} %)" in found["drift"]
    told = broken_promise(connection, SCORE, champion(connection), where)
    assert told is not None
    assert told.startswith(f"version 3 at {DAY}, on 800 customers: roc_auc 0.")
    assert f"worse than the promised {PROMISE.metrics['roc_auc']:.4f} (chance alone gives 0." in told
    assert f"Likely cause: drift: features with {importance[weightiest] / 100:.0%} of the importance" in told


def test_no_drift_report_of_before_the_dates_that_are_told_is_read(
    connection: Connection, where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(connection, *shuffled())
    measured(connection, where)
    drift_report(where, *a_model().card.importance)
    for old in ("2023-01-02", "2023-01-09"):
        copy = where.reports / "leaving" / old / "drift.json"
        copy.parent.mkdir()
        copy.write_bytes((where.reports / "leaving" / str(DAY) / "drift.json").read_bytes())
    read: list[Path] = []

    def read_json(file: Path) -> Any:
        read.append(file)
        return json.loads(file.read_bytes())

    monkeypatch.setattr(promises, "read_json", read_json)
    found = report_performance(connection, SCORE, MATURED, where)["performance"]
    assert found.dates[-1].drifted and [cause.name for cause in found.causes] == ["drift"]
    assert {file.parent.name for file in read} == {str(DAY)}


def test_a_moved_base_rate_is_told_with_both_rates_and_that_only_the_level_is_off(
    connection: Connection, where: Paths
) -> None:
    scores, labels = some_outcomes()
    labels = np.maximum(labels, np.random.default_rng(9).random(CUSTOMERS) < scores * 0.8)
    scored(connection, scores, labels)
    drift_report(where, *a_model().card.importance)
    found = causes(connection, where)
    assert list(found) == ["base rate", "drift", "calibration"], "the ranking holds, so that the rate comes first"
    before = some_outcomes(0, 4 * CUSTOMERS)[1].mean()
    told = f"the rate of the outcome is {labels.mean():.4f}, and was {before:.4f} on the held-out dates"
    assert found["base rate"] == told
    assert found["calibration"].startswith("only the level is off: roc_auc is 0.")


def test_incidents_of_the_raw_tables_since_the_training_come_first(connection: Connection, where: Paths) -> None:
    scored(connection, *shuffled())
    drift_report(where, *a_model().card.importance)
    batches = [  # when, status, fault, rows, landed, rejected
        (TRAINED_AT - timedelta(days=2), "failed", "of before", None, None, None),
        (TRAINED_AT - timedelta(days=1), "landed", None, 1000, 999, 1),
        (TRAINED_AT + timedelta(days=1), "failed", "visits lacks the columns zip", None, None, None),
        (TRAINED_AT + timedelta(days=2), "landed", None, 100, 80, 20),
    ]
    for batch in batches:
        connection.execute(
            "insert into quality.source_metrics (schema_name, table_name, loaded_at, status, fault, rows, landed,"
            " rejected) values ('raw', 'visits', ?, ?, ?, ?, ?, ?)",
            list(batch),
        )
    found = causes(connection, where)
    assert list(found) == ["data quality", "drift"]
    assert found["data quality"] == (
        "since the training (2024-05-01 06:30) 1 batch of raw.visits failed, the last one: visits lacks the columns"
        " zip; 20 of 100 rows of raw.visits were rejected (20.0%, 0.1% before)"
    )


def test_a_changed_contract_is_told_by_column(connection: Connection, where: Paths) -> None:
    scored(connection, *shuffled())
    changed = tuple(
        registry.Feature(name=column.name, data_type="double" if column.name == "days_away" else column.data_type,
                         description="")
        for column in SCORE.columns if column.name != "colour"
    )  # fmt: skip
    found = causes(connection, where, a_score(columns=changed))
    assert found == {
        "contract": "days_away is double, and was int32 when it was trained; colour is no feature of the score any more"
    }


def test_where_no_rule_applies_it_says_so(connection: Connection, where: Paths) -> None:
    scored(connection, *shuffled())
    drift_report(where)
    assert list(causes(connection, where)) == ["none of these"]


def test_a_champion_whose_card_is_damaged_is_judged_by_what_the_warehouse_knows(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *shuffled())
    drift_report(where, *a_model().card.importance)
    (where.models / "leaving" / "3" / "card.json").write_text("{}")
    assert list(causes(connection, where)) == ["none of these"]


# --- What people see of it


def a_project(today: date) -> Project:
    return Project(name="shop", today=today, sources=(), scores=(SCORE,))


def test_the_asset_warns_of_a_broken_promise_and_links_to_its_report(where: Paths) -> None:
    with a_warehouse(where) as connection:
        scored(connection, *shuffled())
    asset = performance_asset(SCORE, dg.AssetKey(["labels", "customer_left"]), a_project(MATURED), where)
    done = dg.materialize([asset])
    (check,) = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity.value) == ("as_promised", False, "WARN")
    assert check.description is not None and "Likely cause: none of these" in check.description
    metadata = done.asset_materializations_for_node("reports__leaving_performance")[0].metadata
    assert metadata["as-of dates measured now"].value == f"{DAY} (version 3)"
    assert str(metadata["report"].value).endswith(f"/reports/leaving/{DAY}/performance.html")
    again = dg.materialize([asset]).asset_materializations_for_node("reports__leaving_performance")[0].metadata
    assert again["changed"].value is False


def test_before_anything_has_matured_the_figures_say_when_it_will_and_the_page_shows_estimates(
    connection: Connection, where: Paths
) -> None:
    scored(connection, *some_outcomes(), day=LAST_HELD_OUT)
    scored(connection, *some_outcomes())
    connection.execute(f"delete from labels.customer_left where week = '{DAY}'")  # a model of matured rows alone
    today = MATURED - timedelta(days=3)
    assert measured(connection, where, today) == []
    report = report_performance(connection, SCORE, today, where)
    assert report["changed"]
    found = read_performance(where.reports, "leaving")
    assert found is not None
    assert (found.verdict, found.next_matures_on, found.dates) == ("nothing matured yet", MATURED, [])
    assert found.promised["roc_auc"] == pytest.approx(PROMISE.metrics["roc_auc"])
    assert [(one.as_of_date, one.model_version, one.rows) for one in found.estimates] == [(DAY, 3, CUSTOMERS)]
    page = report["path"].read_text()
    assert "Estimated, not matured yet" in page and "Realised, all dates" not in page
    (line,) = [one for one in found.lines if one.metric == "roc_auc"]
    assert line.below is not None and line.below < PROMISE.intervals["roc_auc"][0]
    assert f"The next date would be worse than promised with roc_auc below {line.below:.4f}" in page
    assert not report_performance(connection, SCORE, today, where)["changed"]


def test_before_an_amount_has_matured_there_is_no_page(connection: Connection, where: Paths) -> None:
    scored(connection, *some_outcomes())
    connection.execute("update ml.model_versions set kind = 'amount'")
    score = a_score("amount")
    assert measured(connection, where, DAY, score) == []
    report = report_performance(connection, score, DAY, where)
    assert report["path"] is None and report["changed"]


def test_figures_that_can_be_measured_nowhere_are_null_in_the_file(connection: Connection, where: Paths) -> None:
    a_version(connection, where, 6, metrics=PROMISE.metrics | {"roc_auc": math.nan}, intervals={})
    scores, _ = some_outcomes()
    scored(connection, scores, np.zeros(CUSTOMERS), version=6)
    measured(connection, where)
    report_performance(connection, SCORE, MATURED, where)
    found = read_performance(where.reports, "leaving")
    assert found is not None and found.promised["roc_auc"] is None
    (auc, *_) = found.dates[-1].metrics
    assert (auc.realised, auc.promised, auc.verdict) == (None, None, "not measurable")


def test_the_version_that_served_is_that_of_the_log_of_promotions_where_there_is_one(connection: Connection) -> None:
    scored(connection, *some_outcomes())
    assert realised.served_versions(connection, SCORE) == {DAY: 3}
    connection.execute("""
        delete from ml.promotions;
        insert into ml.promotions by name
        select 'leaving' as score, unnest([2, 3]) as version, now() + unnest([-1, 1]) * interval 1 day as promoted_at
    """)
    assert realised.served_versions(connection, SCORE) == {DAY: 2}
    connection.execute("update ml.promotions set promoted_at = ?", [datetime.now(UTC) + timedelta(days=2)])
    assert realised.served_versions(connection, SCORE) == {}
