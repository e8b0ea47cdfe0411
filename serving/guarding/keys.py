"""API keys: who may do what, of which scores, how often, until when. `make key`, `keys` and `revoke` manage them.

They are in `data/keys.json`, without their secrets: a key is shown once, as it is made. A server that runs follows the
file, so that what is revoked is refused within a second.
"""

import argparse
import fcntl
import hashlib
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import get_args

import msgspec

from serving.durable import sync
from serving.generations.store import declared
from serving.guarding.callers import Permission

FILE = "keys.json"
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ID_LENGTH = 8


class KeyFault(Exception):
    """What is wrong with the file of keys, or with what is asked of it: one line for people."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as it is kept. `rate` and `burst` are requests per second and at once; None: no limit."""

    id: str
    name: str
    sha256: str  # of the secret. It has 256 random bits, so nobody guesses it, and a slow hash would gain nothing
    permissions: tuple[Permission, ...]
    scores: tuple[str, ...] | None = None  # None: all
    rate: float | None = None
    burst: float | None = None
    created: datetime
    expires: date | None = None  # the last day on which it is good, UTC
    revoked: datetime | None = None

    def fault(self, now: float) -> str | None:
        """Why it is not good at a moment (seconds since 1970), None if it is."""
        if self.revoked:
            return f"was revoked on {self.revoked.date()}"
        if self.expires and now >= end_of(self.expires):
            return f"expired on {self.expires}"
        return None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


def end_of(day: date) -> float:
    """The moment a day is over, UTC, in seconds since 1970."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + 86_400


def read_keys(file: Path) -> list[Key]:
    """The keys of a file, none if it does not exist. Raises `KeyFault` if it can't be read: that is not "no keys"."""
    try:
        keys = msgspec.json.decode(file.read_bytes(), type=_File).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFault(f"{file}: can't be read ({error.strerror})") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise KeyFault(f"{file}: is no file of keys ({error}). Mend it, or restore it from a backup") from None
    for key in keys:
        if len(key.id) != ID_LENGTH or not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise KeyFault(f"{file}: key '{key.name}' has an id or a sha256 that can't be one")
    return keys


def any_good(file: Path) -> bool:
    """Whether a file has a key that is neither revoked nor expired. Raises `KeyFault`."""
    return any(key.fault(time.time()) is None for key in read_keys(file))


@contextmanager
def _changing(file: Path) -> Iterator[list[Key]]:
    """The keys of a file to change; they are written when left. One at a time: who comes second sees the first's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read_keys(file)
        yield keys
        beside = file.with_suffix(".new")
        with suppress(FileNotFoundError):
            beside.unlink()  # of one who was killed
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as new:
            new.write(msgspec.json.format(msgspec.json.encode(_File(keys))) + b"\n")
            new.flush()
            os.fsync(handle)
        beside.replace(file)
        sync(file.parent)
    finally:
        os.close(lock)


def create_key(
    file: Path,
    name: str,
    permissions: list[str],
    *,
    scores: list[str] | None = None,
    rate: float | None = None,
    burst: float | None = None,
    expires: date | None = None,
) -> tuple[Key, str]:
    """Makes a key, and gives it with what its holder sends. Nothing can show that again. Raises `KeyFault`."""
    unknown = [one for one in permissions if one not in PERMISSIONS]
    if unknown or not permissions:
        asked = f"no permission is '{unknown[0]}'" if unknown else "a key without a permission is of no use"
        raise KeyFault(f"{asked}. Possible: {', '.join(PERMISSIONS)}.")
    if not _NAME.fullmatch(name):
        raise KeyFault(f"'{name}' is no name of a key: letters, digits and . _ - make one, 100 at most.")
    if expires and expires < datetime.now(UTC).date():
        raise KeyFault(f"{expires} is over: give the last day on which the key is to be good, or none.")
    for what, number in (("rate", rate), ("burst", burst)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise KeyFault(f"a {what} is a number above 0; {number} is none.")
    if burst is not None and rate is None:
        raise KeyFault("a burst needs a rate: how many requests a second are possible on the whole.")
    secret = secrets.token_urlsafe(32)
    with _changing(file) as keys:
        live = [key for key in keys if not key.revoked]
        if any(name in (key.name, key.id) for key in live):
            raise KeyFault(f"there is a key '{name}' already. Revoke it, or choose another name.")
        key = Key(
            id=secrets.token_hex(ID_LENGTH // 2),
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            permissions=tuple(one for one in PERMISSIONS if one in permissions),
            scores=tuple(sorted(set(scores))) if scores else None,
            rate=rate,
            burst=burst if burst is not None or rate is None else max(rate, 1.0),
            created=datetime.now(UTC).replace(microsecond=0),
            expires=expires,
        )
        keys.append(key)
    return key, f"sh_{key.id}_{secret}"


def revoke_key(file: Path, id_or_name: str) -> Key:
    """Revokes a key for good. Raises `KeyFault` if there is none that could be."""
    with _changing(file) as keys:
        for place, key in enumerate(keys):
            if id_or_name in (key.id, key.name) and not key.revoked:
                keys[place] = msgspec.structs.replace(key, revoked=datetime.now(UTC).replace(microsecond=0))
                return keys[place]
        live = ", ".join(f"{key.name} ({key.id})" for key in keys if not key.revoked) or "none"
        raise KeyFault(f"no key '{id_or_name}' is there to revoke. There are: {live}.")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise KeyFault(f"'{text}' is no day: write it as {date.today() + timedelta(365)}.") from None


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KeyFault(f"a {what} is a number above 0; '{text}' is none.") from None


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _listed(keys: list[Key]) -> str:
    if not keys:
        return "There is no key yet: make key NAME=crm MAY=read"
    rows = [("id", "name", "may", "scores", "rate", "state")]
    for key in keys:
        state = key.fault(time.time()) or (f"good until {key.expires}" if key.expires else "good")
        rate = f"{key.rate:g}/s, {key.burst:g} at once" if key.rate else "-"
        rows.append((key.id, key.name, " ".join(key.permissions), " ".join(key.scores or ("all",)), rate, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def main() -> None:
    data = os.environ.get("SCOREHOUSE_DATA") or "data"
    parser = argparse.ArgumentParser(prog="python -m serving.guarding.keys", description="The API's keys.")
    parser.add_argument("--data", default=data, help="or SCOREHOUSE_DATA")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and show it, once")
    create.add_argument("name")
    create.add_argument("--may", default="read", help=f"of {', '.join(PERMISSIONS)} (default: read)")
    create.add_argument("--scores", default="", help="the only scores that it may see (default: all)")
    create.add_argument("--expires", default="", help="the last day on which it is good, UTC (default: none)")
    create.add_argument("--rate", default="", help="requests per second (default: no limit)")
    create.add_argument("--burst", default="", help="requests at once (default: those of a second)")
    commands.add_parser("list", help="all keys, without their secrets")
    commands.add_parser("revoke", help="refuse a key from now on").add_argument("key", help="its id or name")
    asked = parser.parse_args()
    file = Path(asked.data) / FILE
    try:
        if asked.command == "create":
            was_open = not read_keys(file)  # a server stays closed after the last key is revoked
            key, shown = create_key(
                file,
                asked.name,
                _words(asked.may),
                scores=_words(asked.scores) or None,
                rate=_number("rate", asked.rate) if asked.rate else None,
                burst=_number("burst", asked.burst) if asked.burst else None,
                expires=_day(asked.expires) if asked.expires else None,
            )
            told = [_listed([key])]
            if was_open:
                told.append("There was no key before: from now on each request needs one, also of servers that run.")
            if key.rate:
                told.append("Its rate is shared out evenly over a server's processes: one connection has a share.")
            there = declared(Path(asked.data) / "generations")
            if unknown := sorted(set(key.scores or ()) - there):
                told.append(
                    f"No score is called {', '.join(unknown)} yet (there are: {', '.join(sorted(there)) or 'none'});"
                    " if that is no mistake, the key is good for it once it is published."
                )
            print(*told, f"Keep this, it is not shown again:\n{shown}", sep="\n\n")
        elif asked.command == "list":
            print(_listed(read_keys(file)))
        else:
            key = revoke_key(file, asked.key)
            print(f"{key.name} ({key.id}) is revoked; servers that run refuse it within a second.")
    except (KeyFault, OSError) as fault:
        sys.exit(f"keys: {fault}")


if __name__ == "__main__":
    main()
