"""Who asks: what a key may do, and of which scores. The guard puts it into the scope of each request."""

from typing import Any, Literal, get_args

import msgspec

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
