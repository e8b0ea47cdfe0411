"""Opens an incident when a champion has been worse than promised on several matured dates in a row."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ml.declarations import Score
from ml.realised import Performance, RealisedDate, overall
from orchestration import drift_tables, warehouse
from orchestration.incidents import OPEN, PROMISE, Known, number_of, open_incidents
from orchestration.warehouse import Connection


def update_promise(connection: Connection, score: Score, performance: Performance) -> list[Known]:
    """Opens, goes on with or closes the incident of a broken promise; gives it if it is open.

    One date may lie outside of what was promised by chance alone; a promise counts as broken on the score's number of
    dates in a row (`alerts: dates`).
    """
    drift_tables.create_tables(connection)
    own = [one for one in performance.dates if one.model_version == performance.model_version]
    worse = _worse_since(own)
    with warehouse.transaction(connection):
        values = {"score": score.name, "version": performance.model_version, "kind": PROMISE}
        which = f"score = $score and kind = $kind and {OPEN}"
        if len(worse) < score.alerts.dates:
            newest = own[-1].as_of_date if own else performance.holdout_to
            connection.execute(
                f"update monitoring.incidents set closed_on = $day where {which} and model_version = $version",
                {**values, "day": newest},
            )
        else:
            _keep(connection, score, performance, worse)
    return [one for one in open_incidents(connection, score) if one.kind == PROMISE]


def _worse_since(dates: Sequence[RealisedDate]) -> list[RealisedDate]:
    """The newest dates, one after the other, that were worse than promised; the oldest first."""
    worse: list[RealisedDate] = []
    for one in reversed(dates):
        if overall(one.metrics) != "worse":
            break
        worse.insert(0, one)
    return worse


def _keep(connection: Connection, score: Score, performance: Performance, worse: Sequence[RealisedDate]) -> None:
    first, newest = worse[0], worse[-1]
    # One that lasts goes on, whichever its first date is now: that may have been corrected, or be read no more.
    lasting = connection.execute(
        f"select incident from monitoring.incidents where score = ? and model_version = ? and kind = ? and {OPEN}",
        [score.name, performance.model_version, PROMISE],
    ).fetchall()
    number = lasting[0][0] if lasting else number_of(score.name, performance.model_version, PROMISE, first.as_of_date)
    causes = "; ".join(f"{cause.name}: {cause.told}" for cause in performance.causes)
    row = {
        "score": score.name,
        "incident": number,
        "last_seen_on": newest.as_of_date,
        "impact": 1.0,  # of the score, it is all
        "columns": [one.metric for one in newest.metrics if one.verdict == "worse"],
        "told": f"on {len(worse)} matured dates in a row: {performance.told}",
        "origin": f"likely cause: {causes}" if causes else None,
    }
    if lasting:
        assigned = ", ".join(f"{name} = ${name}" for name in row if name not in ("score", "incident"))
        connection.execute(
            f"update monitoring.incidents set {assigned} where score = $score and incident = $incident", row
        )
        return
    opened = {
        "model_version": performance.model_version,
        "kind": PROMISE,
        "cause": None,
        "severity": "error",
        "began_on": first.as_of_date,
        "alerted_on": worse[score.alerts.dates - 1].as_of_date,
        "closed_on": None,
        "opened_at": datetime.now(UTC),
        "sent_at": None,
    }
    connection.execute("insert into monitoring.incidents by name select unnest(?)", [row | opened])
