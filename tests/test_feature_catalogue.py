"""The page /features: what each feature is, holds, is made from and does."""

from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pytest
from litestar.testing import TestClient

from ml.registry import load_card
from orchestration.cataloguing import _ranges, tell_features
from orchestration.project import Paths, load_project
from orchestration.warehouse import open_warehouse
from serving.app import create_app
from serving.generations import store
from serving.pages.feature_catalogue import FILE, FeatureFigures, FeatureReport, read_features
from tests.conftest import Run, copy_of


def features_of(run: Run, model: str) -> dict[str, FeatureFigures]:
    report = read_features(run.data / "reports")
    assert report is not None
    (found,) = (one for one in report.models if one.name == model)
    return {feature.name: feature for feature in found.features}


def test_a_feature_is_told_as_the_warehouse_holds_it(loans_run: Run) -> None:
    features = features_of(loans_run, "loan_features")
    with duckdb.connect(str(loans_run.data / "warehouse.duckdb"), read_only=True) as connection:
        for name, feature in features.items():
            plain = connection.execute(f"""
                select 1 - count({name}) / count(*), count(distinct {name}), min({name})::varchar, max({name})::varchar
                from risk_features.loan_features
                where scored_on = (select max(scored_on) from risk_features.loan_features)
            """).fetchall()
            nulls, distinct, lowest, highest = plain[0]
            assert (feature.null_share, feature.distinct) == (pytest.approx(nulls), distinct), name
            if feature.data_type not in ("VARCHAR", "BOOLEAN"):
                assert (feature.minimum, feature.maximum) == (lowest, highest), name
            assert sum(piece.share for piece in feature.bins) == pytest.approx(1.0 if distinct else 0.0), name
    assert features["purpose"].bins[0].share == max(piece.share for piece in features["purpose"].bins)
    assert features["opened_on"].bins[0].told.startswith("202"), "dates are told as dates"


def test_a_feature_leads_to_the_raw_columns_it_is_made_from(loans_run: Run) -> None:
    features = features_of(loans_run, "loan_features")
    assert features["canton"].made_from == ["landing.accounts.canton"]
    assert {"landing.loans.instalment", "landing.transactions.amount_chf"} <= set(
        features["instalment_to_salary_ratio"].made_from
    )


def test_a_feature_tells_its_unit_its_weight_and_the_scores_that_use_it(loans_run: Run) -> None:
    features = features_of(loans_run, "account_features")
    card_spend = features["card_90d_chf"]
    assert (card_spend.unit, features["segment"].unit) == ("chf", None)
    (use,) = card_spend.uses
    served = store.current(loans_run.data / "generations", "expected_card_spend")
    importance = load_card(loans_run.data / "generations" / "expected_card_spend" / str(served)).importance
    assert (use.score, use.version, use.importance) == ("expected_card_spend", 1, importance["card_90d_chf"])
    assert use.verdict in ("drifted", "stable")
    assert use.report == "expected_card_spend", "the score's own page, as its owner wants none of each date"


LAST = 2**63 - 1  # where the warehouse's Arrow has its infinity


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (pa.array([1.0, 1.0000000000000002]), "1"),  # they differ by rounding alone
        (pa.array([10**17, 10**17 + 16], pa.int64()), "1e+17"),
        (pa.array([10**17], pa.int64()), "1e+17"),
        (pa.array([-1.7e308, 1.7e308]), "-3.403e+38 to "),
        (pa.array([-800_000, 3_000_000], pa.date32()), "-221-09-04 to "),
        (pa.array([2**31 - 1, 0, -(2**31 - 1)], pa.date32()), "1970-01-01"),
        (pa.array([253_402_300_800, 0, LAST], pa.timestamp("s")), "1970-01-01 to "),
        (pa.array([0, LAST, None], pa.timestamp("us", "UTC")), "1970-01-01"),
        (pa.array([LAST], pa.timestamp("ms")), None),
    ],
)
def test_numbers_and_dates_however_close_or_far_have_a_distribution(values: pa.Array, first: str | None) -> None:
    bins = _ranges(pa.chunked_array([values] * 100))
    assert [piece.told.startswith(first or "") for piece in bins[:1]] == [True] * (first is not None)
    assert sum(piece.share for piece in bins) == pytest.approx(1.0 if first else 0.0)


def told_again(run: Run) -> bytes:
    """What the pipeline writes for the page when it is told anew from what there is."""
    where = Paths(project=run.project, data=run.data)
    project = load_project(where)
    with open_warehouse(where.warehouse) as connection:
        for score in project.scores:
            tell_features(connection, project, score, where)
    return (run.data / "reports" / FILE).read_bytes()


def test_what_has_not_changed_is_not_written_again_and_a_champion_reads_what_its_score_leaves_out(
    loans_run: Run, tmp_path: Path
) -> None:
    run = copy_of(loans_run, tmp_path)
    before = (run.data / "reports" / FILE).read_bytes()
    assert told_again(run) == before
    exposures = run.project / "models" / "scores.yml"
    left_out = "features: account_features\n          exclude: [is_joint_account]\n"
    exposures.write_text(exposures.read_text().replace("features: account_features\n", left_out))
    told_again(run)
    (use,) = features_of(run, "account_features")["is_joint_account"].uses
    assert use.importance is not None, "the champion was trained with it"


def test_a_score_tells_its_own_model_anew_and_leaves_those_of_others(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    where = Paths(project=run.project, data=run.data)
    project = load_project(where)
    (loans,) = (score for score in project.scores if score.name == "default_risk")
    with open_warehouse(where.warehouse) as connection:
        connection.execute("update risk_features.loan_features set segment = null")
        connection.execute("update risk_features.account_features set segment = null")
        tell_features(connection, project, loans, where)
        assert features_of(run, "loan_features")["segment"].null_share == 1
        assert features_of(run, "account_features")["segment"].null_share < 1
        (where.reports / FILE).unlink()
        tell_features(connection, project, loans, where)
    assert features_of(run, "account_features")["segment"].null_share == 1, "what nobody has told is told"


def test_dates_at_the_ends_of_time_are_told_and_in_no_range(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    with open_warehouse(run.data / "warehouse.duckdb") as connection:
        for_ever = "customer_since = 'infinity' where is_joint_account"
        connection.execute(f"update risk_features.account_features set {for_ever}")
        connection.execute("update risk_features.loan_features set opened_on = '12024-01-01' where has_guarantor")
    told_again(run)
    since = features_of(run, "account_features")["customer_since"]
    assert since.maximum == "infinity"
    assert all(piece.told < "2025" for piece in since.bins)
    assert sum(piece.share for piece in since.bins) == pytest.approx(1)
    assert features_of(run, "loan_features")["opened_on"].bins[-1].told.endswith("to 12024-01-01")


def test_the_page_shows_each_model_its_features_and_what_leans_on_them(loans_run: Run) -> None:
    with TestClient(create_app(loans_run.data)) as client:
        page = client.get("/features")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for told in ("loan_features", "account_features", "one row per branch_code × loan_no × scored_on", "card_<wbr>90d"):
        assert told in page.text
    assert "Expected card spend" in page.text
    assert page.text.count("<li id=") == sum(
        len(features_of(loans_run, model)) for model in ("loan_features", "account_features")
    )


def test_before_the_first_run_the_page_says_how_features_come(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path)) as client:
        assert "No features have been built yet" in client.get("/features").text
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / FILE).write_text('{"written_at": "cut sh')
        assert "No features have been built yet" in client.get("/features").text


def test_what_people_wrote_is_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    nasty = "<script>alert(1)</script>"
    feature = {
        "name": "x", "data_type": "VARCHAR", "unit": None, "description": nasty, "made_from": [nasty], "uses": [],
        "null_share": 0.0, "distinct": 1, "minimum": None, "maximum": None, "bins": [{"told": nasty, "share": 1.0}],
    }  # fmt: skip
    model = {
        "name": "m", "description": nasty, "owner": nasty, "entity": ["id"], "as_of": "day", "rows": 1, "of": "",
        "newest": date(2024, 1, 1), "features": [feature],
    }  # fmt: skip
    report = msgspec.convert({"written_at": datetime.now(UTC), "models": [model]}, FeatureReport)
    (tmp_path / "reports" / FILE).write_bytes(msgspec.json.encode(report))
    with TestClient(create_app(tmp_path)) as client:
        page = client.get("/features").text
    assert nasty not in page
    assert page.count("&lt;script&gt;") == 5
