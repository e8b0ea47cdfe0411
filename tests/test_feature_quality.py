"""Whether features are sound is counted on each as-of date, and one that jumps stops the scores made of it."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import duckdb
import pytest

from serving.generations import store
from tests.conftest import LOANS, SAMPLE, Run, copy_of, environment_of, materialize, query

NEWEST = date(2018, 1, 1)


def test_each_feature_of_the_sample_is_told_as_a_plain_count_tells_it(sample_run: Run) -> None:
    types = dict(
        query(sample_run, "select column_name, data_type from duckdb_columns() where table_name = 'household_features'")
    )
    features = [name for name in types if name not in ("household_id", "as_of_date")]
    told = {
        (day, feature): figures
        for day, feature, *figures in query(
            sample_run,
            """
            select as_of_date, feature, rows_count, null_count, null_share, distinct_count, minimum, maximum, mean
            from quality.household_feature_metrics
            """,
        )
    }
    days = {day for (day,) in query(sample_run, "select distinct as_of_date from features.household_features")}
    assert told.keys() == {(day, feature) for day in days for feature in features}
    for feature in features:
        number = (
            f"min({feature}), max({feature}), avg({feature})" if types[feature] != "VARCHAR" else "null, null, null"
        )
        plain = query(
            sample_run,
            f"""
            select as_of_date, count(*), count(*) - count({feature}), (count(*) - count({feature})) / count(*),
                count(distinct {feature}), {number}
            from features.household_features group by 1
            """,
        )
        for day, *figures in plain:
            assert told[day, feature] == pytest.approx(figures, abs=1e-9), feature


def test_the_most_frequent_value_is_told_with_its_share(sample_run: Run) -> None:
    ((share,),) = query(
        sample_run,
        f"""
        select most_frequent_share from quality.household_feature_metrics
        where feature = 'age_band' and as_of_date = date '{NEWEST}'
        """,
    )
    counts = query(
        sample_run,
        f"""
        select count(*) from features.household_features
        where as_of_date = date '{NEWEST}' and age_band is not null group by age_band
        """,
    )
    assert share == pytest.approx(max(counts)[0] / sum(count for (count,) in counts))


def test_on_the_samples_own_data_no_feature_jumps(sample_run: Run) -> None:
    assert "no_household_feature" not in sample_run.printed  # only what has failed is named
    assert re.search(r"✓ quality\.household_feature_metrics +[\d,]+ rows", sample_run.printed)


def test_features_that_are_stuck_or_in_other_units_on_the_newest_date_fail_the_sample(
    sample_run: Run, tmp_path: Path
) -> None:
    now = {
        "spend_84d_usd": "null",
        "discount_84d_usd": "90",
        "kids_band": "null",
        "spend_28d_usd": "spend_28d_usd * 100",
        "discount_28d_usd": "discount_28d_usd / 100",
    }
    data = tmp_path / "data"
    data.mkdir()
    warehouse = data / "warehouse.duckdb"
    warehouse.write_bytes((sample_run.data / "warehouse.duckdb").read_bytes())
    newest = f"where as_of_date = date '{NEWEST}'"
    with duckdb.connect(str(warehouse)) as connection:
        spoilt = ", ".join(f"{feature} = {value}" for feature, value in now.items())
        connection.execute(f"update features.household_features set {spoilt} {newest}")
        connection.execute(f"delete from quality.household_feature_metrics {newest}")
    selected = ["--select", "household_feature_metrics", "--exclude-resource-type", "unit_test"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dbt"), "--no-use-colors", "build", *selected],
        cwd=SAMPLE,
        env={**environment_of(SAMPLE, data, sample_run.home), "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    stuck, in_other_units = "no_household_feature_is_stuck", "no_household_feature_is_in_other_units"
    assert sorted(re.findall(r"Failure in test (\w+)", done.stdout)) == [in_other_units, stuck], done.stdout
    with duckdb.connect(str(warehouse)) as connection:

        def found(test: str) -> dict[str, tuple[float, float, float]]:
            (sql,) = (data / "dbt" / "target" / "compiled").rglob(f"{test}.sql")
            rows = connection.execute(sql.read_text()).fetchall()
            assert {day for _, day, *_ in rows} == {NEWEST}
            return {feature: figures for feature, _, _, *figures in rows}

        assert {feature: figures[2] for feature, figures in found(stuck).items()} == {
            "spend_84d_usd": 0,
            "discount_84d_usd": 1,
            "kids_band": 0,
        }
        units = found(in_other_units)
        assert units.keys() == {"spend_28d_usd", "discount_28d_usd"}
        assert all(not lowest / 10 <= measured <= highest * 10 for lowest, highest, measured in units.values())


def test_a_feature_that_jumps_stops_the_scores_made_of_it_and_no_others(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    served = {
        score: store.current(run.data / "generations", score) for score in ("default_risk", "expected_card_spend")
    }
    model = run.project / "models" / "risk_features" / "account_features.sql"
    on_the_newest = "borrowing_accounts.scored_on = {{ today() }}"
    for right, wrong in (
        (
            "        accounts.declared_income_chf,",
            f"        case when not {on_the_newest} then declared_income_chf end as declared_income_chf,",
        ),
        (
            "cast(behaviour.card_90d_chf as",
            f"cast(behaviour.card_90d_chf * case when {on_the_newest} then 100 else 1 end as",
        ),
    ):
        assert right in model.read_text()
        model.write_text(model.read_text().replace(right, wrong))
    failed = run.again()
    assert failed.code == 1
    told = failed.printed.replace("\n", " ")
    assert "risk_features.account_features: check no_account_feature_is_stuck failed" in told
    assert "risk_features.account_features: check no_account_feature_is_in_other_units failed" in told
    assert "! risk_features.account_features: check no_account_feature_is_unknown_more_or_less_often failed" in told
    files = re.findall(r"its SQL: (\S+/no_account_feature_\w+\.sql)", failed.printed)
    rows = [row for file in files for row in query(run, Path(file).read_text())]
    assert {(feature, day, metric) for feature, day, metric, *_ in rows} == {
        ("declared_income_chf", date(2024, 7, 1), "distinct_count"),
        ("card_90d_chf", date(2024, 7, 1), "mean"),
    }

    # The other entity's features are sound: asked for by itself, its score is made.
    refused = materialize(run, "predictions/expected_card_spend")
    assert refused.returncode != 0
    assert "a check of what it comes from failed last" in refused.stderr
    assert "no_account_feature_is_stuck" in refused.stderr
    assert "unknown_more_or_less_often" not in refused.stderr
    made = materialize(run, "predictions/default_risk")
    assert made.returncode == 0, made.stderr
    assert {score: store.current(run.data / "generations", score) for score in served} == served
    assert run.again(LOANS).code == 0, "sound again, its checks pass"


def test_both_projects_count_in_the_same_way() -> None:
    for file in ("macros/feature_metrics.sql", "macros/point_in_time.sql", "tests/generic/no_jump.sql"):
        assert (SAMPLE / file).read_text() == (LOANS / file).read_text()
