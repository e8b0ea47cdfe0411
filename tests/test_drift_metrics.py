"""Drift is measured of what a champion has scored, once for each as-of date, and what drifts is an incident."""

import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow.parquet as pq
import pytest

from ml import registry
from ml.alerts import Alerts
from ml.declarations import Project, Score, Source
from orchestration import drift_metrics, drifting, incidents, versions
from orchestration.drift_metrics import BAND, PREDICTION, measure_drift
from orchestration.drifting import drift_asset, report_drift
from orchestration.incidents import Known, all_incidents, mark_sent, open_incidents, update_incidents
from orchestration.judging import current_champion
from orchestration.model_files import load_card
from orchestration.overviews import write_overview
from orchestration.project import Paths, read_json
from orchestration.scoring import score_dates
from orchestration.training_sets import ScoringError, training_set_file
from orchestration.warehouse import Connection, open_warehouse
from serving.pages.monitoring import PAGE, newest_page, read_summary
from tests.small_data import FIRST_DAY, a_model, a_model_of_classes, a_score, some_rows
from tests.test_evidently_page import told as head_of

SCORE = a_score(alerts=Alerts(segments=("colour",), report=False))
CUSTOMERS = 400


def week(number: int) -> date:
    return FIRST_DAY + timedelta(weeks=number)


STEADY = [week(number) for number in range(14, 18)]  # scored, and nothing has happened
NEXT, LAST = week(18), week(19)
ROWS = some_rows(weeks=20, customers=CUSTOMERS)


def make(where: Paths, score: Score = SCORE) -> None:
    """A champion that learned from weeks 0 to 15, and features of the weeks 14 to 17, which it has scored."""
    model = a_model_of_classes() if score.kind == "category" else a_model()
    card = registry.save(where.models / score.name / "3", model.booster, model.card)
    file = training_set_file(where.training_sets, score, "f" * 64)
    file.parent.mkdir(parents=True)
    pq.write_table(ROWS.slice(0, 16 * CUSTOMERS), file)
    with open_warehouse(where.warehouse) as connection:
        versions.create_tables(connection)
        versions.record_version(connection, card, "engine")
        versions.record_gate(connection, score, 3, [])
        connection.execute("create schema features; create schema raw")
        connection.register("rows", ROWS.slice(14 * CUSTOMERS, 4 * CUSTOMERS))
        connection.execute(
            """
            create table features.customer_features as select * exclude (label, matures_on) from rows;
            create table raw.visits as select week + 1 as visited_on, spend from rows
            """
        )
        connection.unregister("rows")
        rescore(connection, where, score)


def rescore(connection: Connection, where: Paths, score: Score = SCORE) -> None:
    score_dates(connection, score, current_champion(connection, score), where)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop, scored and measured."""
    folder = tmp_path_factory.mktemp("steady")
    where = Paths(project=folder, data=folder)
    make(where)
    with open_warehouse(where.warehouse) as connection:
        assert measured(connection, where) == STEADY
    return folder


@pytest.fixture
def where(steady: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    shutil.copytree(steady, tmp_path / "shop")
    where = Paths(project=tmp_path / "shop", data=tmp_path / "shop")
    source, features = "source.shop.raw.visits", SCORE.features_id
    manifest = {"sources": {source: {"schema": "raw", "identifier": "visits"}}, "nodes": {}}
    monkeypatch.setattr(incidents, "load_manifest", lambda _: manifest)
    lineage = where.data / "dbt" / "lineage" / f"{features}.json"
    lineage.parent.mkdir(parents=True)
    lineage.write_text(
        f'{{"lineage": {{"spend": [["{source}", "spend"]], "days_away": [["{source}", "visited_on"]],'
        f' "seen_at": [["{source}", "visited_on"]]}}}}'
    )
    return where


@pytest.fixture
def connection(where: Paths) -> Iterator[Connection]:
    with open_warehouse(where.warehouse) as opened:
        yield opened


PROJECT = Project(
    name="shop",
    today=week(20),
    sources=(
        Source(
            id="source.shop.raw.visits", schema="raw", table="visits", description="", uri="x.csv", cursor="visited_on",
            file="sources.yml",
        ),
    ),
    scores=(SCORE,),
)  # fmt: skip


def measured(connection: Connection, where: Paths, score: Score = SCORE) -> list[date]:
    return measure_drift(connection, score, current_champion(connection, score), where)


def add(connection: Connection, where: Paths, *days: date, **changes: str) -> None:
    """Features of further weeks, with columns changed by SQL, scored."""
    connection.register("rows", ROWS)
    for day in days:
        replaced = ", ".join(f"({change})::{TYPES[name]} as {name}" for name, change in changes.items())
        connection.execute(
            f"insert into features.customer_features by name select * exclude (label, matures_on)"
            f" {f'replace ({replaced})' if changes else ''} from rows where week = date '{day}'"
        )
        connection.execute(f"insert into raw.visits select week + 1, spend from rows where week = date '{day}'")
    connection.unregister("rows")
    rescore(connection, where)


TYPES = {"spend": "double", "colour": "varchar", "days_away": "integer", "member": "boolean"}


def change(connection: Connection, where: Paths, day: date, what: str) -> None:
    """Features of a week as they are corrected later, scored again."""
    connection.execute(f"update features.customer_features set {what} where week = date '{day}'")
    rescore(connection, where)


def metrics(connection: Connection, what: str, which: str = "true") -> list[tuple[Any, ...]]:
    query = f"select {what} from monitoring.drift_metrics where {which} order by all"
    return connection.execute(query).fetchall()


def drifted(connection: Connection, day: date) -> dict[str, str]:
    """Column -> fault, of those that have drifted at a date."""
    which = f"as_of_date = date '{day}' and segment_column is null and drifted_since is not null"
    return dict(metrics(connection, "distinct column_name, fault", which))


# --- What is measured


def test_all_columns_and_the_score_are_compared_with_training_and_with_the_date_before(connection: Connection) -> None:
    columns = [name for (name,) in metrics(connection, "distinct column_name")]
    assert columns == sorted([*a_model().card.importance, PREDICTION, BAND])
    found = metrics(
        connection,
        "reference, reference_date",
        f"as_of_date = '{STEADY[1]}' and column_name = 'spend' and segment_column is null",
    )
    assert found == [("previous", STEADY[0]), ("training", None)]
    first = metrics(
        connection, "reference", f"as_of_date = '{STEADY[0]}' and column_name = 'spend' and segment_column is null"
    )
    assert first == [("training",)]


def test_rows_of_the_same_shop_have_not_drifted_and_time_goes_on(connection: Connection) -> None:
    assert metrics(connection, "distinct column_name", "drifted_since is not null or is_drifted") == []
    faults = metrics(connection, "distinct column_name, fault", "fault is not null")
    assert faults == [("seen_at", "calendar")]


def test_figures_are_those_of_all_rows(connection: Connection) -> None:
    day = STEADY[-1]
    plain = connection.execute(
        f"""
        select count(*), 1 - count(spend) / count(*), avg(spend), min(spend), max(spend) from features.customer_features
        where week = '{day}'
        """
    ).fetchall()
    which = f"as_of_date = '{day}' and column_name = 'spend' and segment_column is null and reference = 'training'"
    assert metrics(connection, "rows, null_share, mean, low, high", which)[0] == pytest.approx(plain[0], rel=1e-6)
    (reference,) = metrics(connection, "reference_rows, round(importance, 6)", which)
    card = a_model().card
    assert reference[0] == pytest.approx(card.rows["train"] * CUSTOMERS / 20)
    assert reference[1] == pytest.approx(card.importance["spend"] / 100, abs=1e-6)


def test_rows_before_the_window_that_a_version_learned_from_are_no_reference(
    connection: Connection, where: Paths
) -> None:
    which = "column_name = 'spend' and reference = 'training' and segment_column is null"
    ((before,),) = metrics(connection, "distinct reference_rows", which)
    connection.execute(f"update ml.model_versions set train_from = date '{week(4)}'")
    assert measured(connection, where) == STEADY
    assert metrics(connection, "distinct reference_rows", which) == [(before - 4 * CUSTOMERS,)]


def test_the_score_and_its_bands_are_compared_with_what_was_said_of_held_out_dates(connection: Connection) -> None:
    which = f"column_name in ('{PREDICTION}', '{BAND}') and as_of_date = '{STEADY[-1]}'"
    which = f"{which} and reference = 'training' and segment_column is null"
    found = metrics(
        connection, "column_name, reference_rows, importance, distance < 0.1", f"{which} and segment_column is null"
    )
    held_out = 2 * CUSTOMERS  # weeks 14 and 15, of those that are scored
    assert found == [(BAND, held_out, 1.0, True), (PREDICTION, held_out, 1.0, True)]


def test_segments_are_compared_with_the_same_of_training(connection: Connection) -> None:
    which = f"as_of_date = '{STEADY[-1]}' and column_name = 'spend' and segment_column is not null"
    found = metrics(connection, "segment_column, segment, reference, is_drifted", which)
    assert found == [("colour", name, "training", False) for name in ("blue", "green", "red", "unknown")]


# --- What is measured again


def test_what_was_measured_is_not_measured_again(connection: Connection, where: Paths) -> None:
    before = metrics(connection, "*")
    assert measured(connection, where) == []
    assert metrics(connection, "*") == before


def test_a_new_date_is_measured_alone_and_compared_with_those_before(connection: Connection, where: Paths) -> None:
    before = metrics(connection, "*")
    add(connection, where, NEXT)
    assert measured(connection, where) == [NEXT]
    assert metrics(connection, "*", f"as_of_date < '{NEXT}'") == before
    assert drifted(connection, NEXT) == {}


def test_a_date_that_was_corrected_is_measured_again_and_the_later_ones_are_compared_again(
    connection: Connection, where: Paths
) -> None:
    third, fourth = STEADY[2:]
    change(connection, where, third, "spend = spend * 100")
    assert measured(connection, where) == [third]
    assert drifted(connection, third)["spend"] == "unit change" and "spend" not in drifted(connection, fourth)
    which = f"as_of_date = '{fourth}' and column_name = 'spend' and reference = 'previous'"
    assert metrics(connection, "reference_date", which) == [(STEADY[1],)], "the newest that was in order"
    change(connection, where, third, "spend = spend / 100")
    assert measured(connection, where) == [third]
    assert metrics(connection, "reference_date", which) == [(third,)]
    assert drifted(connection, third) == {}


def test_a_date_that_was_withdrawn_is_no_more_measured(connection: Connection, where: Paths) -> None:
    connection.execute(f"delete from features.customer_features where week = '{STEADY[2]}'")
    rescore(connection, where)
    assert measured(connection, where) == [STEADY[2]]
    assert [day for (day,) in metrics(connection, "distinct as_of_date")] == [STEADY[0], STEADY[1], STEADY[3]]
    which = f"as_of_date = '{STEADY[3]}' and column_name = 'spend' and reference = 'previous'"
    assert metrics(connection, "reference_date", which) == [(STEADY[1],)]


@pytest.mark.parametrize("table", ["bins", "distributions", "drift_metrics"])
def test_a_table_that_was_lost_is_made_again_as_it_was(connection: Connection, where: Paths, table: str) -> None:
    before = metrics(connection, "* exclude (rows)")
    connection.execute(f"drop table monitoring.{table}")
    assert measured(connection, where) == STEADY
    assert metrics(connection, "* exclude (rows)") == before
    assert measured(connection, where) == []


def test_another_line_of_the_owner_measures_all_dates_again(connection: Connection, where: Paths) -> None:
    stricter = a_score(alerts=Alerts(segments=("colour",), effect=0.001))
    assert measured(connection, where, stricter) == STEADY
    assert measured(connection, where, stricter) == []


def test_other_segments_count_the_reference_again(connection: Connection, where: Paths) -> None:
    for segments, names in ((("member",), ["member"]), ((), []), (None, ["colour"])):
        score = a_score(alerts=Alerts(segments=segments))
        assert measured(connection, where, score) == STEADY
        found = metrics(connection, "distinct segment_column", "segment_column is not null")
        assert [name for (name,) in found] == names


def test_a_run_that_is_stopped_after_it_has_counted_the_reference_leaves_nothing_beside_another(
    connection: Connection, where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = a_score(alerts=Alerts(segments=("member",)))
    with monkeypatch.context() as stopped:
        stopped.setattr(drift_metrics, "_compare_from", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(connection, where, score)
    assert measured(connection, where, score) == STEADY
    assert metrics(connection, "distinct segment_column", "segment_column is not null") == [("member",)]


def test_a_segment_that_came_after_the_version_is_left_out_until_another_has_learned(
    connection: Connection, where: Paths
) -> None:
    connection.execute("alter table features.customer_features add column town varchar default 'Bern'")
    later = a_score(alerts=Alerts(segments=("town", "member")))
    assert measured(connection, where, later) == STEADY
    assert metrics(connection, "distinct segment_column", "segment_column is not null") == [("member",)]


def test_a_segment_of_very_many_values_is_refused(connection: Connection, where: Paths) -> None:
    with pytest.raises(ScoringError, match="alerts: segments names 'joined_on', which has more than 20 values"):
        measured(connection, where, a_score(alerts=Alerts(segments=("joined_on",))))


def test_rare_values_of_a_category_that_nobody_has_named_are_one_segment(connection: Connection, where: Paths) -> None:
    file = training_set_file(where.training_sets, SCORE, "f" * 64)
    rows = pq.read_table(file)
    colours = [f"rare {place}" if place < 30 else colour for place, colour in enumerate(rows["colour"].to_pylist())]
    place = rows.column_names.index("colour")
    pq.write_table(rows.set_column(place, "colour", [colours]), file)
    connection.execute("delete from monitoring.bins")  # so that it is counted anew
    assert measured(connection, where, a_score(alerts=Alerts(report=False))) == STEADY
    which = "part = 'trained' and column_name = 'spend' and segment_column = 'colour'"
    found = dict(
        connection.execute(f"select segment, rows from monitoring.distributions where {which} order by 1").fetchall()
    )
    assert found.pop("(other)") == 30
    assert set(found) == {"unknown", *next(c.categories for c in a_model().card.encoder.columns if c.name == "colour")}


def promote_another(connection: Connection, where: Paths) -> None:
    """Version 4, which is version 3 by another name, and has scored nobody."""
    model = a_model(version=4)
    card = registry.save(where.models / SCORE.name / "4", model.booster, model.card)
    versions.record_version(connection, card, "engine")
    versions.record_gate(connection, SCORE, 4, [])


def test_another_version_has_a_reference_of_its_own(connection: Connection, where: Paths) -> None:
    promote_another(connection, where)
    assert measured(connection, where) == [], "it has scored nobody"
    before = metrics(connection, "*")
    rescore(connection, where)
    assert measured(connection, where) == STEADY
    assert metrics(connection, "*", "model_version = 3") == before
    assert len(metrics(connection, "*", "model_version = 4")) == len(before)


def test_a_lost_training_set_is_named_if_the_version_was_never_measured(connection: Connection, where: Paths) -> None:
    file = training_set_file(where.training_sets, SCORE, "f" * 64)
    file.unlink()
    add(connection, where, NEXT)
    assert measured(connection, where) == [NEXT], "its reference was counted before"
    promote_another(connection, where)
    rescore(connection, where)
    with pytest.raises(ScoringError) as raised:
        measured(connection, where)
    assert f"{file}, from which version 4 has learned, is missing or damaged, so its drift can't be told" in str(
        raised.value
    )


def test_the_drift_of_a_category_is_that_of_its_likeliest_class(tmp_path: Path) -> None:
    where, score = Paths(project=tmp_path, data=tmp_path), a_score("category", bands={}, alerts=Alerts(report=False))
    make(where, score)
    with open_warehouse(where.warehouse) as connection:
        assert measured(connection, where, score) == STEADY
        assert metrics(connection, "distinct is_drifted", f"column_name in ('{PREDICTION}', '{BAND}')") == [(False,)]
        counts = connection.execute(
            f"""
            select counts from monitoring.distributions
            where column_name = '{BAND}' and as_of_date = '{STEADY[-1]}' and part = 'scored' and segment is null
            """
        ).fetchall()
        plain = connection.execute(
            f"select count(*) from predictions.leaving where as_of_date = '{STEADY[-1]}' group by band order by band"
        ).fetchall()
    assert counts == [([*(size for (size,) in plain), 0],)]


# --- Incidents


def told(connection: Connection, where: Paths) -> list[Known]:
    """What a run says is open."""
    days = measured(connection, where)
    card = load_card(where, SCORE, current_champion(connection, SCORE)["version"])
    return update_incidents(connection, PROJECT, SCORE, card.version, card, min(days, default=None), where)


def test_what_drifts_is_an_incident_on_the_second_date_and_one_row_whatever_drifts_with_it(
    connection: Connection, where: Paths
) -> None:
    add(connection, where, NEXT, days_away="days_away + 30", spend="spend * 100")
    assert told(connection, where) == []
    add(connection, where, LAST, days_away="days_away + 30", spend="spend * 100")
    first, *others = told(connection, where)
    assert set(drifted(connection, LAST)) >= {"spend", "days_away", PREDICTION}
    broken = next(one for one in (first, *others) if "spend" in one.columns)
    assert (broken.kind, broken.cause, broken.severity) == ("unit change", "raw.visits.spend", "error")
    assert (broken.began_on, broken.alerted_on, broken.last_seen_on, broken.closed_on) == (NEXT, LAST, LAST, None)
    assert "spend (" in broken.told and "times what they were" in broken.told
    assert sum(len(one.columns) for one in (first, *others)) == len(drifted(connection, LAST))
    assert len(others) <= 1 and PREDICTION in first.columns


def broken_at(connection: Connection, where: Paths, *days: date) -> None:
    add(connection, where, *days, spend="spend * 100")


def the_incident(connection: Connection) -> Known:
    (found,) = [one for one in all_incidents(connection, SCORE, week(0)) if "spend" in one.columns]
    return found


def test_an_incident_goes_on_without_being_told_again_and_closes_when_the_column_is_back(
    connection: Connection, where: Paths
) -> None:
    for day in STEADY[1:3]:
        change(connection, where, day, "spend = spend * 100")
    assert told(connection, where) == []
    opened = the_incident(connection)
    assert (opened.alerted_on, opened.closed_on) == (STEADY[2], STEADY[3])
    mark_sent(connection, SCORE, opened.incident, ["webhook"], True)
    change(connection, where, STEADY[3], "spend = spend * 100")
    (open_now,) = told(connection, where)
    assert (open_now.incident, open_now.closed_on, open_now.last_seen_on) == (opened.incident, None, STEADY[3])
    assert open_now.sent_at is not None


def test_an_incident_that_is_found_again_after_a_correction_was_sent_already(
    connection: Connection, where: Paths
) -> None:
    broken_at(connection, where, NEXT, LAST)
    (opened,) = told(connection, where)
    mark_sent(connection, SCORE, opened.incident, ["webhook"], True)
    change(connection, where, LAST, "spend = spend * 1.001")
    (again,) = told(connection, where)
    assert again.incident == opened.incident and again.sent_at is not None
    change(connection, where, LAST, "spend = spend / 100.1")
    assert told(connection, where) == []
    assert [one.closed_on for one in all_incidents(connection, SCORE, week(0))] == [LAST], "who was told finds it"
    change(connection, where, LAST, "spend = spend * 100")
    (back,) = told(connection, where)
    assert back.incident == opened.incident


def the_incident_is_gone(connection: Connection) -> bool:
    return not any("spend" in one.columns for one in all_incidents(connection, SCORE, week(0)))


def test_incidents_of_a_version_that_scores_no_more_are_closed(connection: Connection, where: Paths) -> None:
    broken_at(connection, where, NEXT, LAST)
    (opened,) = told(connection, where)
    promote_another(connection, where)
    assert told(connection, where) == []
    rescore(connection, where)
    (of_new,) = told(connection, where)
    assert of_new.incident != opened.incident
    assert [one.closed_on is None for one in all_incidents(connection, SCORE, week(0))] == [False, True]


def test_a_second_cause_is_an_incident_of_its_own_though_the_score_goes_with_it_now(
    connection: Connection, where: Paths
) -> None:
    for day in STEADY[1:]:
        change(connection, where, day, "days_away = days_away + 30")
    for day in STEADY[2:]:
        change(connection, where, day, "spend = spend * 100")
    moved, broken = sorted(told(connection, where), key=lambda one: one.alerted_on)
    assert (moved.kind, moved.alerted_on) == ("shift", STEADY[2])
    assert "days_away" in moved.columns and PREDICTION not in moved.columns
    assert (broken.kind, broken.alerted_on) == ("unit change", STEADY[3])
    assert "spend" in broken.columns and PREDICTION in broken.columns


def test_a_column_that_breaks_after_it_has_moved_is_an_incident_of_its_own(
    connection: Connection, where: Paths
) -> None:
    for day in STEADY[1:]:
        change(connection, where, day, "days_away = days_away + 30, spend = spend + 60")
    (moved,) = told(connection, where)
    assert moved.severity == "warn" and {"days_away", "spend"} <= set(moved.columns)
    mark_sent(connection, SCORE, moved.incident, ["webhook"], True)
    add(connection, where, NEXT, LAST, days_away="days_away + 30", spend="null")
    found = {one.severity: one for one in told(connection, where)}
    assert (found["error"].kind, found["error"].sent_at) == ("stuck at null", None)
    assert "warn" not in found or found["warn"].incident == moved.incident


def test_a_run_without_news_says_what_is_open(connection: Connection, where: Paths) -> None:
    broken_at(connection, where, NEXT, LAST)
    opened = told(connection, where)
    assert told(connection, where) == opened == open_incidents(connection, SCORE)


def test_a_raw_table_that_fell_silent_is_the_cause(connection: Connection, where: Paths) -> None:
    add(connection, where, NEXT, LAST, spend="null", days_away="days_away + 14")
    connection.execute(f"delete from raw.visits where visited_on >= date '{NEXT}'")
    (found,) = told(connection, where)
    assert (found.kind, found.cause) == ("lost source", "raw.visits")
    assert found.told.startswith("nothing comes from raw.visits any more (its newest visited_on is 2024-04-30, 13 days")
    assert {"spend", "days_away"} <= set(found.columns)


# --- The report


def report(connection: Connection, where: Paths) -> dict[str, Any]:
    return report_drift(connection, PROJECT, SCORE, where)


def figures(where: Paths, day: date) -> dict[str, Any]:
    found = read_json(where.reports / SCORE.name / str(day) / "drift.json")
    metrics: dict[str, Any] = found["metrics"]
    return metrics


def test_every_date_has_its_figures_and_a_column_that_drifted_its_fault(connection: Connection, where: Paths) -> None:
    broken_at(connection, where, NEXT, LAST)
    told = report(connection, where)
    assert (told["day"], told["path"], told["measured"], told["changed"]) == (LAST, None, [NEXT, LAST], True)
    assert [one.kind for one in told["incidents"]] == ["unit change"]
    of_last, of_first = figures(where, LAST), figures(where, STEADY[0])
    assert of_last == told["metrics"]
    assert of_last["column.spend.verdict"] == "drifted" and of_last["column.spend.since"] == str(NEXT)
    assert "times what they were" in of_last["column.spend.fault"]
    assert of_last["column.spend.effect"] < of_last["column.spend.distance"] <= 1 < of_last["column.spend.psi"]
    assert of_first["column.spend.verdict"] == of_last["column.colour.verdict"] == "stable"
    assert "column.spend.fault" not in of_first
    assert (of_last["compared_columns"], of_last["current_rows"]) == (len(a_model().card.importance) + 2, CUSTOMERS)
    assert of_last["share_of_drifted_columns"] == of_last["drifted_columns"] / of_last["compared_columns"]


def test_a_second_report_changes_nothing_and_a_lost_file_is_written_again(connection: Connection, where: Paths) -> None:
    report(connection, where)
    files = sorted((where.reports / SCORE.name).rglob("*"))
    contents = [file.read_bytes() for file in files if file.is_file()]
    assert len(contents) == len(STEADY)
    again = report(connection, where)
    assert (again["measured"], again["changed"]) == ([], False)
    for file in (file for file in files if file.is_file()):
        file.unlink()
    report(connection, where)
    assert [file.read_bytes() for file in files if file.is_file()] == contents


def test_figures_are_those_of_the_version_that_scores_also_after_a_promotion_was_taken_back(
    connection: Connection, where: Paths
) -> None:
    report(connection, where)
    before = figures(where, STEADY[-1])
    promote_another(connection, where)
    rescore(connection, where)
    report(connection, where)
    assert "version 4" in figures(where, STEADY[-1])["reference"]
    versions.promote(connection, SCORE, 3, "rollback", "it was better")
    report(connection, where)
    assert figures(where, STEADY[-1]) == before


def test_dates_after_a_corrected_one_are_told_anew(connection: Connection, where: Paths) -> None:
    for day in STEADY[1:]:
        change(connection, where, day, "days_away = days_away + 30")
    report(connection, where)
    assert figures(where, STEADY[3])["column.days_away.since"] == str(STEADY[1])
    change(connection, where, STEADY[1], "days_away = days_away - 30")
    report(connection, where)
    assert figures(where, STEADY[3])["column.days_away.since"] == str(STEADY[2])


def test_a_run_that_is_stopped_before_it_has_told_of_a_date_leaves_it_to_the_next(
    connection: Connection, where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(connection, where)
    broken_at(connection, where, NEXT, LAST)
    with monkeypatch.context() as stopped:
        stopped.setattr(incidents, "origin", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(connection, where)
    assert [one.kind for one in report(connection, where)["incidents"]] == ["unit change"]


def test_what_a_withdrawn_date_said_is_no_incident(connection: Connection, where: Paths) -> None:
    broken_at(connection, where, NEXT, LAST)
    assert report(connection, where)["incidents"]
    connection.execute(f"delete from features.customer_features where week = '{LAST}'")
    rescore(connection, where)
    assert report(connection, where)["incidents"] == []


def test_a_score_that_has_scored_nobody_has_no_report(connection: Connection, where: Paths) -> None:
    promote_another(connection, where)
    with pytest.raises(ScoringError, match="version 4 has scored nobody yet; materialize predictions/leaving first"):
        report(connection, where)


def materialized(where: Paths) -> tuple[Any, dict[str, Any]]:
    """The check of the asset of a score's drift, and what it says of itself."""
    done = dg.materialize([drift_asset(SCORE, PROJECT, where)])
    (check,) = done.get_asset_check_evaluations()
    metadata = done.asset_materializations_for_node("reports__leaving_drift")[0].metadata
    return check, {name: entry.value for name, entry in metadata.items()}


def test_the_asset_fails_its_check_for_a_fault_of_the_data_and_says_what_was_not_sent(
    where: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drifting, "tell_features", lambda *_: None)
    monkeypatch.setenv("SCOREHOUSE_ALERT_WEBHOOK", "no address")
    check, told = materialized(where)
    assert (check.check_name, check.passed) == ("nothing_drifted", True)
    assert told["verdict"] == "in order: nothing has drifted that weighs enough, long enough"
    with open_warehouse(where.warehouse) as connection:
        broken_at(connection, where, NEXT, LAST)
    check, told = materialized(where)
    assert (check.passed, check.severity.value) == (False, "ERROR")
    assert check.description == told["verdict"] and "unit change, since 2024-05-06: spend (" in told["verdict"]
    assert (told["as-of date"], told["as-of dates measured now"]) == (str(LAST), f"{NEXT}, {LAST}")
    assert told["report"] == "http://127.0.0.1:8000/reports/leaving" and "page" not in told
    assert "was not sent: SCOREHOUSE_ALERT_WEBHOOK is no address" in capfd.readouterr().err
    check, told = materialized(where)
    assert (check.passed, told["changed"]) == (False, False), "it lasts"


def test_a_page_that_cannot_be_written_keeps_no_alert_back(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    told: list[tuple[str, date]] = []
    monkeypatch.setattr(drifting, "write_pages", full)
    monkeypatch.setattr(
        drifting, "tell_people", lambda _, __, some, day: [told.append((one.kind, day)) for one in some]
    )
    with open_warehouse(where.warehouse) as connection:
        broken_at(connection, where, NEXT, LAST)
    with pytest.raises(OSError, match="No space left"):
        materialized(where)
    assert told == [("unit change", LAST)]


# --- Its page


def test_a_page_of_the_newest_date_is_written_once_and_again_with_the_labels_when_they_have_matured(
    connection: Connection, where: Paths
) -> None:
    from evidently.ui.workspace import Workspace

    score = a_score(alerts=Alerts(segments=("colour",)))
    connection.register("rows", ROWS)
    connection.execute("create schema labels")
    connection.execute("create table labels.customer_left as select customer_id, week, label, matures_on from rows")
    connection.unregister("rows")

    def report_of(day: date) -> dict[str, Any]:
        return report_drift(connection, msgspec.structs.replace(PROJECT, today=day), score, where)

    first = report_of(week(18))
    page = where.reports / score.name / str(STEADY[-1]) / "drift.html"
    assert (first["path"], first["changed"]) == (page, True)
    assert [file.parent.name for file in where.reports.rglob("drift.html")] == [str(STEADY[-1])]
    head = head_of(page.read_text())
    assert head["Reference"].endswith(f": {first['metrics']['reference_rows']:,} rows")
    assert head["Current"] == f"the customers scored at {STEADY[-1]}: {CUSTOMERS} rows"
    assert (head["Alert"], head["Drifted"]) == ("none", "0 of 8 columns")
    assert head["What would change this"].startswith(
        "an alert needs columns with 5% of their rows beyond what is usual"
    )
    assert '"the score"' in page.read_text() and '"the label"' not in page.read_text()
    assert report_of(week(18))["changed"] is False
    score = a_score(alerts=Alerts(segments=("colour",), impact=0.5))
    assert report_of(week(18))["changed"] is True
    assert "that weigh 50% of the score" in head_of(page.read_text())["What would change this"]

    assert report_of(week(19))["changed"] is True
    assert '"the label"' in page.read_text()
    assert report_of(week(19))["changed"] is False
    workspace = Workspace(str(where.evidently))
    (project,) = workspace.list_projects()
    assert project.name == "Leaving (leaving)"
    (run,) = workspace.list_runs(project.id)
    assert str(run) == read_json(page.with_name("drift.json"))["page"]["evidently"]["run"]

    # A page that is damaged is written again, and one of a score whose owner wants none goes.
    page.write_text(page.read_text()[:1000])
    assert report_of(week(19))["changed"] is True
    assert '"the label"' in page.read_text()

    # Another title is no other score.
    titled = msgspec.structs.replace(score, title="Going away", description="Whether they go.")
    assert report_drift(connection, msgspec.structs.replace(PROJECT, today=week(19)), titled, where)["changed"] is True
    (project,) = workspace.list_projects()
    assert (project.name, project.description) == ("Going away (leaving)", "Whether they go.")


def test_every_page_has_its_label_once_that_has_matured_also_if_no_run_came_in_between(
    connection: Connection, where: Paths
) -> None:
    score = a_score(alerts=Alerts(segments=("colour",)))
    labelled(connection)
    days, today = STEADY[-2:], week(19)
    pages = [where.reports / score.name / str(day) / "drift.html" for day in days]
    connection.execute(f"delete from features.customer_features where week = '{days[1]}'")
    rescore(connection, where)
    report_drift(connection, msgspec.structs.replace(PROJECT, today=week(17)), score, where)
    assert pages[0].is_file() and '"the label"' not in pages[0].read_text()

    add(connection, where, days[1])
    report_drift(connection, msgspec.structs.replace(PROJECT, today=today), score, where)
    assert all('"the label"' in page.read_text() for page in pages)

    silent = a_score(alerts=Alerts(segments=("colour",), report=False))
    assert report_drift(connection, msgspec.structs.replace(PROJECT, today=today), silent, where)["path"] is None
    assert [page.is_file() for page in pages] == [True, False], "it would say what no longer is"


def labelled(connection: Connection) -> None:
    connection.register("rows", ROWS)
    connection.execute("create schema labels")
    connection.execute("create table labels.customer_left as select customer_id, week, label, matures_on from rows")
    connection.unregister("rows")


@pytest.mark.parametrize("torn", ["metadata.json", "snapshots/*.json"])
def test_a_torn_file_of_the_history_keeps_no_page_from_being_written(
    connection: Connection, where: Paths, torn: str
) -> None:
    from evidently.ui.workspace import Workspace

    score = a_score(alerts=Alerts(segments=("colour",)))
    labelled(connection)
    page = report_drift(connection, PROJECT, score, where)["path"]
    page.unlink()
    for file in where.evidently.glob(f"*/{torn}"):
        file.write_text('{"id":')
    (where.evidently / "01a21af4-54d6-7a1d-be62-e95baebc33c5").mkdir()
    assert report_drift(connection, PROJECT, score, where)["path"] == page and page.is_file()
    workspace = Workspace(str(where.evidently))
    (project,) = [one for one in workspace.list_projects() if one is not None]
    assert len(workspace.list_runs(project.id)) == 1


def test_a_page_is_without_labels_where_they_are_of_others_and_stays_where_nobody_is_left(
    connection: Connection, where: Paths
) -> None:
    score = a_score(alerts=Alerts(segments=("colour",)))
    labelled(connection)
    connection.execute(f"update labels.customer_left set customer_id = customer_id + {CUSTOMERS}")
    page = report_drift(connection, PROJECT, score, where)["path"]
    assert '"the label"' not in page.read_text()
    connection.execute(f"delete from features.customer_features where week = '{STEADY[-1]}'")
    assert report_drift(connection, PROJECT, score, where)["changed"] is False


def test_the_page_of_a_date_that_was_withdrawn_is_not_the_scores_own(connection: Connection, where: Paths) -> None:
    labelled(connection)
    reports = where.reports / SCORE.name
    for day in (STEADY[-1], STEADY[-2]):
        measured(connection, where)
        written = write_overview(connection, SCORE, PROJECT, where)
        assert (written["day"], newest_page(where.reports, SCORE.name)) == (day, reports / str(day) / PAGE)
        summary = read_summary(where.reports, SCORE.name)
        assert summary and summary.as_of_date == day
        connection.execute(f"delete from features.customer_features where week = '{day}'")
        rescore(connection, where)
