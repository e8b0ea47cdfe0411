"""What the list of reports says of each score: in order or not, by its newest figures. The pipeline writes it."""

from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

FILE, PAGE = "overview.json", "overview.html"


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a score now: an error is likely a fault of the data, a warning a move of the customers."""

    severity: str
    told: str
    origin: str | None
    began_on: date


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A score as of its newest date: its first metric as promised, estimated for the newest date and realised on the
    newest matured one, the share of the importance that has drifted, what that weighs (effect × importance) and from
    what on people are told, and what is wrong. `of` is a hash of its page."""

    of: str
    score: str
    title: str
    as_of_date: date
    model_version: int
    metric: str
    promised: float | None
    estimated: float | None
    realised: float | None
    verdict: str
    told: str
    drifted: float | None
    weighs: float | None = None
    alerted_from: float | None = None
    incidents: list[Incident]

    @property
    def state(self) -> Literal["broken", "moved", "worse", "in order"]:
        """The worst that can be said of it."""
        severities = {one.severity for one in self.incidents}
        if "error" in severities:
            return "broken"
        return "worse" if self.verdict == "worse" else "moved" if severities else "in order"


def read_summary(reports: Path, score: str) -> Summary | None:
    """What the pipeline wrote last of a score; None before that. Reads the disk."""
    for file in sorted((reports / score).glob(f"????-??-??/{FILE}"), reverse=True):
        try:
            return msgspec.json.decode(file.read_bytes(), type=Summary)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            continue
    return None


def all_summaries(reports: Path) -> list[Summary]:
    """What the pipeline wrote last of each score, what is wrong first. Reads the disk."""
    found = [read_summary(reports, folder.name) for folder in sorted(reports.glob("*/"))]
    order = ("broken", "worse", "moved", "in order")
    return sorted((one for one in found if one is not None), key=lambda one: (order.index(one.state), one.title))


def newest_page(reports: Path, score: str) -> Path | None:
    """The file of a score's own page; None if there is none. Reads the disk."""
    return next(iter(sorted((reports / score).glob(f"????-??-??/{PAGE}"), reverse=True)), None)
