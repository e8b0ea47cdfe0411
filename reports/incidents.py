"""Incidents: what has drifted at a date, put together by its likely cause, so that each cause is told once."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import msgspec

from ml.alerts import Alerts
from reports.faults import Fault, Kind

# Of a raw column: the share that the drifted features it made have among all that it made and all that have drifted.
LEAST_ALIKE = 0.2
# What columns that broke by one cause are told as: what says most first.
BROKEN: tuple[Kind, ...] = (
    "renamed", "unit change", "stuck at null", "stuck at a value", "more nulls", "new values", "jump",
    "part of the customers", "lost source",
)  # fmt: skip


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """A column that has drifted at a date: by how much, since when, and what has become of it.

    `importance` is its share of the champion's (0 to 1), and 1 of the score itself; `roots` are the raw columns that it
    is made from, as `raw.orders.amount`.
    """

    column: str
    effect: float
    importance: float
    began: date
    fault: Fault
    roots: tuple[str, ...] = ()

    @property
    def impact(self) -> float:
        return self.effect * self.importance


class Lost(msgspec.Struct, frozen=True):
    """A raw table from which nothing comes any more: since which as-of date, and what shows it."""

    since: date
    evidence: str


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """Columns that have drifted by one cause, the weightiest first.

    `kind` is "lost source", a fault of `reports.faults`, or "score" if the scores have moved and no feature that weighs
    enough; `cause` the raw table or column that they have in common, None where there is none.
    """

    kind: str
    columns: tuple[Drifted, ...]
    cause: str | None = None
    evidence: str = ""
    weighs: float | None = None

    @property
    def impact(self) -> float:
        """How much of the score it weighs: its drift, but of a lost source all that is made from it."""
        return sum(one.impact for one in self.columns) if self.weighs is None else self.weighs

    @property
    def began(self) -> date:
        return min(one.began for one in self.columns)

    @property
    def is_breakage(self) -> bool:
        return self.kind == "lost source" or any(one.fault.is_breakage for one in self.columns)


def alerts_of(
    drifted: Sequence[Drifted],
    predictions: Sequence[Drifted],
    dates: Sequence[date],
    made_of: Mapping[str, Sequence[str]],
    lost: Mapping[str, Lost],
    importance: Mapping[str, float],
    alerts: Alerts,
) -> list[Incident]:
    """The incidents of the last of these as-of dates that are worth an alert: what has drifted on so many dates in a
    row, and weighs enough. A table that is lost is so for as many, unless what is made from it has drifted for them."""
    if len(dates) < alerts.dates:
        return []
    since = dates[-alerts.dates]
    lasting, said = ([one for one in some if one.began <= since] for some in (drifted, predictions))
    tables = {table for one in lasting for table in _tables(one)}
    gone = {table: one for table, one in lost.items() if one.since <= since or table in tables}
    found = incidents_of(lasting, made_of, gone, importance, said, alerts.impact)
    return [one for one in found if one.impact >= alerts.impact]


def incidents_of(
    drifted: Sequence[Drifted],
    made_of: Mapping[str, Sequence[str]],
    lost: Mapping[str, Lost],
    importance: Mapping[str, float],
    predictions: Sequence[Drifted] = (),
    least: float = 0.0,
) -> list[Incident]:
    """The incidents of a date, breakages first, then the weightiest.

    `drifted` are features, `predictions` the score and its bands where they have; `made_of` are the raw columns of
    every feature, `importance` its share of the champion's (0 to 1), `lost` the raw tables from which nothing comes any
    more. Columns are put together

    1. by a lost table that they are made from: all of them, as those that have not drifted yet are stale already,
    2. the broken ones, by the raw column that made most of them and least else, or where there is none by the table
       that made most of what drifted on one date; those of one table that broke alike on one date go together, and with
       them what merely moved since then and is made from that table, as a long window follows slowly,
    3. and all that merely moved into one incident.

    The score goes with the weightiest of these, as its consequence, if that weighs `least`: else nobody would be told
    that it has moved, for want of weight of what is not the cause.
    """
    of_lost = [_lost_source(table, lost[table], drifted, made_of, importance) for table in sorted(lost)]
    found = [one for one in of_lost if one is not None]
    left = _without(drifted, found)
    found += _broken(left, made_of)
    left = _without(drifted, found)
    if left:
        kinds = {one.fault.kind for one in left}
        found.append(_incident(kinds.pop() if len(kinds) == 1 else "shift", left, None))
    found.sort(key=lambda one: (not one.is_breakage, -one.impact))
    if not predictions:
        return found
    weightiest = next((one for one in found if one.impact >= least), None)
    if weightiest is None:
        alone = _incident("score", predictions, None)
        return [msgspec.structs.replace(alone, weighs=max(one.impact for one in predictions)), *found]
    columns = (*weightiest.columns, *predictions)  # the score moves with the features, so it weighs nothing besides
    with_score = msgspec.structs.replace(weightiest, columns=columns, weighs=weightiest.impact)
    return [with_score if one is weightiest else one for one in found]


def _without(drifted: Sequence[Drifted], found: Sequence[Incident]) -> list[Drifted]:
    """What is in no incident yet."""
    told_of = {one.column for incident in found for one in incident.columns}
    return [one for one in drifted if one.column not in told_of]


def _lost_source(
    table: str,
    lost: Lost,
    drifted: Sequence[Drifted],
    made_of: Mapping[str, Sequence[str]],
    importance: Mapping[str, float],
) -> Incident | None:
    """The incident of a raw table from which nothing comes any more: all that is made from it, drifted or not."""
    known = {one.column: one for one in drifted}
    stale = Fault("lost source", "has not drifted yet")
    columns = [
        known.get(name)
        or Drifted(
            column=name,
            effect=0.0,
            importance=importance.get(name, 0.0),
            began=lost.since,
            fault=stale,
            roots=tuple(roots),
        )
        for name, roots in made_of.items()
        if any(_table(root) == table for root in roots)
    ]
    if not columns:
        return None
    incident = _incident("lost source", columns, table, lost.evidence)
    return msgspec.structs.replace(incident, weighs=sum(one.importance for one in columns))


def _broken(drifted: Sequence[Drifted], made_of: Mapping[str, Sequence[str]]) -> list[Incident]:
    """The incidents of columns that seem broken, by their cause."""
    left = list(drifted)
    found: dict[tuple[str, str | None, date], Incident] = {}
    while any(one.fault.is_breakage for one in left):
        broken = [one for one in left if one.fault.is_breakage]
        cause = _common_root(broken, made_of)
        table = cause and _table(cause)
        group = [one for one in broken if (cause in one.roots if cause else not one.roots)]
        if not group:
            table, began = _common_table(left, broken)
            cause = table
            group = [one for one in broken if one.began == began and table in _tables(one)] or broken[:1]
        incident = _incident(group[0].fault.kind, group, cause)
        kind = min((one.fault.kind for one in group), key=BROKEN.index)
        alike = found.get((kind, table, incident.began))
        if alike is not None:
            incident = _incident(kind, [*alike.columns, *group], table)
        found[kind, table, incident.began] = msgspec.structs.replace(incident, kind=kind)
        left = [one for one in left if one not in group]
    with_moved = []
    for (_, table, began), incident in found.items():
        moved = [one for one in left if one.began >= began and table in _tables(one)]
        with_moved.append(_incident(incident.kind, [*incident.columns, *moved], incident.cause))
        left = [one for one in left if one not in moved]
    return with_moved


def _incident(kind: str, columns: Sequence[Drifted], cause: str | None, evidence: str = "") -> Incident:
    ordered = sorted(columns, key=lambda one: (-one.impact, -one.importance, one.column))
    return Incident(kind=kind, columns=tuple(ordered), cause=cause, evidence=evidence)


def _common_root(broken: Sequence[Drifted], made_of: Mapping[str, Sequence[str]]) -> str | None:
    """The raw column whose features are most nearly the broken ones (Jaccard's index); None if none is near."""
    names = {one.column for one in broken}
    of_roots: dict[str, set[str]] = {}
    for feature, roots in made_of.items():
        for root in roots:
            of_roots.setdefault(root, set()).add(feature)
    alike = {
        root: len(names & features) / len(names | features) for root, features in of_roots.items() if names & features
    }
    best = max(sorted(alike), key=lambda root: alike[root], default=None)
    return best if best is not None and alike[best] >= LEAST_ALIKE else None


def _common_table(drifted: Sequence[Drifted], broken: Sequence[Drifted]) -> tuple[str | None, date | None]:
    """The table, and the date, of which most columns have drifted that are made from it, a broken one among them; None
    if there is no other column with it."""
    of_tables: dict[tuple[str, date], int] = {}
    for one in drifted:
        for table in _tables(one):
            of_tables[table, one.began] = of_tables.get((table, one.began), 0) + 1
    known = {(table, one.began) for one in broken for table in _tables(one)}
    best = max(sorted(known), key=lambda place: of_tables[place], default=None)
    return best if best is not None and of_tables[best] > 1 else (None, None)


def _tables(one: Drifted) -> set[str]:
    return {_table(root) for root in one.roots}


def _table(root: str) -> str:
    return root.rpartition(".")[0]


def rule_of(alerts: Alerts) -> str:
    """What takes an alert, in words."""
    return (
        f"an alert needs columns with {100 * alerts.effect:.3g}% of their rows beyond what is usual, among"
        f" {alerts.rows:,} customers at the least, on {alerts.dates} as-of {'dates' if alerts.dates > 1 else 'date'} in"
        f" a row, that weigh {100 * alerts.impact:.3g}% of the score together (effect × importance)"
    )


def next_step(severity: str, score: str, began_on: date) -> str:
    """What to do about an incident of drift."""
    if severity == "error":
        return (
            "Mend the data where it began and run again; what was built of it since is built again by"
            f" make backfill FROM={began_on}"
        )
    return (
        "If the business knows why, nothing is to be done; if the metric suffers, train a version on newer dates:"
        f" make train SCORE={score}"
    )


def told(incident: Incident, most: int = 3) -> str:
    """An incident in a sentence: what, since when, by which columns, and where it comes from."""
    what = {
        "lost source": f"nothing comes from {incident.cause} any more",
        "score": "the scores have moved, though no feature that weighs enough",
        "shift": "customers are not as they were",
        "mix": "the mix of customers has changed",
        "part of the customers": "a part of the customers has moved",
    }.get(incident.kind, incident.kind)
    named = _some((f"{one.column} ({_why(one, incident.began)})" for one in incident.columns), most)
    cause = f"; made from {incident.cause}" if incident.cause and incident.kind != "lost source" else ""
    evidence = f" ({incident.evidence})" if incident.evidence else ""
    return f"{what}{evidence}, since {incident.began}: {named}{cause}"


def _why(one: Drifted, began: date) -> str:
    parts = [f"{one.importance:.1%} of the importance"] if one.importance < 1 else []
    parts += [f"{one.effect:.0%} beyond the usual"] if one.effect else []
    parts += [f"since {one.began}"] if one.began > began else []
    return f"{', '.join(parts)}: {one.fault.told}"


def _some(texts: Iterable[str], most: int) -> str:
    listed = list(texts)
    more = len(listed) - most
    return "; ".join([*listed[:most], *([f"{more} more"] if more > 0 else [])])
