"""The keys as a server checks requests against them, and how it follows their file."""

import base64
import binascii
import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from serving.guarding.callers import Caller
from serving.guarding.keys import Key, KeyFault, end_of, read_keys

log = logging.getLogger("serving")

MOST_VERIFIED = 1_000


class KnownKey:
    """A key as requests are checked against it: its caller, and its share of requests as a bucket of tokens."""

    __slots__ = ("at", "burst", "caller", "digest", "expires_at", "key", "rate", "tokens")

    def __init__(self, key: Key, share: float) -> None:
        self.key = key
        self.digest = bytes.fromhex(key.sha256)
        scores = None if key.scores is None else frozenset(key.scores)
        self.caller = Caller(name=key.name, permissions=frozenset(key.permissions), scores=scores)
        self.expires_at = end_of(key.expires) if key.expires else math.inf
        self.rate = key.rate * share if key.rate else 0.0
        self.burst = max(1.0, (key.burst or key.rate or 1.0) * share)
        self.tokens, self.at = self.burst, time.monotonic()

    def wait(self) -> float:
        """Takes a token; 0, or the seconds until there is one."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        tokens = self.tokens + (now - self.at) * self.rate
        if tokens > self.burst:
            tokens = self.burst
        self.at = now
        if tokens < 1.0:
            self.tokens = tokens
            return (1.0 - tokens) / self.rate
        self.tokens = tokens - 1.0
        return 0.0


class KnownKeys:
    """The keys of a file for a server's process, whose share of a key's rate is one of `workers`.

    Raises `KeyFault` if the file can't be read at the start. Later the keys at hand stay good then, and it is told.
    """

    def __init__(self, file: Path, workers: int = 1, clock: Callable[[], float] = time.time) -> None:
        self._file, self._share, self._clock = file, 1 / workers, clock
        self._seen: tuple[int, int, int] | None = None
        self._fault: str | None = None  # the one that was told last
        self._known: dict[bytes, KnownKey] = {}
        self._verified: dict[bytes, KnownKey] = {}  # Authorization header -> its key, so that most cost no hash
        self._read(self._identity())

    @property
    def guarded(self) -> bool:
        """Whether a key is needed: also where each has been revoked."""
        return bool(self._known)

    def look(self) -> None:
        """Takes over what has changed in the file. Reads the disk; to be called every now and then."""
        identity = self._identity()
        if identity == self._seen:
            return
        try:
            if identity is None and self._known:
                raise KeyFault(f"{self._file}: is gone")
            self._read(identity)
            self._fault = None
        except KeyFault as fault:  # it is read again with the next look: what was revoked must not be missed
            if str(fault) != self._fault:
                log.error("%s; the keys read before stay as they are", fault)
            self._fault = str(fault)

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self, identity: tuple[int, int, int] | None) -> None:
        known = {key.id.encode(): KnownKey(key, self._share) for key in read_keys(self._file)}
        if not known and self._known:
            raise KeyFault(f"{self._file}: has no keys any more. Revoke those that are not wanted")
        for key_id, new in known.items():
            old = self._known.get(key_id)
            if old and (old.rate, old.burst) == (new.rate, new.burst):
                new.tokens, new.at = old.tokens, old.at
        self._known, self._verified, self._seen = known, {}, identity

    def find(self, header: bytes) -> KnownKey | str | None:
        """The key in an Authorization header; what is wrong with it if it was good once; None if there is none."""
        verified = self._verified  # of the keys that are read next, another takes its place
        known = verified.get(header)
        if known is None:
            known = self._verify(token_in(header))
            if known is None:
                return None
            if len(verified) >= MOST_VERIFIED:  # one key can be sent in many ways, with any user's name
                verified.clear()
            verified[header] = known
        if known.key.revoked or self._clock() >= known.expires_at:
            return f"The key '{known.key.name}' {known.key.fault(self._clock())}."
        return known

    def _verify(self, sent: bytes) -> KnownKey | None:
        known = self._known.get(sent[3:11])
        digest = hashlib.sha256(sent[12:]).digest()
        if known is None or not hmac.compare_digest(digest, known.digest):
            return None
        return known if sent[:3] == b"sh_" and sent[11:12] == b"_" else None


def token_in(header: bytes) -> bytes:
    """The key in an Authorization header, Bearer or the password of Basic; empty if it has none."""
    scheme, _, sent = header.partition(b" ")
    kind = scheme.lower()
    if kind == b"bearer":
        return sent.strip()
    if kind == b"basic":
        try:
            return base64.b64decode(sent.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
