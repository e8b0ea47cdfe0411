"""Who asks: what a key may do, and of which scores. The guard puts it into the scope of each request."""

from typing import Any, Literal, get_args

import msgspec

from serving.answers import Readiness

Permission = Literal["read", "predict", "jobs", "events", "admin"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: the name of a key, what it may do, and of which scores (None: of all)."""

    name: str
    permissions: frozenset[Permission]
    scores: frozenset[str] | None = None

    def may(self, permission: Permission) -> bool:
        """Whether it may do so; `admin` may do all."""
        return permission in self.permissions or "admin" in self.permissions

    def may_see(self, score: str) -> bool:
        return self.scores is None or score in self.scores


# Without any key the server listens on loopback alone, and who is there may do all.
ANYBODY = Caller(name="anybody", permissions=frozenset(get_args(Permission)))


def caller_of(scope: Any) -> Caller:
    """Who asks in a request, given its ASGI scope."""
    caller: Caller = scope["caller"]
    return caller


READINESS = {
    "ready": "Scores are served.",
    "degraded": "Some scores are served from an older generation.",
    "unavailable": "Some scores, or all, can't be looked up.",
}


def readiness_for(caller: Caller, readiness: Readiness) -> Readiness:
    """How the server is, as told to a caller: of all scores, naming those alone that he may see."""
    if caller.scores is None:
        return readiness
    scores = [one for one in readiness.scores if caller.may_see(one.score)]
    return Readiness(status=readiness.status, detail=READINESS[readiness.status], scores=scores)
