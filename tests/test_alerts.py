"""What an owner says of alerts is read strictly; an alert is told once, and one that was not taken is told again."""

import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ml.alerts import ALERTS_EXAMPLES, ALERTS_KEYS, Alerts, read_alerts
from ml.scores import Score
from ml.strictness import sound_part
from orchestration import alerting, drift_tables
from orchestration.alerting import EMAIL, WEBHOOK, message
from orchestration.alerting import send_alerts as send_all
from orchestration.incidents import Known, mark_sent, open_incidents
from orchestration.project import PAGES
from tests.small_data import a_score

SCORE = a_score()
DAY = date(2024, 5, 6)

# --- Declarations


def read(declared: Any) -> tuple[Alerts, list[str]]:
    faults: list[str] = []
    return read_alerts(declared, ["spend", "colour", "town", "age_band"], "here", faults), faults


def test_without_a_declaration_alerts_are_by_default() -> None:
    assert read(None) == read({}) == (Alerts(), [])
    assert (Alerts().segments, Alerts().report) == (None, True)


def test_what_makes_sense_is_read_and_the_rest_stays_as_it_is() -> None:
    assert read({"effect": 1, "dates": 3}) == (Alerts(effect=1.0, dates=3), [])
    assert read({"segments": ["colour", "town"], "report": False, "rows": 50, "impact": 0.01}) == (
        Alerts(segments=("colour", "town"), report=False, rows=50, impact=0.01),
        [],
    )
    assert read({"segments": []})[0].segments == (), "by no segment"


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"efect": 0.1}, "unknown key 'efect' (known: effect, impact, rows, dates, segments, report)"),
        ([0.1], "is [0.1], not a mapping (keys: effect, impact, rows, dates, segments, report)"),
        ({"effect": 0}, "effect is 0, not a share above 0, up to 1"),
        ({"effect": 5}, "effect is 5, not a share above 0, up to 1"),
        ({"effect": float("nan")}, "effect is nan, not a share above 0, up to 1"),
        ({"effect": "much"}, "effect is 'much', not a number (write e.g. effect: 0.05)"),
        ({"impact": -0.1}, "impact is -0.1, not a share above 0, up to 1"),
        ({"impact": True}, "impact is True, not a number (write e.g. impact: 0.003)"),
        ({"rows": 0}, "rows is 0, not a whole number from 1 on"),
        ({"rows": 1.5}, "rows is 1.5, not a whole number (write e.g. rows: 200)"),
        ({"dates": 0}, "dates is 0, not a whole number from 1 on"),
        ({"dates": "two"}, "dates is 'two', not a whole number (write e.g. dates: 2)"),
        ({"segments": "town"}, "segments is 'town', not a list (write e.g. segments: [country])"),
        ({"segments": ["twon"]}, "segments names 'twon', which is no feature (features: town, and 3 more)"),
        ({"segments": [3]}, "segments names 3, which is no feature (features: spend, colour, town, age_band)"),
        (
            {"segments": ["spend", "colour", "town", "age_band"]},
            "segments names 4 columns, and 3 are the most",
        ),
        ({"segments": ["town", "town"]}, "segments names 'town' twice"),
        ({"report": "no page"}, "report is 'no page', not true or false (write e.g. report: false)"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(declared: Any, told: str) -> None:
    assert read(declared)[1] == [f"here: alerts: {told}"]


def test_what_is_told_of_a_key_is_right() -> None:
    faults: list[str] = []
    written = {key: yaml.safe_load(example) for key, example in ALERTS_EXAMPLES.items()}
    assert sound_part(written, ALERTS_KEYS, list(ALERTS_KEYS), "here", faults).keys() == ALERTS_KEYS.keys()
    assert faults == []


# --- Sending

SECRET = "s3cr3t"
Server = TypeVar("Server", bound=socketserver.TCPServer)


class Webhook(HTTPServer):
    """A server that keeps what it gets, and answers as it is told to."""

    def __init__(self, answer: int = 200, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Posted)
        self.answer, self.seconds = answer, seconds
        self.taken: list[tuple[dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}?token={SECRET}"


class Posted(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((dict(self.headers.items()), body))
        time.sleep(self.server.seconds)
        if self.server.answer == 100:
            for _ in range(20):
                time.sleep(0.05)
                self.send_response_only(100)
                self.end_headers()
        self.send_response(self.server.answer)
        self.send_header("Content-Length", "0")
        if self.server.answer == 302:
            self.send_header("Location", "/login")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


class MailServer(socketserver.TCPServer):
    """As much of SMTP as it takes to get mails, from anybody or from nobody."""

    def __init__(self, refuses: str = "", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Mailed)
        self.refuses, self.tls = refuses, tls
        self.said: list[str] = []
        self.mails: list[bytes] = []
        self.sockets: list[socket.socket] = []

    def server_close(self) -> None:
        super().server_close()
        for one in self.sockets:
            one.close()


class Mailed(socketserver.StreamRequestHandler):
    server: MailServer

    def answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self.answer("220 ready")
        while line := self.rfile.readline().decode().rstrip():
            self.server.said.append(line)
            word = line.split()[0].upper()
            if word == self.server.refuses:
                self.answer("535 5.7.8 not you")
            elif word == "EHLO":
                offers_tls = self.server.tls and not isinstance(self.connection, ssl.SSLSocket)
                self.answer("250-here\r\n250 STARTTLS" if offers_tls else "250-here\r\n250 AUTH PLAIN")
            elif word == "STARTTLS" and self.server.tls:
                self.answer("220 go on")
                try:
                    self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
                except OSError:  # who does not trust the certificate
                    return
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                self.server.sockets.append(self.connection)
            elif word == "AUTH":
                self.answer("235 welcome")
            elif word == "DATA":
                self.answer("354 go on")
                lines = []
                while (text := self.rfile.readline()) != b".\r\n":
                    lines.append(text)
                self.server.mails.append(b"".join(lines))
                self.answer("250 taken")
            elif word == "QUIT":
                self.answer("221 bye")
                return
            else:
                self.answer("250 fine")


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK, EMAIL, PAGES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Two open incidents that were not told yet."""
    with duckdb.connect() as opened:
        drift_tables.create_tables(opened)
        opened.execute(
            """
            insert into monitoring.incidents by name
            select
                'leaving' as score, 3 as model_version, unnest(['aaa', 'bbb']) as incident,
                unnest(['unit change', 'shift']) as kind, unnest(['raw.visits.spend', null]) as cause,
                unnest(['error', 'warn']) as severity, date '2024-04-29' as began_on, date '2024-05-06' as alerted_on,
                date '2024-05-06' as last_seen_on, unnest([0.25, 0.125]) as impact,
                unnest([['spend'], ['colour']]) as columns,
                unnest(['spend × 100', 'more <red>']) as told, unnest(['began with batch 7', null]) as origin
            """
        )
        yield opened


def send_alerts(
    connection: duckdb.DuckDBPyConnection, score: Score, incidents: Sequence[Known], day: date
) -> list[str]:
    """What could not be sent; what was is marked so, as a run does."""
    taken, faults = send_all(score, incidents, day)
    for one in taken:
        mark_sent(connection, score, one.incident, one.by, one.is_all)
    return faults


def sent(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What could not be sent, of all that is due."""
    return send_alerts(connection, SCORE, open_incidents(connection, SCORE), DAY)


def unsent(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [one.incident for one in open_incidents(connection, SCORE) if one.sent_at is None]


def test_where_nothing_is_configured_nothing_is_sent_and_nothing_marked_as_sent(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    assert sent(connection) == []
    assert unsent(connection) == ["aaa", "bbb"]


def test_a_webhook_gets_a_message_per_incident_and_none_twice(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Webhook()) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        monkeypatch.setenv(PAGES, "https://scores.example.com/")
        assert sent(connection) == sent(connection) == []
    assert unsent(connection) == []
    assert [headers["Idempotency-Key"] for headers, _ in server.taken] == ["aaa", "bbb"]
    assert server.taken[0][0]["Content-Type"] == "application/json"
    body = server.taken[0][1]
    assert body == {
        "incident": "aaa",
        "score": "leaving",
        "title": "Leaving",
        "severity": "error",
        "kind": "unit change",
        "cause": "raw.visits.spend",
        "origin": "began with batch 7",
        "began_on": "2024-04-29",
        "as_of_date": "2024-05-06",
        "impact": 0.25,
        "columns": ["spend"],
        "url": "https://scores.example.com/reports/leaving",
        "text": "Leaving: The data seem broken: spend × 100.\nOrigin: began with batch 7.\n"
        "Mend the data where it began and run again; what was built of it since is built again by make backfill"
        " FROM=2024-04-29.\nIt weighs 25% of the score. Read more: https://scores.example.com/reports/leaving",
    }
    assert server.taken[1][1]["text"].startswith("Leaving: Customers have moved: more <red>.\nIf the business")
    assert "make train SCORE=leaving.\nIt weighs 12% of the score" in server.taken[1][1]["text"]


def test_an_answer_that_is_an_error_is_told_and_the_alert_is_sent_by_the_next_run(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Webhook(answer=500)) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        faults = sent(connection)
        assert faults[0] == (
            "the alert on incident aaa was not sent: the webhook at 127.0.0.1 answers 500 Internal Server Error;"
            " the next run tries again"
        )
        assert unsent(connection) == ["aaa", "bbb"] and SECRET not in str(faults)
        server.answer = 204
        assert sent(connection) == [] == unsent(connection)


def test_a_redirect_takes_no_alert(connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Webhook(answer=302)) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        assert "the webhook at 127.0.0.1 answers 302 Found" in sent(connection)[0]
    assert [body["incident"] for _, body in server.taken] == ["aaa", "bbb"] == unsent(connection)


def test_a_server_that_is_down_or_slow_is_told_without_its_secret(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "SECONDS", 0.2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{taken.getsockname()[1]}/{SECRET}")
        down = sent(connection)
    with serving(Webhook(seconds=0.4)) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        slow = sent(connection)[:1]
    assert "the webhook at 127.0.0.1: [Errno 111] Connection refused" in down[0]
    assert "the webhook at 127.0.0.1: timed out" in slow[0]
    assert SECRET not in str([down, slow])
    assert unsent(connection) == ["aaa", "bbb"]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/s3cr3t",
        "s3cr3t",
        "https:///s3cr3t",
        "http://[s3cr3t",
        "http://host:s3cr3t/",
        "http://host/s3cr3t x",
        "http://host/s3cr3té",
    ],
)
def test_an_address_that_is_none_is_told_without_it(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv(WEBHOOK, url)
    monkeypatch.setattr(alerting, "SECONDS", 0.2)
    faults = sent(connection)
    assert "SCOREHOUSE_ALERT_WEBHOOK is no address of a webhook (write https://host/path)" in faults[0]
    assert len(faults) == 2 and SECRET not in str(faults)


def mail_to(server: MailServer, more: str = "", user: str = "") -> str:
    return f"smtp://{user}127.0.0.1:{server.server_address[1]}?from=scores@example.com{more}"


def test_an_email_goes_to_the_owner_or_to_whom_the_address_says(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(MailServer()) as server:
        monkeypatch.setenv(EMAIL, mail_to(server))
        first, second = open_incidents(connection, SCORE)
        assert send_alerts(connection, SCORE, [first], DAY) == []
        monkeypatch.setenv(EMAIL, mail_to(server, "&to=team%40example.com", f"user:{SECRET}@"))
        assert send_alerts(connection, SCORE, [second], DAY) == [] == unsent(connection)
    mail, other = (message_from_bytes(text, policy=default) for text in server.mails)
    assert (mail["From"], mail["To"]) == ("scores@example.com", "shop@example.com")
    assert mail["Subject"] == "[error] Leaving: unit change"
    assert ".aaa@" in mail["Message-ID"]
    assert mail.get_content().splitlines() == message(SCORE, first, DAY)["text"].splitlines()
    assert other["To"] == "team@example.com"
    assert any(line.startswith("AUTH PLAIN ") for line in server.said)


def a_certificate(folder: Path) -> Path:
    """A file with a key, and a certificate of 127.0.0.1 that nobody but itself vouches for."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(plain + signed.public_bytes(Encoding.PEM))
    return file


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_mail_server_that_takes_tls_gets_no_password_before_and_is_known_by_its_certificate(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_trusted: bool
) -> None:
    certificate = a_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(alerting, "LOOPBACK", ())
    with serving(MailServer(tls=tls)) as server:
        monkeypatch.setenv(EMAIL, mail_to(server, user=f"user:{SECRET}@"))
        faults = sent(connection)
    words = [line.split()[0].upper() for line in server.said]
    if is_trusted:
        assert (faults, unsent(connection), len(server.mails)) == ([], [], 2)
        assert words[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]
    else:
        assert "CERTIFICATE_VERIFY_FAILED" in faults[0] and unsent(connection) == ["aaa", "bbb"]
        assert words == ["EHLO", "STARTTLS"] * 2


def test_a_password_does_not_go_to_a_mail_server_without_tls(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "LOOPBACK", ())
    with serving(MailServer()) as server:
        monkeypatch.setenv(EMAIL, mail_to(server, user=f"user:{SECRET}@"))
        assert "takes no TLS, and the password would go in the clear" in sent(connection)[0]
    assert {line.split()[0].upper() for line in server.said} == {"EHLO", "QUIT"} and not server.mails


@pytest.mark.parametrize(("password", "why"), [(SECRET, "not you"), (f"{SECRET}é", "but of ASCII")])
def test_a_password_that_is_refused_is_told_and_not_shown(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, password: str, why: str
) -> None:
    with serving(MailServer(refuses="AUTH")) as server:
        monkeypatch.setenv(EMAIL, mail_to(server, user=f"user:{password}@"))
        faults = sent(connection)
    assert "the mail server 127.0.0.1: " in faults[0] and why in faults[0]
    assert SECRET not in str(faults) and unsent(connection) == ["aaa", "bbb"]


@pytest.mark.parametrize(
    "address",
    [
        "http://user:s3cr3t@host?from=a@b",
        "smtp://user:s3cr3t@host",
        "smtp://user:s3cr3t@host:s3cr3t?from=a@b",
        "smtp://user:s3cr3t@host?from=a@b&to=a@b%0ABcc:%20b@b",
        "smtp://user:s3cr3t@host?from=a@b&to=%22",
        "s3cr3t",
    ],
)
def test_a_mail_server_that_is_none_is_told_without_its_password(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv(EMAIL, address)
    faults = sent(connection)
    assert "SCOREHOUSE_ALERT_EMAIL is no mail server with a sender and somebody to write to" in faults[0]
    assert SECRET not in str(faults)


def test_what_one_way_takes_and_the_other_does_not_is_sent_again_by_the_other_alone(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Webhook()) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        monkeypatch.setenv(EMAIL, "smtp://nobody")
        assert len(sent(connection)) == 2 == len(server.taken)
        assert unsent(connection) == ["aaa", "bbb"]
        with serving(MailServer()) as mails:
            monkeypatch.setenv(EMAIL, mail_to(mails))
            assert sent(connection) == []
        assert (len(server.taken), len(mails.mails), unsent(connection)) == (2, 2, [])


def test_a_webhook_that_fails_keeps_no_mail_back(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(MailServer()) as server:
        monkeypatch.setenv(WEBHOOK, "nowhere")
        monkeypatch.setenv(EMAIL, mail_to(server))
        faults = sent(connection)
    assert len(server.mails) == len(faults) == 2 and "is no address of a webhook" in faults[0]


def test_a_server_that_answers_bit_by_bit_is_not_waited_for(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "LONGEST", 0.3)
    with serving(Webhook(answer=100)) as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        faults = sent(connection)
    assert "the server has not taken it within 0.3 s" in faults[0] and unsent(connection) == ["aaa", "bbb"]


def test_a_title_of_several_lines_adds_no_header_to_a_mail(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = a_score(title="Leaving\nBcc: somebody@example.com")
    with serving(MailServer()) as server:
        monkeypatch.setenv(EMAIL, mail_to(server))
        assert send_alerts(connection, score, open_incidents(connection, score)[:1], DAY) == []
    mail = message_from_bytes(server.mails[0], policy=default)
    assert mail["Bcc"] is None and mail["Subject"].startswith("[error] Leaving Bcc: ")
