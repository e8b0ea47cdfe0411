"""Opens an incident when drift is worth an alert, keeps it while it lasts and closes it: `monitoring.incidents`.

An incident is told once, however many columns it has and however many dates it lasts.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Project, Score
from orchestration import drift_tables, warehouse
from orchestration.cataloguing import Lineage
from orchestration.drift_metrics import BAND, PREDICTION, importance_of
from orchestration.project import Paths, load_manifest
from orchestration.tracing import lost_tables, origin
from orchestration.warehouse import Connection
from reports.faults import Fault
from reports.incidents import Drifted, Incident, alerts_of, told

if TYPE_CHECKING:
    from ml.registry import Card

OPEN = "closed_on is null"
MOST_ROOTS = 5  # raw columns that are looked at for where an incident began
PROMISE = "worse than promised"  # the kind of an incident that is not of drift: see promise_incidents.py


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An incident as it is kept. `began_on` is the first as-of date on which one of its columns had drifted,
    `alerted_on` that on which it had on so many in a row, `origin` where in the raw data it began."""

    incident: str
    kind: str
    cause: str | None
    severity: str
    began_on: date
    alerted_on: date
    last_seen_on: date
    closed_on: date | None
    impact: float
    columns: list[str]
    told: str
    origin: str | None
    sent_at: datetime | None
    sent_by: list[str] | None = None  # which ways have taken its message, also where another has not yet


def update_incidents(
    connection: Connection,
    project: Project,
    score: Score,
    version: int,
    card: "Card",
    first: date | None,
    where: Paths,
) -> list[Known]:
    """Brings the incidents of a version up to date with what was measured of an as-of date and those after it (None:
    nothing is new); gives those that are open. Those of versions before are closed, as another scores now."""
    drift_tables.create_tables(connection)
    measured = _measured(connection, score, version)
    with warehouse.transaction(connection):
        connection.execute(
            f"""
            update monitoring.incidents set closed_on = coalesce(?, last_seen_on)
            where score = ? and model_version <> ? and {OPEN}
            """,
            [measured[-1] if measured else None, score.name, version],
        )
        if first is not None:
            sent = _take_back(connection, score, version, first)
            manifest = load_manifest(where)
            lineage = Lineage(manifest, where)
            made_of = {column.name: lineage.roots(score.features_id, column.name) for column in card.features}
            drifted = _drifted(connection, score, version, card, made_of, first)
            lost = lost_tables(
                connection,
                project,
                {root for roots in made_of.values() for root in roots},
                _learned(connection, score, version),
                measured,
                {day: {root for one in some for root in one.roots} for day, some in drifted.items()},
            )
            importance = {name: importance_of(card, name) for name in made_of}
            for day in (day for day in measured if day >= first):
                said = [one for one in drifted.get(day, []) if one.column in (PREDICTION, BAND)]
                features = [one for one in drifted.get(day, []) if one not in said]
                dates = [one for one in measured if one <= day]
                found = alerts_of(features, said, dates, made_of, lost[day], importance, score.alerts)
                _keep(connection, project, score, version, day, found, sent)
    return [one for one in open_incidents(connection, score) if one.kind != PROMISE]


def open_incidents(connection: Connection, score: Score) -> list[Known]:
    """The incidents of a score that last, the weightiest first."""
    return _known(connection, f"score = ? and {OPEN} order by impact desc, incident", [score.name])


def all_incidents(connection: Connection, score: Score, first: date) -> list[Known]:
    """The incidents of a score that were there on a date or later, the oldest first."""
    return _known(
        connection,
        "score = ? and coalesce(closed_on, ?) >= ? order by alerted_on, incident",
        [score.name, first, first],
    )


def number_of(*what: Any) -> str:
    """The number of an incident: the same whenever it is found again."""
    return hashlib.sha256(" ".join(map(str, what)).encode()).hexdigest()[:12]


def mark_sent(connection: Connection, score: Score, incident: str, by: Sequence[str], is_all: bool) -> None:
    """Notes by which ways the message of an incident was taken, and whether these are all."""
    connection.execute(
        "update monitoring.incidents set sent_by = ?::varchar[], sent_at = ? where score = ? and incident = ?",
        [list(by), datetime.now(UTC) if is_all else None, score.name, incident],
    )


def _known(connection: Connection, which: str, values: list[Any]) -> list[Known]:
    names = ", ".join(Known.__struct_fields__)
    return [
        Known(**row)
        for row in warehouse.rows(connection, f"select {names} from monitoring.incidents where {which}", values)
    ]


def _learned(connection: Connection, score: Score, version: int) -> list[date]:
    """The as-of dates that a version learned from."""
    query = """
        select distinct as_of_date from monitoring.distributions
        where score = ? and model_version = ? and part = ? and as_of_date is not null order by 1
    """
    return [day for (day,) in connection.execute(query, [score.name, version, drift_tables.TRAINED]).fetchall()]


def _measured(connection: Connection, score: Score, version: int) -> list[date]:
    query = """
        select distinct as_of_date from monitoring.drift_metrics where score = ? and model_version = ? order by 1
    """
    return [day for (day,) in connection.execute(query, [score.name, version]).fetchall()]


def _take_back(connection: Connection, score: Score, version: int, first: date) -> dict[str, datetime]:
    """Forgets what was said at a date or later, as it is said again; gives which incidents were sent, and when."""
    sent = connection.execute(
        """
        select incident, sent_at from monitoring.incidents
        where score = ? and model_version = ? and sent_at is not null
        """,
        [score.name, version],
    ).fetchall()
    which = f"where score = $score and model_version = $version and kind <> '{PROMISE}'"
    values = {"score": score.name, "version": version, "first": first}
    connection.execute(f"update monitoring.incidents set closed_on = null {which} and closed_on >= $first", values)
    # Who was told of one finds it again: as closed, unless it is found once more.
    connection.execute(f"delete from monitoring.incidents {which} and alerted_on >= $first and sent_at is null", values)
    connection.execute(
        f"update monitoring.incidents set closed_on = alerted_on {which} and alerted_on >= $first", values
    )
    return dict(sent)


def _drifted(
    connection: Connection, score: Score, version: int, card: "Card", made_of: Mapping[str, list[str]], first: date
) -> dict[date, list[Drifted]]:
    """What had drifted at each as-of date from a first one on, the score among it."""
    rows = warehouse.rows(
        connection,
        """
        select
            as_of_date, column_name, max(effect) as effect, any_value(drifted_since) as began,
            any_value(fault) as fault, any_value(told) as told
        from monitoring.drift_metrics
        where score = ? and model_version = ? and as_of_date >= ?
            and segment_column is null and drifted_since is not null
        group by 1, 2 order by 1, 2
        """,
        [score.name, version, first],
    )
    found: dict[date, list[Drifted]] = {}
    for row in rows:
        found.setdefault(row["as_of_date"], []).append(
            Drifted(
                column=row["column_name"],
                effect=row["effect"],
                importance=importance_of(card, row["column_name"]),
                began=row["began"],
                fault=Fault(row["fault"], row["told"]),
                roots=tuple(made_of.get(row["column_name"], ())),
            )
        )
    return found


def _keep(
    connection: Connection,
    project: Project,
    score: Score,
    version: int,
    day: date,
    found: Sequence[Incident],
    sent: Mapping[str, datetime],
) -> None:
    """Writes what was found at a date: what goes on, what is new, and what has ended."""
    lasting = _known(
        connection,
        f"score = ? and model_version = ? and kind <> '{PROMISE}' and {OPEN} order by began_on, incident",
        [score.name, version],
    )
    went_on = set()
    for incident in found:
        names = _of_cause([one.column for one in incident.columns])
        same = [
            one
            for one in lasting
            if names & _of_cause(one.columns)
            and one.incident not in went_on
            # Who was told that customers have moved was not told that the data are broken.
            and not (incident.is_breakage and one.severity == "warn")
        ]
        row = {
            "kind": incident.kind,
            "cause": incident.cause,
            "severity": "error" if incident.is_breakage else "warn",
            "last_seen_on": day,
            "impact": incident.impact,
            "columns": [one.column for one in incident.columns],
            "told": told(incident),
        }
        if same:
            first = same[0]
            went_on.add(first.incident)
            if first.cause == incident.cause:
                row["origin"] = first.origin
            else:
                row["origin"] = _origin(connection, project, incident)
            assigned = ", ".join(f"{name} = ${name}" for name in row)
            connection.execute(
                f"update monitoring.incidents set {assigned} where score = $score and incident = $incident",
                row | {"score": score.name, "incident": first.incident},
            )
            continue
        number = number_of(score.name, version, incident.kind, incident.cause, incident.began)
        went_on.add(number)
        opened = {
            "score": score.name,
            "model_version": version,
            "incident": number,
            "began_on": incident.began,
            "alerted_on": day,
            "closed_on": None,
            "origin": _origin(connection, project, incident),
            "opened_at": datetime.now(UTC),
            "sent_at": sent.get(number),
        }
        connection.execute(  # one that was taken back
            "delete from monitoring.incidents where score = ? and incident = ?", [score.name, number]
        )
        connection.execute("insert into monitoring.incidents by name select unnest(?)", [row | opened])
    ended = [one.incident for one in lasting if one.incident not in went_on]
    connection.execute(
        "update monitoring.incidents set closed_on = ? where score = ? and incident in (select unnest(?::varchar[]))",
        [day, score.name, ended],
    )


def _origin(connection: Connection, project: Project, incident: Incident) -> str | None:
    """Where an incident began; of columns with a table in common by the raw column of it that most of them have."""
    if incident.cause is None:
        return None
    roots = Counter(
        root
        for one in incident.columns
        for root in one.roots
        if one.fault.is_breakage and root.rpartition(".")[0] == incident.cause
    )
    if incident.kind == "lost source" or not roots:
        return origin(connection, project, incident.cause)
    each = (origin(connection, project, root) for root, _ in roots.most_common(MOST_ROOTS))
    return next((found for found in each if found), None)


def _of_cause(columns: Sequence[str]) -> set[str]:
    """The columns that tell an incident from another: the score goes with whichever is the weightiest at a date."""
    return set(columns) - {PREDICTION, BAND} or set(columns)
