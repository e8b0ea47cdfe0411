"""The sample company on its real data: as good as promised, leaking nothing, workable from the dbt CLI alone."""

import re
import shutil
import subprocess
import sys
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from litestar.testing import TestClient

from ml import training
from orchestration.project import load_project, paths
from serving.app import create_app
from tests.conftest import REPOSITORY, SAMPLE, Run, environment_of, query

LEAST = {"lapse_risk": ("roc_auc", 0.87), "coupon_response": ("roc_auc", 0.90), "expected_spend": ("r2", 0.68)}


@pytest.mark.parametrize("score", LEAST)
def test_a_champion_is_as_good_on_dates_it_never_saw_as_promised(sample_run: Run, score: str) -> None:
    metric, least = LEAST[score]
    ((value, baseline, train_to, holdout_from, holdout_to),) = query(
        sample_run,
        f"""
        select
            (metrics ->> '{metric}')::double, (baseline_metrics ->> '{metric}')::double,
            train_to, holdout_from, holdout_to
        from ml.model_versions where score = '{score}' and promoted_at is not null
        """,
    )
    assert value >= least
    assert value > baseline
    # Labels look 28 days ahead, and the newest that matured by the sample's today are those of 2017-12-04.
    assert holdout_to == date(2017, 12, 4)
    assert (holdout_from - train_to).days >= 28


def test_shuffled_labels_teach_nothing(sample_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOREHOUSE_DATA", str(sample_run.data))
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(SAMPLE))
    score = next(score for score in load_project(paths()).scores if score.name == "lapse_risk")
    (file,) = (sample_run.data / "training_sets" / score.name).iterdir()
    rows = pq.read_table(file)
    shuffled = np.random.default_rng(0).permutation(rows["label"].to_numpy())
    place = rows.schema.get_field_index("label")
    candidate = training.train(rows.set_column(place, "label", pa.array(shuffled)), score)
    assert candidate.metrics["roc_auc"] == pytest.approx(0.5, abs=0.03)


def test_the_features_are_many_and_on_every_monday(sample_run: Run) -> None:
    columns = query(sample_run, "select column_name from duckdb_columns() where table_name = 'household_features'")
    assert len(columns) - 2 >= 40
    days = [
        day for (day,) in query(sample_run, "select distinct as_of_date from features.household_features order by 1")
    ]
    assert (days[0], days[-1]) == (date(2017, 3, 27), date(2018, 1, 1))
    assert {(later - earlier).days for earlier, later in zip(days, days[1:], strict=False)} == {7}


def test_every_customer_of_the_newest_date_is_served_by_each_score(sample_run: Run) -> None:
    customers = query(
        sample_run,
        "select cast(household_id as varchar) from features.household_features where as_of_date = '2018-01-01'",
    )
    assert len(customers) > 2400
    with TestClient(create_app(sample_run.data)) as client:
        listed = {score["name"]: score["customers"] for score in client.get("/scores").json()["scores"]}
        assert listed == dict.fromkeys(LEAST, len(customers))
        for (customer,) in customers[::100]:
            for score in LEAST:
                answer = client.get(f"/scores/{score}/customers/{customer}").json()
                assert (answer["as_of_date"], answer["stale"]) == ("2018-01-01", False)


def fetched_by(page: str) -> list[str]:
    """The addresses that a browser fetches to show the page: of its scripts, styles, images and frames."""
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            wanted = {"link": "href"}.get(tag, "src")
            found.extend(value for name, value in attributes if tag != "a" and name == wanted and value)

    Tags().feed(page)
    return [address for address in found if not address.startswith("data:")]


def test_the_drift_reports_are_linked_and_need_no_network(sample_run: Run) -> None:
    with TestClient(create_app(sample_run.data)) as client:
        index = client.get("/reports").text
        for score in LEAST:
            link = f"/reports/{score}/2018-01-01/drift.html"
            assert link in index
            report = client.get(link)
            assert report.status_code == 200
            assert fetched_by(report.text) == []


@pytest.fixture
def analyst(sample_run: Run, tmp_path: Path) -> Run:
    """An analytics engineer's warehouse, with nothing but the dbt command line."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sample_run.data / "warehouse.duckdb", data)
    return msgspec.structs.replace(sample_run, data=data)


def dbt(run: Run, *arguments: str) -> str:
    environment = environment_of(SAMPLE, run.data, run.home)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dbt"), *arguments],
        cwd=SAMPLE,
        env={**environment, "DO_NOT_TRACK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_build_unit_tests_and_docs_work_from_the_dbt_command_line(analyst: Run) -> None:
    before = set(SAMPLE.rglob("*"))
    built = dbt(analyst, "build")
    assert re.search(r"ERROR=0", built) and re.search(r"unit tests?", built)
    dbt(analyst, "docs", "generate", "--static")
    assert (analyst.data / "dbt" / "target" / "static_index.html").is_file()
    assert set(SAMPLE.rglob("*")) == before
    assert list(analyst.home.rglob("*")) == []


def test_a_full_refresh_gives_the_very_same_features(analyst: Run) -> None:
    hashed = "select count(*), sum(hash(t)::hugeint) from features.household_features as t"
    before = query(analyst, hashed)
    dbt(analyst, "build", "--full-refresh", "--select", "+household_features", "--resource-type", "model", "seed")
    assert query(analyst, hashed) == before


def test_the_readme_states_the_quality_that_was_measured(sample_run: Run) -> None:
    told = re.findall(
        r"\| (\w+) \| (?:ROC AUC|R²) \| ([\d.]+) \| ([\d.]+) .*\| ≥ ([\d.]+) \|", (REPOSITORY / "README.md").read_text()
    )
    assert {score for score, *_ in told} == set(LEAST)
    for score, value, naive, gate in told:
        metric, least = LEAST[score]
        ((measured, baseline),) = query(
            sample_run,
            f"""
            select (metrics ->> '{metric}')::double, (baseline_metrics ->> '{metric}')::double
            from ml.model_versions where score = '{score}'
            """,
        )
        assert float(value) == pytest.approx(measured, abs=0.003)
        assert float(naive) == pytest.approx(baseline, abs=0.003)
        assert float(gate) == least
