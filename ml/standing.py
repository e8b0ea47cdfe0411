"""What became of a version: the verdict of its gate, and how it came to be champion, or never was."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from ml.gate import GateResult

Verdict = Literal["passed", "refused", "not judged"]
Reign = Literal["now", "before", "never"]


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """A version made champion: `how` is gate, force or rollback; `by` and `reason` are a person's, empty of a gate."""

    version: int
    how: str
    reason: str = ""
    by: str = ""
    replaced_version: int | None = None
    promoted_at: datetime


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version stands: what its gate said of it last, whether it is champion, its promotions, the newest first,
    and, of one that is champion no more, the promotion of another that ended it."""

    gate: tuple[GateResult, ...] = ()
    champion: Reign = "never"
    promotions: tuple[Promotion, ...] = ()
    ended: Promotion | None = None

    @property
    def verdict(self) -> Verdict:
        if not self.gate:
            return "not judged"
        return "passed" if all(result.passed for result in self.gate) else "refused"


def standing_of(
    version: int, gate: Sequence[GateResult], promotions: Sequence[Promotion], champion: int | None
) -> Standing:
    """The standing of a version, of all the promotions of its score, the earliest first, and the champion of now."""
    own = sorted((one for one in promotions if one.version == version), key=lambda one: one.promoted_at, reverse=True)
    reign: Reign = "now" if version == champion else "before" if own else "never"
    last = next((one for one in reversed(promotions) if version in (one.version, one.replaced_version)), None)
    ended = last if last and last.version != version and reign == "before" else None
    return Standing(gate=tuple(gate), champion=reign, promotions=tuple(own), ended=ended)
