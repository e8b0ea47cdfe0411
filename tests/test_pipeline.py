"""The second project, another company's, goes through the engine without a line of Python: to a served score."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest
from litestar.testing import TestClient

from serving.app import create_app
from serving.generations import store
from tests.conftest import LOANS, REPOSITORY, SAMPLE, Run, copy_of, environment_of, materialize, query, served_rows

SCORE = "default_risk"
VERSIONS = f"select version, promoted_at is not null from ml.model_versions where score = '{SCORE}' order by 1"


def contents(run: Run) -> dict[str, tuple[Any, ...]]:
    """Every table of the warehouse -> its rows and a hash of them, ledgers included."""
    tables = query(run, "select schema_name, table_name from duckdb_tables() order by all")
    return {
        f"{schema}.{table}": query(run, f'select count(*), sum(hash(t)::hugeint) from "{schema}"."{table}" as t')[0]
        for schema, table in tables
    }


def test_a_run_shows_each_asset_with_its_rows_and_ends_with_the_scores(loans_run: Run) -> None:
    assert re.search(r"✓ bank\.accounts +[\d,]+ rows +\d+\.\d s", loans_run.printed)
    assert re.search(rf"✓ generations\.{SCORE} +[\d,]+ rows", loans_run.printed)
    assert re.search(
        rf"{SCORE} .*roc_auc >= 0\.70 \(roc_auc 0\.\d+\): passed.*version 1 .*2024-07-01", loans_run.printed
    )
    assert re.search(
        r"^  SCOREHOUSE_.* make serve\n +API and pages on http://127\.0\.0\.1:8000$", loans_run.printed, re.M
    )
    log = re.search(r"the full log is (\S+)", loans_run.printed.replace("\n", " "))
    assert log is not None
    assert "dbt build" in Path(log.group(1)).read_text()


def test_the_score_is_served_as_the_warehouse_holds_it(loans_run: Run) -> None:
    rows = query(
        loans_run,
        f"""
        select branch_code, loan_no, score, band, model_version, as_of_date from predictions.{SCORE}
        where as_of_date = (select max(as_of_date) from predictions.{SCORE}) order by hash(loan_no) limit 50
        """,
    )
    assert len(rows) == 50
    with TestClient(create_app(loans_run.data)) as client:
        for branch, loan, score, band, version, as_of in rows:
            answer = client.get(f"/scores/{SCORE}/customers/{quote(store.customer_key([branch, loan]))}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert (found["value"], found["band"], found["model_version"]) == (score, band, version)
            assert found["as_of_date"] == as_of.isoformat()
            assert found["stale"] is False
            assert len(found["reasons"]) == 3
        assert client.get("/health/ready").status_code == 200


def test_its_features_are_served_as_the_warehouse_holds_them(loans_run: Run) -> None:
    rows = query(
        loans_run,
        """
        select
            branch_code, loan_no, amount_chf, has_guarantor, approved_at, opened_on, canton,
            instalment_to_salary_ratio
        from risk_features.loan_features where scored_on = (select max(scored_on) from risk_features.loan_features)
        order by hash(loan_no) limit 50
        """,
    )
    assert any("," in branch + loan for branch, loan, *_ in rows), "no key is unusual, so this would check less"
    with TestClient(create_app(loans_run.data)) as client:
        for branch, loan, amount, guarantor, approved, opened, canton, ratio in rows:
            customer_id = quote(store.customer_key([branch, loan]), safe="")
            answer = client.get(f"/customers/{customer_id}/features?score={SCORE}")
            assert answer.status_code == 200, answer.text
            found = answer.json()["features"]
            assert len(found) > 20
            assert (found["amount_chf"], found["has_guarantor"], found["canton"]) == (str(amount), guarantor, canton)
            assert (found["approved_at"], found["opened_on"]) == (approved.isoformat(), opened.isoformat())
            assert found["instalment_to_salary_ratio"] == ratio


def test_keys_with_commas_and_letters_beyond_ascii_are_served(loans_run: Run) -> None:
    rows = query(loans_run, f"select distinct branch_code, loan_no from predictions.{SCORE}")
    unusual = [row for row in rows if not "".join(row).isascii() or "," in "".join(row) or " " in "".join(row)]
    assert unusual, "the project has no unusual key, so this would check nothing"


def test_every_date_after_the_champions_training_data_is_scored_once_per_customer(loans_run: Run) -> None:
    ((train_to, version),) = query(
        loans_run, f"select train_to, version from ml.model_versions where score = '{SCORE}'"
    )
    per_date = query(
        loans_run,
        f"""
        select features.scored_on, count(*), count(predictions.score), count(distinct predictions.model_version)
        from risk_features.loan_features as features
        left join predictions.{SCORE} as predictions
            on predictions.branch_code = features.branch_code and predictions.loan_no = features.loan_no
            and predictions.as_of_date = features.scored_on and predictions.model_version = {version}
        group by 1 order by 1
        """,
    )
    assert [day for day, _, scored, _ in per_date if scored] == [day for day, *_ in per_date if day > train_to]
    assert all(rows == scored and versions == 1 for day, rows, scored, versions in per_date if day > train_to)


def test_the_holdout_was_never_trained_on(loans_run: Run) -> None:
    ((train_to, holdout_from, train_rows, training_set),) = query(
        loans_run,
        f"select train_to, holdout_from, train_rows, training_set from ml.model_versions where score = '{SCORE}'",
    )
    file = loans_run.data / "training_sets" / SCORE / f"{training_set}.parquet"
    matured = query(
        loans_run,
        f"select count(*), max(matures_on) from '{file}'"
        f" where scored_on <= date '{train_to}' and matures_on <= date '{holdout_from}'",
    )
    assert matured[0][0] == train_rows
    assert matured[0][1] <= holdout_from


def run_on_a_terminal(run: Run) -> tuple[int, str]:
    """A run as a person sees it: its exit code, and all that the screen was sent."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "orchestration.run"],
        cwd=REPOSITORY,
        env={**environment_of(LOANS, run.data, run.home), "TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how the kernel says that the other end was closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    return process.returncode, shown.decode()


def test_two_more_runs_at_once_queue_and_change_nothing_and_on_a_terminal_a_bar_shows_what_is_done_now(
    loans_run: Run, tmp_path: Path
) -> None:
    run = copy_of(loans_run, tmp_path)
    before = contents(run)
    generation = store.current(run.data / "generations", SCORE)
    files = {
        path: path.stat().st_mtime_ns
        for room in ("generations", "models", "training_sets", "reports")
        for path in (run.data / room).rglob("*.*")
        if not path.name.startswith(".verified-")  # of a copy of the files it is written anew
    }
    with ThreadPoolExecutor() as beside:
        other = beside.submit(run.again, LOANS)
        code, screen = run_on_a_terminal(run)
    assert code == 0, screen
    assert other.result().code == 0, other.result().printed
    assert "waiting for" in screen + other.result().printed
    assert "reading the dbt project" in screen and "Running dbt command" in screen
    assert re.search(r"\d+/28", screen)
    assert "STEP_START" not in screen and "DEBUG" not in screen, "the log stays away"
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    for asset in (
        "bank.accounts",
        f"training_sets.{SCORE}",
        f"models.{SCORE}",
        f"predictions.{SCORE}",
        f"generations.{SCORE}",
        f"reports.{SCORE}_drift",
        f"reports.{SCORE}_performance",
        f"reports.{SCORE}",
    ):
        for printed in (lines, other.result().printed):
            assert re.search(rf"✓ {re.escape(asset)} .*unchanged", printed), f"{asset} was made again:\n{printed}"
    assert contents(run) == before
    assert store.current(run.data / "generations", SCORE) == generation
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_the_run_is_recorded_where_the_ui_looks(loans_run: Run) -> None:
    import dagster as dg

    with dg.DagsterInstance.from_config(str(loans_run.data / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.job_name == "everything"
        assert run.status == dg.DagsterRunStatus.SUCCESS
        event = instance.get_latest_materialization_event(dg.AssetKey(["risk_features", "loan_features"]))
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["dagster/row_count"].value > 10_000
    lineage: Any = metadata["dagster/column_lineage"].value
    assert set(lineage.deps_by_column) >= {"branch_code", "loan_no", "scored_on"}
    assert all(lineage.deps_by_column[key] for key in ("branch_code", "loan_no"))


def test_nothing_is_written_outside_the_data_folder(loans_run: Run) -> None:
    assert list(loans_run.home.rglob("*")) == []
    status = [
        "git",
        "status",
        "--porcelain",
        "--ignored",
        "--",
        "dbt_project",
        "tests/projects",
        "orchestration",
        "ml",
        "serving",
    ]
    listed = subprocess.run(status, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if line.startswith("!!") and "__pycache__" not in line] == []
    assert not (REPOSITORY / "target").exists() and not (REPOSITORY / "logs").exists()


@pytest.mark.parametrize("project", [SAMPLE, LOANS], ids=["sample", "loans"])
def test_lineage_runs_unbroken_from_raw_tables_to_generations(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    from orchestration.definitions import define
    from orchestration.project import load_project, paths

    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(project))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    where = paths()
    definitions = define(where)
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    loaded = load_project(where)
    raw = {key for key in graph.get_all_asset_keys() if graph.get(key).group_name == "raw"}
    assert len(raw) == len(loaded.sources)
    generations = {dg.AssetKey(["generations", score.name]) for score in loaded.scores}

    def upstream(keys: set[dg.AssetKey]) -> set[dg.AssetKey]:
        found: set[dg.AssetKey] = set()
        while keys - found:
            found |= keys
            keys = {parent for key in keys for parent in graph.get(key).parent_keys}
        return found

    assert raw <= upstream(generations)
    for key in graph.get_all_asset_keys():
        asset = graph.get(key)
        assert asset.is_materializable or asset.group_name == "quality", f"{key} is made by nothing"
        assert asset.kinds and asset.group_name != "default" and asset.description, key
    for key in generations:
        assert graph.get(key).owners
    checks = {check.name for check in graph.asset_check_keys}
    assert {"gate", "published_equals_warehouse"} <= checks
    assert any(name.startswith("source_") for name in checks), "tests of sources are no asset checks"


def test_a_failing_model_is_named_and_the_old_generation_serves_on(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    served = store.current(run.data / "generations", SCORE)
    model = run.project / "models" / "risk_features" / "loan_features.sql"
    model.write_text(model.read_text().replace("select * from", "select *, 1 / (select no_such_column) as broken from"))
    failed = run.again()
    assert failed.code == 1
    assert "loan_features" in failed.printed and "no_such_column" in failed.printed
    assert "what was published before serves on" in failed.printed.replace("\n", " ")
    assert re.search(r"Read more in \S+/logs/run-\S+\.log", failed.printed.replace("\n", " "))
    assert "Traceback" not in failed.printed
    assert store.current(run.data / "generations", SCORE) == served


def test_a_customer_id_that_cant_be_published_ends_the_run_and_is_named(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    served = store.current(run.data / "generations", SCORE)
    model = run.project / "models" / "refined" / "stg_bank__loans.sql"
    longer = "case loan_no when 'K24-0653' then repeat('é', 300) else loan_no end as loan_no,"
    model.write_text(model.read_text().replace("        loan_no,\n", f"        {longer}\n"))
    failed = run.again()
    assert failed.code == 1
    assert re.search(rf"✗ generations\.{SCORE}: customer id '.+é\.\.\.' has \d+ bytes, 511 are", failed.printed)
    assert store.current(run.data / "generations", SCORE) == served


def test_a_failing_data_test_stops_what_is_downstream(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    served, scored = store.current(run.data / "generations", SCORE), contents(run)[f"predictions.{SCORE}"]
    (run.project / "tests" / "assert_there_are_no_loans.sql").write_text("select 1 from {{ ref('loan_features') }}")
    failed = run.again()
    assert failed.code == 1
    assert "assert_there_are_no_loans" in failed.printed
    assert f"predictions.{SCORE}" not in failed.printed.partition("Failed")[0]
    assert store.current(run.data / "generations", SCORE) == served
    assert contents(run)[f"predictions.{SCORE}"] == scored

    # A later run of what is downstream alone, which does not evaluate the check again.
    later = materialize(run, f"predictions/{SCORE}")
    assert later.returncode != 0
    told = re.search(r"not made, as a check of what it comes from failed last: (.*)\. What was published", later.stderr)
    assert told is not None and "assert_there_are_no_loans" in told[1], later.stderr


def test_a_source_whose_test_failed_is_built_on_again_once_its_data_is_mended(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    file = run.project / "data" / "transactions_2024.parquet"
    whole = file.read_bytes()
    duckdb.execute(f"copy (select * replace ('bribe' as kind) from '{file}') to '{tmp_path / 'other.parquet'}'")
    shutil.copy(tmp_path / "other.parquet", file)
    failed = run.again()
    assert failed.code == 1
    assert "source_accepted_values_bank_transactions_kind" in failed.printed
    file.write_bytes(whole)
    mended = run.again()
    assert mended.code == 0, mended.printed


def gate_of(run: Run, old: str, new: str) -> None:
    file = run.project / "models" / "scores.yml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_gate_raised_beyond_reach_refuses_and_the_champion_goes_on(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    served = store.current(run.data / "generations", SCORE)
    gate_of(run, "roc_auc >= 0.70", "roc_auc >= 0.999")
    # A row less is another training set, so another candidate.
    file = run.project / "models" / "risk_labels" / "loan_default_90d.sql"
    file.write_text(
        file.read_text().rstrip() + "\nwhere loan_no <> (select min(loan_no) from {{ ref('stg_bank__loans') }})\n"
    )
    refused = run.again()
    assert refused.code == 0, refused.printed
    assert re.search(
        rf"! models\.{SCORE}: check gate failed: roc_auc >= 0\.999 \(roc_auc 0\.\d+\): failed", refused.printed
    )
    versions = query(run, VERSIONS)
    assert versions == [(1, True), (2, False)]
    verdicts = query(run, f"select condition, passed from ml.gate_results where score = '{SCORE}' and version = 2")
    assert ("roc_auc >= 0.999", False) in verdicts
    assert query(run, f"select distinct model_version from predictions.{SCORE}") == [(1,)]
    assert str(store.current(run.data / "generations", SCORE)).startswith(str(served)[:13])


def test_a_score_that_becomes_an_amount_starts_anew(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    gate_of(run, "kind: probability", "kind: amount")
    gate_of(run, "roc_auc >= 0.70", "r2 >= -5")
    gate_of(run, "roc_auc >= baseline_roc_auc", "rmse <= 100")
    gate_of(run, "roc_auc >= champion_roc_auc - 0.02", "r2 >= champion_r2 - 0.02")
    changed = run.again()
    assert changed.code == 0, changed.printed
    generation, _ = served_rows(run, SCORE)
    assert (generation.kind, generation.model_version) == ("amount", 2)
    gate_of(run, "r2 >= -5", "r2 >= 5")  # the reigning version goes on under a gate that came later, and that is told
    refused = run.again()
    assert refused.code == 0, refused.printed
    assert "by an earlier gate" in refused.printed and re.search(r"\d+ checks passed, 1 failed", refused.printed)


def test_a_date_withdrawn_and_a_model_lost_are_made_good(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    settings = run.project / "dbt_project.yml"
    settings.write_text(settings.read_text().replace("today: '2024-07-01'", "today: '2024-08-01'"))
    ahead = run.again()
    assert ahead.code == 0, ahead.printed
    assert str(served_rows(run, SCORE)[0].as_of_date) == "2024-08-01"
    shutil.rmtree(run.data / "models" / SCORE)
    back = run.again(LOANS)
    assert back.code == 0, back.printed
    generation, rows = served_rows(run, SCORE)
    assert str(generation.as_of_date) == "2024-07-01"
    assert query(run, f"select max(as_of_date)::varchar from predictions.{SCORE} where model_version = 3") == [
        ("2024-07-01",)
    ]
    assert len(rows) == len(served_rows(loans_run, SCORE)[1])


def test_without_a_champion_nobody_is_scored_and_the_condition_is_told(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    for room in ("warehouse.duckdb", "generations", "models", "training_sets"):
        subprocess.run(["rm", "-r", str(run.data / room)], check=True)
    gate_of(run, "roc_auc >= 0.70", "roc_auc >= 0.999")
    refused = run.again()
    assert refused.code == 1
    assert "no version has passed its gate yet" in refused.printed
    assert re.search(r"roc_auc >= 0\.999 \(roc_auc 0\.\d+\): failed", refused.printed)
    assert not (run.data / "generations" / SCORE / "CURRENT").exists()
    # The other score of the project is none the worse.
    assert store.current(run.data / "generations", "expected_card_spend") is not None


def test_a_lowered_gate_promotes_the_version_it_refused(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    with duckdb.connect(str(run.data / "warehouse.duckdb")) as connection:
        of_score = f"where score = '{SCORE}'"
        connection.execute(f"update ml.model_versions set promoted_at = null {of_score}")
        connection.execute(f"delete from ml.promotions {of_score}")
        connection.execute(f"update ml.gate_results set condition = 'roc_auc >= 0.999', passed = false {of_score}")
    again = run.again(LOANS)
    assert again.code == 0, again.printed
    assert query(run, VERSIONS) == [(1, True)]


def test_a_declaration_mistaken_is_one_line_before_anything_runs(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    gate_of(run, "fresh_for: 40 days", "fresh: 40 days")
    mistaken = run.again()
    assert mistaken.code == 1
    assert "project/models/scores.yml: exposure 'default_risk': score: unknown key 'fresh'" in mistaken.printed
    assert "✓" not in mistaken.printed


def kill_at(run: Run, moment: str) -> None:
    """Begins a run, and kills it with all it has started as a step begins."""
    before = set((run.data / "logs").iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.run"],
        cwd=REPOSITORY,
        env=environment_of(run.project, run.data, run.home),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(f"{moment} - STEP_START" in log.read_text() for log in set((run.data / "logs").iterdir()) - before):
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_runs_killed_at_one_moment_after_the_other_are_completed_by_the_next(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    label = run.project / "models" / "risk_labels" / "loan_default_90d.sql"
    label.write_text(
        label.read_text().rstrip() + "\nwhere loan_no <> (select min(loan_no) from {{ ref('stg_bank__loans') }})\n"
    )
    served = store.current(run.data / "generations", SCORE)
    for moment in ("dbt_build", f"models__{SCORE}", f"predictions__{SCORE}", f"generations__{SCORE}"):
        kill_at(run, moment)
        assert store.current(run.data / "generations", SCORE) == served, moment
        store.verify(run.data / "generations" / SCORE / str(served))

    completed = run.again()
    assert completed.code == 0, completed.printed
    ((twice,),) = query(
        run,
        f"select count(*) - count(distinct (branch_code, loan_no, as_of_date, model_version)) from predictions.{SCORE}",
    )
    assert twice == 0
    assert [version for version, _ in query(run, VERSIONS)] == [1, 2]
    newest = store.verify(run.data / "generations" / SCORE / str(store.current(run.data / "generations", SCORE)))
    assert newest.model_version == max(version for version, promoted in query(run, VERSIONS) if promoted)


def test_the_card_is_published_with_the_score(loans_run: Run) -> None:
    folder = loans_run.data / "generations" / SCORE / str(store.current(loans_run.data / "generations", SCORE))
    card = json.loads((folder / "card.json").read_bytes())
    assert card["metrics"].keys() == card["baseline"].keys()
    assert card["baseline_name"]
    assert store.verify(folder).metrics == card["metrics"]
