"""What becomes of jobs: Dagster's runs score them, and go on where another was killed."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from orchestration import job_scoring, warehouse
from orchestration import jobs as working
from orchestration.definitions import define
from orchestration.instance import open_instance
from orchestration.project import Paths, paths
from serving.app import create_app
from serving.generations.generation import customer_key
from serving.jobs import folder as jobs
from tests.conftest import LOANS, REPOSITORY, Run, environment_of, query
from tests.test_api import eventually

SCORE = "default_risk"
NEWEST = "2024-07-01"
CSV = {"Content-Type": "text/csv"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


class Bank(msgspec.Struct):
    """A bank's data with its API, and Dagster as `make ui` has it, whose daemon is the test."""

    run: Run
    where: Paths
    client: TestClient[Litestar]
    instance: dg.DagsterInstance
    definitions: dg.Definitions

    def submit(self, body: bytes, headers: dict[str, str], score: str = SCORE, asked: str = "") -> str:
        answer = self.client.post(f"/scores/{score}/jobs{asked}", content=body, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"])

    def look(self) -> list[dg.RunRequest]:
        """One look of the sensor, and what it wants to be run."""
        with dg.build_sensor_context(instance=self.instance) as context:
            found = self.definitions.resolve_sensor_def("jobs_waiting").evaluate_tick(context)
        return list(found.run_requests or [])

    def work(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """What Dagster does of a request."""
        job = self.definitions.resolve_job_def("scoring_jobs")
        return job.execute_in_process(
            instance=self.instance, run_config=request.run_config, tags=dict(request.tags), raise_on_error=False
        )

    def told(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/jobs/{job}").json()
        return found

    def done(self, job: str) -> dict[str, Any]:
        """A job, once Dagster has done it."""
        (request,) = self.look()
        assert self.work(request).success
        told = self.told(job)
        assert told["state"] == "done", told
        return told

    def result(self, job: str, name: str = "result") -> list[dict[str, Any]]:
        answer = self.client.get(f"/jobs/{job}/{name}?format=parquet")
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(answer.content)).to_pylist()
        return rows


@pytest.fixture(scope="module")
def bank(loans_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("bank")
    # Only what jobs need: dbt's manifest is of the same project, so it is read as it is.
    data = folder / "data"
    subprocess.run(["cp", "-r", str(loans_run.data), str(data)], check=True)
    run = msgspec.structs.replace(loans_run, data=data)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in environment_of(LOANS, data, folder).items():
            environment.setenv(name, value)
        where = paths()
        definitions = define(where)
        with open_instance(where) as instance, TestClient(create_app(data)) as client:
            yield Bank(run, where, client, instance, definitions)


@pytest.fixture(scope="module")
def features(bank: Bank) -> pa.Table:
    """The features that the newest scores were made from, with the ids."""
    with warehouse.open_warehouse(bank.where.warehouse) as connection:
        rows = f"select * exclude (scored_on) from risk_features.loan_features where scored_on = '{NEWEST}'"
        return connection.sql(f"{rows} order by branch_code, loan_no").to_arrow_table()


@pytest.fixture(scope="module")
def published(bank: Bank) -> dict[str, dict[str, Any]]:
    """Customer -> what the warehouse says of them as of the newest date."""
    columns = ("branch_code", "loan_no", "score", "band", "reasons")
    rows = query(bank.run, f"select {', '.join(columns)} from predictions.{SCORE} where as_of_date = '{NEWEST}'")
    return {customer_key(row[:2]): dict(zip(columns[2:], row[2:], strict=True)) for row in rows}


def as_csv(rows: pa.Table) -> list[str]:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(zip(*(c.cast(pa.string()).to_pylist() for c in rows), strict=True))
    return [",".join(rows.schema.names), *text.getvalue().splitlines()]


def test_rows_of_features_are_scored_as_the_warehouse_has_them_and_wrong_values_cost_their_row_alone(
    bank: Bank, features: pa.Table, published: dict[str, dict[str, Any]]
) -> None:
    lines = as_csv(features)
    place = {name: number for number, name in enumerate(features.schema.names)}

    def wrong(row: int, **cells: str) -> None:
        values = lines[row].split(",")
        for name, value in cells.items():
            values[place[name]] = value
        lines[row] = ",".join(values)

    wrong(2, amount_chf="12.345", opened_on="2024-02-30")
    wrong(3, term_months_count="60.0", has_guarantor="TRUE", purpose="")  # as other programs write the same
    wrong(4, term_months_count="60.5")
    wrong(5, has_guarantor="yes")
    wrong(6, card_to_salary_90d_ratio="1e999")
    wrong(7, approved_at="2024-01-01T10:00:00Z")
    lines[8] += ",more"
    lines[9] = 'a"b,"c"d'
    lines.insert(10, "")  # no row
    job = bank.submit("\n".join(lines).encode(), CSV)
    told = bank.done(job)
    assert (told["rows"], told["total_rows"], told["wrong_rows"]) == (features.num_rows, features.num_rows, 7)
    assert (told["attempts"], told["model_version"], told["note"]) == (1, 1, None)
    faults = [(error["row"], error["column"], error["fault"]) for error in told["errors"]]
    decimals = "not a number with 2 decimal places at most and 12 digits (its type: DECIMAL(12,2))"
    assert faults == [
        (2, "amount_chf", f"is '12.345', {decimals}"),
        (2, "opened_on", "is '2024-02-30', not a date (write 2024-12-31) (its type: DATE)"),
        (4, "term_months_count", "is '60.5', not a whole number in its range (its type: INTEGER)"),
        (5, "has_guarantor", "is 'yes', neither true nor false (its type: BOOLEAN)"),
        (6, "card_to_salary_90d_ratio", "is '1e999', not a number (its type: DOUBLE)"),
        (
            7,
            "approved_at",
            "is '2024-01-01T10:00:00Z', not a timestamp (write 2024-12-31T23:59:59) (its type: TIMESTAMP)",
        ),
        (8, None, "has 26 of the header's 25 values"),
        (9, None, "is no line of a CSV: ',' expected after '\"'"),
    ]
    rows = bank.result(job)
    assert [row["row"] for row in rows] == list(range(1, features.num_rows + 1))
    compared = 0
    for row in rows:
        if row["row"] in (2, 4, 5, 6, 7, 8, 9):
            assert row["value"] is None and row["error"]
        elif row["row"] != 3:  # whose values were changed
            known = published[row["customer_id"]]
            assert (row["value"], row["band"], row["reasons"]) == (known["score"], known["band"], known["reasons"])
            compared += 1
    assert compared == features.num_rows - 8
    assert rows[2]["value"] is not None and rows[2]["error"] is None

    downloaded = list(csv.DictReader(io.StringIO(bank.client.get(f"/jobs/{job}/result").text)))
    assert [(float(row["value"] or -1), row["error"]) for row in downloaded] == [
        (row["value"] or -1, row["error"] or "") for row in rows
    ]
    assert json.loads(downloaded[0]["reasons"]) == rows[0]["reasons"]
    assert [error["row"] for error in bank.result(job, "errors")] == [fault[0] for fault in faults]
    saved = query(
        bank.run, f"select row, branch_code, loan_no, score, error from jobs.{SCORE} where job_id = '{job}' order by 1"
    )
    assert [row[0] for row in saved] == [row["row"] for row in rows]
    assert [customer_key(row[1:3]) for row in saved if row[1]] == [r["customer_id"] for r in rows if r["customer_id"]]
    assert [(row[3], row[4]) for row in saved] == [(row["value"], row["error"]) for row in rows]


def test_a_parquet_file_of_other_but_fitting_types_gives_the_same_scores(
    bank: Bank, features: pa.Table, published: dict[str, dict[str, Any]]
) -> None:
    months = pc.cast(features.column("term_months_count"), pa.float64()).to_pylist()
    months[0] = 7.5
    changed = features.drop_columns(["term_months_count"])
    changed = changed.append_column("term_months_count", pa.array(months, pa.float64()))
    for name, kind in (("amount_chf", pa.float64()), ("purpose", pa.dictionary(pa.int32(), pa.string()))):
        changed = changed.set_column(changed.schema.get_field_index(name), name, changed.column(name).cast(kind))
    file = io.BytesIO()
    pq.write_table(changed, file)
    job = bank.submit(file.getvalue(), PARQUET)
    assert [(error["row"], error["column"]) for error in bank.done(job)["errors"]] == [(1, "term_months_count")]
    rows = bank.result(job)
    assert len(rows) == features.num_rows
    assert all(row["value"] == published[row["customer_id"]]["score"] for row in rows[1:])


def test_ids_are_given_their_published_scores_and_the_unknown_an_error(
    bank: Bank, published: dict[str, dict[str, Any]]
) -> None:
    known = [key for key in sorted(published) if "~" not in key][:3]
    lines = ["loan_no,branch_code", *(",".join(key.split(",")[::-1]) for key in known), "K0,none", "K0,"]
    job = bank.submit("\n".join(lines).encode(), CSV)
    assert bank.done(job)["wrong_rows"] == 2
    rows = bank.result(job)
    assert [row["customer_id"] for row in rows] == [*known, "none,K0", None]
    assert [row["value"] for row in rows] == [*(published[key]["score"] for key in known), None, None]
    assert [row["reasons"] for row in rows[:3]] == [published[key]["reasons"] for key in known]
    assert [row["error"] for row in rows[2:]] == [None, f"is no customer as of {NEWEST}", "has no id"]


def test_a_date_gives_all_customers_of_that_date_and_one_without_scores_what_there_is(bank: Bank) -> None:
    job = bank.submit(b"", {}, asked="?as_of=2024-05-01")
    told = bank.done(job)
    expected = query(bank.run, f"select score from predictions.{SCORE} where as_of_date = '2024-05-01'")
    assert (told["rows"], told["total_rows"]) == (len(expected), len(expected))
    assert sorted(row["value"] for row in bank.result(job)) == sorted(score for (score,) in expected)
    none = bank.submit(b"", {}, asked="?as_of=2024-05-02")
    (request,) = bank.look()
    assert not bank.work(request).success, "Dagster shows it in red"
    told = bank.told(none)
    assert (told["state"], told["attempts"]) == ("failed", 1), "another attempt would find the same"
    assert told["note"].startswith(f"version 1 of score '{SCORE}' has scored nobody as of 2024-05-02; it has as of ")
    assert bank.look() == []


KILLED = """
import os, sys, uuid
from orchestration import job_scoring, jobs
from orchestration.definitions import define
from orchestration.instance import open_instance
from orchestration.project import paths
def half(connection, score, job, result):
    save(connection, score, job, result)
    print("saved", flush=True)
    sys.stdin.read()
save, job_scoring._save = job_scoring._save, half
where = paths()
jobs.work_off(define(where).resolve_job_def("scoring_jobs"), open_instance(where), where, "make jobs", lambda event: 0)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_is_followed_by_another_which_finishes_the_job(
    bank: Bank, published: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    lines = ["customer_id", *(f'"{customer_id}"' for customer_id in published)]
    job = bank.submit("\n".join(lines).encode(), CSV)
    (first,) = bank.look()
    assert [request.run_key for request in bank.look()] == [first.run_key], "Dagster starts a run of this key once"
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=REPOSITORY,
        env=environment_of(LOANS, bank.run.data, tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with killed:
        assert killed.stdout is not None
        assert "saved" in killed.stdout.readline()
        assert bank.told(job)["state"] == "running"
        assert bank.look() == [], "somebody works on it"
        killed.send_signal(signal.SIGKILL)
    told = bank.told(job)
    assert (told["state"], told["attempts"]) == ("queued", 1)
    assert told["note"].startswith("Attempt 1 ended early (its process died). It waits for a run")
    assert bank.client.get(f"/jobs/{job}/result").status_code == 409
    (second,) = bank.look()
    assert second.run_key != first.run_key
    assert bank.work(second).success
    told = bank.told(job)
    assert (told["state"], told["attempts"], told["rows"]) == ("done", 2, len(published))
    assert told["wrong_rows"] == 0
    saved = query(bank.run, f"select count(*), count(distinct row) from jobs.{SCORE} where job_id = '{job}'")
    assert saved == [(len(published), len(published))], "what the first one saved is replaced"


def test_a_running_job_that_is_cancelled_ends_before_its_next_batch_without_a_result(bank: Bank) -> None:
    job = bank.submit(b"customer_id\nx\n", CSV)
    (request,) = bank.look()
    with jobs.held(bank.where.data / "jobs" / job):
        asked = bank.client.delete(f"/jobs/{job}")
        assert asked.json()["note"] == "It is being cancelled: it ends before its next batch."
        assert bank.work(request).success
        assert bank.told(job)["finished_at"] is None, "another process works on it, and will end it"
    bank.work(request)
    assert bank.told(job)["state"] == "cancelled"
    assert not (bank.where.data / "jobs" / job / "result.parquet").exists()
    assert query(bank.run, f"select * from jobs.{SCORE} where job_id = '{job}'") == []


def test_a_job_whose_attempts_all_fail_ends_with_the_reason_and_is_removed_when_it_is_old(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = "expected_card_spend"
    job = bank.submit(b"customer_id\n1\n", CSV, score=score)
    name = (bank.where.generations / score / "CURRENT").read_text().strip()
    file = bank.where.generations / score / name / "card.json"
    sound = file.read_bytes()
    file.unlink()
    file.write_bytes(sound + b" ")
    keys = []
    while requests := bank.look():
        keys.append(requests[0].run_key)
        assert not bank.work(requests[0]).success
    file.write_bytes(sound)
    told = bank.told(job)
    assert (told["state"], told["attempts"], len(set(keys))) == ("failed", 3, 3)
    assert told["note"].startswith(f"3 attempts failed, the last one because: {score}/{name}/card.json: its checksum")
    monkeypatch.setenv("SCOREHOUSE_JOB_DAYS", "0.5")
    assert bank.look() == [] and bank.told(job)["state"] == "failed"
    root = working.jobs_root(bank.where)
    state = jobs.read_state(root, job)
    jobs.write_state(root, job, msgspec.structs.replace(state, finished_at=datetime.now(UTC) - timedelta(days=1)))
    assert bank.look() == []
    assert bank.client.get(f"/jobs/{job}").status_code == 404
    assert not (root / job).exists()


def test_a_job_that_failed_tells_how_far_it_came_and_why_but_not_where_its_files_are(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> None:
        raise job_scoring.JobFailed(f"{bank.where.warehouse}: another program has it open")

    monkeypatch.setattr(job_scoring, "_save", busy)
    job = bank.submit(b"customer_id\nx\n", CSV)
    (request,) = bank.look()
    assert not bank.work(request).success
    told = bank.told(job)
    assert (told["state"], told["rows"], told["wrong_rows"]) == ("failed", 1, 1)
    assert [error["customer_id"] for error in told["errors"]] == ["x"]
    assert told["note"] == f"{bank.where.warehouse.name}: another program has it open"


@pytest.mark.slow
def test_make_jobs_works_off_what_waits_without_dagsters_daemon(bank: Bank, tmp_path: Path) -> None:
    jobs_of_two = [
        bank.submit(b"", {}, asked=f"?as_of={NEWEST}"),
        bank.submit(b"customer_id\n1\n", CSV, score="expected_card_spend"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.jobs"],
        cwd=REPOSITORY,
        env=environment_of(LOANS, bank.run.data, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"✓ job {jobs_of_two[0]} of {SCORE}: " in done.stdout
    assert "2 jobs worked off, 0 failed." in done.stdout
    assert [bank.told(job)["state"] for job in jobs_of_two] == ["done", "done"]
    assert bank.look() == []


@pytest.mark.slow
def test_dagster_killed_with_all_its_processes_does_the_job_once_it_is_started_again(
    bank: Bank, tmp_path: Path
) -> None:
    """`make ui`, as a team runs it: its daemon starts a run, and both die in the middle."""
    rows = 300_000
    job = bank.submit("\n".join(["customer_id", *(f"x{row}" for row in range(rows))]).encode(), CSV)

    def is_under_way() -> bool:
        told = bank.told(job)
        assert told["state"] in ("queued", "running"), told
        return told["state"] == "running" and bool(told["rows"])

    with dagster_of(bank, tmp_path) as ui:
        eventually(is_under_way, 120)
        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait()
        eventually(lambda: bank.told(job)["state"] == "queued", 20)
        killed_at = bank.told(job)
    assert killed_at["attempts"] == 1 and killed_at["note"].startswith("Attempt 1 ended early (its process died)")

    def runs() -> list[str]:
        found = bank.instance.get_runs(dg.RunsFilter(tags={working.TAG: job}))
        return sorted(run.status.value for run in found)

    with dagster_of(bank, tmp_path):
        eventually(lambda: bank.told(job)["state"] == "done", 180)
        eventually(lambda: runs() == ["FAILURE", "SUCCESS"], 20)  # of the dead one it is told that it is dead
    told = bank.told(job)
    assert (told["rows"], told["wrong_rows"], told["attempts"]) == (rows, rows, 2)
    saved = query(bank.run, f"select count(*), count(distinct row) from jobs.{SCORE} where job_id = '{job}'")
    assert saved == [(rows, rows)]


@contextmanager
def dagster_of(bank: Bank, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`make ui` in a process group of its own, until the end of the block, and nothing of it after that."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    environment = {**environment_of(LOANS, bank.run.data, home), "SCOREHOUSE_UI_PORT": port}
    command = [sys.executable, "-m", "orchestration.ui"]
    with (home / f"dagster-{port}.log").open("wb") as log:
        ui = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield ui
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ui.pid, signal.SIGTERM)
        try:
            ui.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(ui.pid, signal.SIGKILL)
            ui.wait()
