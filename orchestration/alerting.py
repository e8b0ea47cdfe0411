"""Tells people of incidents, each once: a webhook, an e-mail, as the environment says; by nothing else."""

import http.client
import json
import os
import smtplib
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import date
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

from ml.declarations import Score
from orchestration.incidents import PROMISE, Known, mark_sent
from orchestration.project import Paths, page_url
from orchestration.warehouse import open_warehouse
from reports.incidents import next_step

WEBHOOK, EMAIL = "SCOREHOUSE_ALERT_WEBHOOK", "SCOREHOUSE_ALERT_EMAIL"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SECONDS = 10  # that a server has to answer
LONGEST = 60  # seconds that a message may take
EXAMPLE = "smtp://user:password@mail.example.com:587?from=scores@example.com&to=team@example.com"


Sign = Literal["promise", "error", "warn"]
SIGNS: dict[Sign, str] = {
    "promise": "Worse than promised",
    "error": "The data seem broken",
    "warn": "Customers have moved",
}


class Unsent(RuntimeError):
    """An alert that a server did not take: which, and why, without what the address keeps secret."""


def tell_people(where: Paths, score: Score, incidents: Sequence[Known], day: date) -> list[str]:
    """Sends each of these incidents that was not sent yet, one message for each; gives what could not be sent, and why.

    What a way has not taken is tried again by the next run, by that way alone. A message may come twice where a run is
    killed between the sending and the note of it: it has the incident's number as its id. Nobody waits for the
    warehouse while a server takes its time: it is opened to note what was sent, if anything was.
    """
    sent, faults = send_alerts(score, incidents, day)
    if sent:
        with open_warehouse(where.warehouse) as connection:
            for one in sent:
                mark_sent(connection, score, one.incident, one.by, one.is_all)
    return faults


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """An incident whose message was taken now: by which ways it was until now, and whether these are all."""

    incident: str
    by: list[str]
    is_all: bool


def send_alerts(score: Score, incidents: Sequence[Known], day: date) -> tuple[list[Sent], list[str]]:
    """Sends what was not sent yet: the incidents that were taken, and why others were not."""
    taken, faults = [], []
    for incident in (one for one in incidents if one.sent_at is None):
        told, by = message(score, incident, day), list(incident.sent_by or [])
        why = []
        for way, send in _ways(told, score.email).items():
            fault = "" if way in by else _within(LONGEST, send)
            if fault:
                why.append(fault)
            elif way not in by:
                by.append(way)
        if by and (by != incident.sent_by or not why):
            taken.append(Sent(incident=incident.incident, by=by, is_all=not why))
        if why:
            reasons = "; ".join(why)
            faults.append(
                f"the alert on incident {incident.incident} was not sent: {reasons}; the next run tries again"
            )
    return taken, faults


def message(score: Score, incident: Known, day: date) -> dict[str, Any]:
    """What an incident's message says; `text` says it all in a few lines, as chats show it."""
    url = page_url(f"reports/{score.name}")
    lines = [f"{score.title}: {SIGNS[sign_of(incident)]}: {incident.told}."]
    lines += [f"Origin: {incident.origin}."] if incident.origin else []
    if incident.kind != PROMISE:
        lines += [f"{next_step(incident.severity, score.name, incident.began_on)}."]
    lines += [f"It weighs {100 * incident.impact:.2g}% of the score. Read more: {url}"]
    return {
        "incident": incident.incident,
        "score": score.name,
        "title": score.title,
        "severity": incident.severity,
        "kind": incident.kind,
        "cause": incident.cause,
        "origin": incident.origin,
        "began_on": str(incident.began_on),
        "as_of_date": str(day),
        "impact": round(incident.impact, 4),
        "columns": incident.columns,
        "url": url,
        "text": "\n".join(lines),
    }


def sign_of(incident: Known) -> Sign:
    return "promise" if incident.kind == PROMISE else "error" if incident.severity == "error" else "warn"


def _ways(told: dict[str, Any], owner: str) -> dict[str, Callable[[], None]]:
    """The ways by which a message is to go, as the environment says; none, and nobody is told."""
    webhook, email = os.environ.get(WEBHOOK, ""), os.environ.get(EMAIL, "")
    ways = {"webhook": (webhook, lambda: _post(webhook, told)), "email": (email, lambda: _mail(email, told, owner))}
    return {name: send for name, (address, send) in ways.items() if address}


def _within(seconds: float, way: Callable[[], None]) -> str:
    """Why a message was not sent; nothing if it was. A server that answers a byte now and then keeps nobody longer."""
    ended: list[Exception | None] = []

    def try_it() -> None:
        try:
            way()
        except Exception as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        return f"the server has not taken it within {seconds:g} s"
    (error,) = ended
    if error is not None and not isinstance(error, Unsent):
        raise error
    return str(error or "")


class _AsAsked(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would be followed without the message, and whatever is there would seem to take it."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _parts(address: str) -> SplitResult | None:
    """The parts of an address; None if it is none."""
    try:
        parts = urlsplit(address)
        return parts if parts.hostname and (parts.port is None or parts.port > 0) else None
    except ValueError:
        return None


def _post(url: str, told: dict[str, Any]) -> None:
    parts, refused = _parts(url), Unsent(f"{WEBHOOK} is no address of a webhook (write https://host/path)")
    if parts is None or parts.scheme not in ("http", "https"):
        raise refused
    request = urllib.request.Request(
        url,
        json.dumps(told).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": told["incident"], "User-Agent": "scorehouse"},
    )
    try:
        with urllib.request.build_opener(_AsAsked).open(request, timeout=SECONDS):
            pass
    except (http.client.InvalidURL, ValueError):
        raise refused from None
    except urllib.error.HTTPError as error:
        error.close()
        raise Unsent(f"the webhook at {parts.hostname} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unsent(f"the webhook at {parts.hostname}: {_why(error)}") from None


def _mail(address: str, told: dict[str, Any], owner: str) -> None:
    parts = _parts(address)
    asked = {name: values[-1] for name, values in parse_qs(parts.query.replace("+", "%2B") if parts else "").items()}
    to = asked.get("to") or owner
    refused = Unsent(f"{EMAIL} is no mail server with a sender and somebody to write to (write {EXAMPLE})")
    if parts is None or parts.scheme not in ("smtp", "smtps") or not parts.hostname or not asked.get("from") or not to:
        raise refused
    mail = EmailMessage()
    try:
        mail["From"], mail["To"], mail["Date"] = asked["from"], to, formatdate()
    except (ValueError, IndexError):  # of several lines; no address at all
        raise refused from None
    mail["Subject"] = " ".join(f"[{told['severity']}] {told['title']}: {told['kind']}".split())
    mail["Message-ID"] = make_msgid(told["incident"], domain=parts.hostname)
    mail.set_content(told["text"])
    context = ssl.create_default_context()
    try:
        if parts.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(parts.hostname, parts.port or 465, timeout=SECONDS, context=context)
        else:
            server = smtplib.SMTP(parts.hostname, parts.port or 25, timeout=SECONDS)
        with server:
            server.ehlo_or_helo_if_needed()  # until it is greeted it has not said whether it takes TLS
            if parts.scheme == "smtp" and server.has_extn("starttls"):
                server.starttls(context=context)
            elif parts.scheme == "smtp" and parts.username and parts.hostname not in LOOPBACK:
                raise Unsent(f"the mail server {parts.hostname} takes no TLS, and the password would go in the clear")
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            server.send_message(mail)
    except UnicodeError:  # its message would show the password
        raise Unsent(f"the mail server {parts.hostname}: takes no user, password or address but of ASCII") from None
    except (OSError, smtplib.SMTPException) as error:
        raise Unsent(f"the mail server {parts.hostname}: {_why(error)}") from None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0] if str(reason) else type(error).__name__
