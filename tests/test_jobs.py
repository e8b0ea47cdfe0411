"""Jobs as callers see them: what is accepted, what is refused, and what is left behind when something dies."""

import io
import os
import signal
import socket
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from serving.app import create_app
from serving.guarding.bounds import Bound, Bounds
from serving.guarding.callers import ANYBODY, Caller
from serving.jobs import folder as jobs
from serving.jobs.answers import JobDetails
from tests.sample_generations import FEATURES, PUBLISHED, publish
from tests.test_api import eventually, serving
from tests.test_events import largest_file

Client = TestClient[Litestar]
CSV = {"Content-Type": "text/csv"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}
IDS = b"customer_id\n1\n2\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    publish(tmp_path / "data" / "generations")
    return tmp_path / "data"


@pytest.fixture
def client(data: Path) -> Iterator[Client]:
    with TestClient(create_app(data, look_every=0.02)) as client:
        yield client


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def kept(data: Path) -> list[str]:
    """All that lies in the folder of jobs."""
    return sorted(path.name for path in (data / "jobs").glob("*"))


def submitted(client: Client, body: bytes = IDS, **headers: str) -> JobDetails:
    answer = client.post("/scores/churn/jobs", content=body, headers=CSV | headers)
    assert answer.status_code == 202, answer.text
    return msgspec.json.decode(answer.content, type=JobDetails, strict=True)


def test_an_accepted_job_says_where_it_is_and_what_it_waits_for(client: Client, data: Path) -> None:
    answer = client.post("/scores/churn/jobs", content=IDS, headers=CSV)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['job']}"
    assert answer.headers["retry-after"] == "5"
    assert (job["state"], job["what"], job["submitted_by"], job["bytes"]) == ("queued", "ids", "anybody", len(IDS))
    assert job["note"] == (
        "It waits, and nothing has looked for jobs yet: make ui starts what does them, and make jobs does them at once."
    )
    assert (data / "jobs" / job["job"] / "input.csv").read_bytes() == IDS
    jobs.look_recorded(data / "jobs")
    again = client.get(answer.headers["location"])
    assert again.headers["retry-after"] == "5"
    assert again.json()["note"] == "It waits for a run: Dagster looked for jobs 0 s ago, and starts one."
    os.utime(data / "jobs" / "LOOKED", (1, 1))
    assert "nothing has looked for jobs for" in client.get(answer.headers["location"]).json()["note"]


NAMES = [feature.name for feature in FEATURES]
ALL = ",".join(f'"{name}"'.replace('"84d"', '""84d""') for name in NAMES)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"customer_id\r\n1\r\n", "ids"),
        (b"\xef\xbb\xbfcustomer_id\n1\n", "ids"),
        (f"{ALL}\n".encode(), "features"),
        (f"customer_id,{ALL}\n".encode(), "features"),
        (parquet(pa.table({"customer_id": pa.array([1], pa.int64())})), "ids"),
        (parquet(pa.table({name: pa.array([], pa.null()) for name in reversed(NAMES)})), "features"),
    ],
)
def test_a_file_is_known_by_its_columns(client: Client, body: bytes, what: str) -> None:
    headers = PARQUET if body.startswith(b"PAR1") else CSV
    answer = client.post("/scores/churn/jobs", content=body, headers=headers)
    assert answer.json()["what"] == what, answer.text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "The file has no first line with the names of its columns."),
        (b"customer_id,customer_id\n", "The file has columns of the same name: customer_id."),
        (b"customer_id,colour\n", f"Missing: {', '.join(NAMES)}. Unknown: colour. Possible: customer_id alone, for"),
        (ALL.replace('"balance_eur",', "").encode() + b"\n", "can be scored. Missing: balance_eur. Possible:"),
        (b"customer_id;colour\n", "A CSV has commas between its columns."),
        (b"\xff\xfe\n", "The file's first line is no header of a CSV in UTF-8"),
        (b'a,"b', "Missing: days_since_last_visit"),
        (b"PAR1 and no more", "The file is no Parquet that can be read"),
        (
            parquet(pa.table({name: pa.array([], pa.date32()) for name in NAMES})),
            "column 'days_since_last_visit' is of type date32[day], asked is INTEGER; column 'visits_28d_count'",
        ),
        (
            parquet(pa.table({"customer_id": pa.array([1.5])})),
            "column 'customer_id' is of type double, asked is text or a whole number",
        ),
    ],
)
def test_columns_that_say_nothing_are_refused_with_what_is_possible(
    client: Client, data: Path, body: bytes, told: str
) -> None:
    answer = client.post("/scores/churn/jobs", content=body, headers=PARQUET if body.startswith(b"PAR1") else CSV)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert told in answer.json()["detail"]
    assert str(data) not in answer.text
    assert kept(data) == []


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "told"),
    [
        ("/scores/none/jobs", CSV, IDS, 404, "Unknown score 'none'. Known scores: churn."),
        ("/scores/churn/jobs", {}, b"", 400, "There is nothing to score. Send a file with Content-Type text/csv or"),
        ("/scores/churn/jobs", {"Content-Type": "text/plain"}, IDS, 415, "'text/plain' is no Content-Type of a job."),
        ("/scores/churn/jobs?as_of=2024-03-05", {}, b"", 422, "no scores as of 2024-03-05 yet: the newest are of 2024"),
        ("/scores/churn/jobs?as_of=2024-03-04", CSV, IDS, 422, "A job scores a file or a date"),
        ("/scores/churn/jobs?as_of=yesterday", {}, b"", 400, "as_of: Invalid"),
        (
            "/scores/churn/jobs",
            CSV | {"Content-Length": "99"},
            IDS,
            400,
            "The body ended after 16 of the 99",
        ),
    ],
)
def test_a_request_that_is_no_job_is_refused_and_nothing_of_it_kept(
    client: Client, data: Path, path: str, headers: dict[str, str], body: bytes, status: int, told: str
) -> None:
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]
    assert kept(data) == []


def test_the_same_idempotency_key_gives_the_same_job_and_refuses_another(client: Client, data: Path) -> None:
    first = submitted(client, **{"Idempotency-Key": "monday"})
    again = client.post("/scores/churn/jobs", content=IDS, headers=CSV | {"Idempotency-Key": "monday"})
    assert (again.status_code, again.json()["job"]) == (200, first.job)
    other = client.post("/scores/churn/jobs", content=IDS + b"3\n", headers=CSV | {"Idempotency-Key": "monday"})
    assert other.status_code == 409
    assert other.json()["detail"] == (
        "This Idempotency-Key belongs to another request of yours. Another request needs another key."
    )
    assert submitted(client).job != submitted(client).job, "without a key each request is a job"
    assert len([name for name in kept(data) if jobs.JOB_ID.fullmatch(name)]) == 3


def test_a_job_belongs_to_its_key_and_an_admin_sees_all(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking(name: str, *permissions: Any, scores: frozenset[str] | None = None) -> None:
        caller = Caller(name=name, permissions=frozenset(permissions), scores=scores)
        monkeypatch.setattr("serving.guarding.guard.ANYBODY", caller)

    asking("crm", "jobs")
    mine = submitted(client, **{"Idempotency-Key": "1"})
    asking("shop", "jobs")
    for path in ("", "/result", "/errors"):
        refused = client.get(f"/jobs/{mine.job}{path}")
        assert refused.status_code == 404
        assert refused.json()["detail"] == f"There is no job '{mine.job}'. GET /jobs lists yours."
    assert client.delete(f"/jobs/{mine.job}").status_code == 404
    assert client.get("/jobs").json() == {"jobs": []}
    assert submitted(client, **{"Idempotency-Key": "1"}).job != mine.job, "its keys are its own"
    asking("boss", "admin")
    assert len(client.get("/jobs").json()["jobs"]) == 2
    asking("crm", "jobs", scores=frozenset())
    assert client.get(f"/jobs/{mine.job}").status_code == 404
    unknown = client.post("/scores/churn/jobs", content=IDS, headers=CSV)
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "Unknown score 'churn'. Known scores: none yet.")
    assert ANYBODY.may("admin"), "who is on loopback without keys sees all"


def test_a_score_that_is_refused_once_stale_takes_no_jobs_of_ids(client: Client, data: Path) -> None:
    monday = {"Idempotency-Key": "monday"}
    before = submitted(client, **monday).job
    publish(data / "generations", "g2", when_stale="refuse", today=date(2024, 3, 20))
    eventually(lambda: client.get("/scores/churn").json()["generation"] == "g2")
    refused = client.post("/scores/churn/jobs", content=IDS, headers=CSV)
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("Score 'churn' is stale, and its owner has it refused then")
    assert [job["job"] for job in client.get("/jobs").json()["jobs"]] == [before]
    again = client.post("/scores/churn/jobs", content=IDS, headers=CSV | monday)
    assert (again.status_code, again.json()["job"]) == (200, before)
    assert client.post("/scores/churn/jobs?as_of=2024-03-04").status_code == 202
    names = ",".join(f'"{feature.name.replace(chr(34), 2 * chr(34))}"' for feature in FEATURES)
    assert submitted(client, f"{names}\n".encode()).what == "features", "which the model scores as it is"


def test_a_job_whose_files_cannot_be_read_stops_no_other(client: Client, data: Path) -> None:
    first, second, third = (submitted(client).job for _ in range(3))
    (data / "jobs" / first / "job.json").write_text("{")
    (data / "jobs" / second / "state.json").write_text("{")
    assert [job["job"] for job in client.get("/jobs").json()["jobs"]] == [third, second]
    assert client.get(f"/jobs/{first}").status_code == 404
    failed = client.get(f"/jobs/{second}").json()
    assert failed["state"] == "failed" and failed["note"].startswith("its state can't be read")
    assert [job.job for job in jobs.waiting(data / "jobs")] == [third]


def test_a_queued_job_is_cancelled_at_once_and_has_no_result(client: Client) -> None:
    job = submitted(client).job
    early = client.get(f"/jobs/{job}/result")
    assert (early.status_code, early.headers["retry-after"]) == (409, "5")
    cancelled = client.delete(f"/jobs/{job}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert "retry-after" not in cancelled.headers
    assert client.delete(f"/jobs/{job}").json() == cancelled.json()
    never = client.get(f"/jobs/{job}/result")
    assert (never.status_code, "retry-after" in never.headers) == (409, False)
    assert never.json()["detail"] == f"Job {job} is cancelled, so it has no result."


def test_jobs_are_listed_newest_first_and_by_state_and_as_a_page_without_scripts(client: Client) -> None:
    ids = [submitted(client).job for _ in range(3)]
    client.delete(f"/jobs/{ids[1]}")
    assert [job["job"] for job in client.get("/jobs").json()["jobs"]] == ids[::-1]
    assert [job["job"] for job in client.get("/jobs?limit=1").json()["jobs"]] == ids[2:]
    assert [job["job"] for job in client.get("/jobs?state=cancelled").json()["jobs"]] == [ids[1]]
    assert client.get("/jobs?state=lost").status_code == 400
    page = client.get("/jobs", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert all(job in page.text for job in ids)
    assert "make jobs does them at once" in page.text
    assert page.text.count("not counted yet") == 2, "a cancelled job's rows are counted no more"
    assert "<script" not in page.text


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_large_is_refused_and_nothing_of_it_kept(data: Path, announced: bool) -> None:
    body = IDS * 100
    with TestClient(create_app(data, bounds=Bounds(jobs=Bound(1_000, by_piece=True)))) as client:
        answer = client.post("/scores/churn/jobs", content=body if announced else iter([body, body]), headers=CSV)
    assert answer.status_code == 413
    assert answer.json()["detail"] == (
        "The body has more than the 1,000 bytes that a job's file may have (SCOREHOUSE_JOB_BYTES). Send several."
    )
    assert kept(data) == []


def test_a_full_disk_refuses_a_job_with_the_reason_and_keeps_nothing_of_it(client: Client, data: Path) -> None:
    with largest_file(100_000):
        answer = client.post("/scores/churn/jobs", content=b"customer_id\n" + b"1\n" * 100_000, headers=CSV)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert answer.json()["detail"].startswith("The job can't be kept at the moment: File too large.")
    assert kept(data) == []
    assert submitted(client).state == "queued"


def test_a_full_disk_refuses_to_cancel_with_the_reason_and_a_later_try_does_it(client: Client) -> None:
    job = submitted(client).job
    with largest_file(10):
        answer = client.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert answer.json()["detail"].startswith("The job can't be cancelled at the moment: File too large.")
    assert client.get(f"/jobs/{job}").json()["state"] == "queued"
    assert client.delete(f"/jobs/{job}").json()["state"] == "cancelled"


def uploading(port: int) -> socket.socket:
    """A request that has sent half of its body."""
    connection = socket.create_connection(("127.0.0.1", port))
    head = (
        "POST /scores/churn/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\nContent-Length: 100\r\n\r\n"
    )
    connection.sendall(head.encode() + IDS)
    return connection


def test_what_was_cut_off_leaves_nothing_and_what_died_is_cleared_by_the_next_upload(data: Path) -> None:
    def staged() -> list[Path]:
        return list((data / "jobs").glob(".staging-*/lock"))

    with serving(data) as server:
        with uploading(server.port):
            eventually(lambda: len(staged()) == 1, 5)
        eventually(lambda: staged() == [], 5)
        with uploading(server.port):
            eventually(lambda: len(staged()) == 1, 5)
            for pid in workers_of(server.process.pid):
                os.kill(pid, signal.SIGKILL)
        assert len(staged()) == 1
    with TestClient(create_app(data)) as client:
        assert client.get("/jobs").json() == {"jobs": []}
        submitted(client)
    assert staged() == []


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def test_what_is_killed_before_the_rename_is_no_job_and_behind_it_is_one(data: Path) -> None:
    root = data / "jobs"
    job = jobs.Job(job="a" * 24, score="churn", caller="crm", what="ids", request="", submitted_at=PUBLISHED)
    for is_renamed in (False, True):
        if (child := os.fork()) == 0:
            with jobs.staged(root, "upload") as folder:
                if not is_renamed:
                    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
                (folder / "input.csv").write_bytes(IDS)
                jobs.accept(root, folder, job)
                os.kill(os.getpid(), signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert [found.job for found in jobs.waiting(root)] == ([job.job] if is_renamed else [])
        jobs.tidy(root, 30)
        assert [name for name in kept(data) if name.startswith(".")] == []
    with pytest.raises(jobs.JobRefused), jobs.staged(root, "upload") as folder:
        jobs.accept(root, folder, job)
