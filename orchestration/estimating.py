"""Estimates what a score's metrics will be on each date it is given for, before labels mature: table
`monitoring.estimated_performance`."""

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from ml.estimation import EstimatedDate, EstimatedMetric, estimated_metrics
from orchestration import warehouse
from orchestration.model_files import card_of
from orchestration.outcomes import SAMPLED, predictions_of, read_scores
from orchestration.performance_tables import ESTIMATED, REALISED, replace_date, withdraw
from orchestration.project import Paths
from orchestration.training import SEED
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from ml.registry import Card

# What else decides an estimate: another text, and all dates are estimated again.
RECIPE = f"1 {SAMPLED} {SEED}"


def estimate(connection: Connection, score: Score, where: Paths) -> list[tuple[int, date]]:
    """Estimates the dates after the held-out ones of each version that are new or whose predictions have changed; gives
    the versions and as-of dates of now.

    What was withdrawn of the predictions is withdrawn here too. An amount has no estimate. A version whose card is
    damaged, of a category, waits until it is back. The tables are there.
    """
    withdraw(connection, ESTIMATED, score)
    if score.kind == "amount":
        return []
    done = []
    cards: dict[int, Card | None] = {}
    for row in _due(connection, score):
        version, day = row["version"], row["as_of_date"]
        if score.kind == "category" and version not in cards:
            cards[version] = card_of(where, score, version)
        card = cards.get(version)
        if score.kind == "category" and card is None:
            continue
        scores = read_scores(connection, score, version, day, card.classes if card else (), SAMPLED, SEED)
        if not len(scores):
            continue
        (rows,) = warehouse.one(connection, predictions_of(score, version, day, "count(*)"))
        of_date = {"rows": rows, "sampled": len(scores), "made_from": row["made_from"]}
        of_date["estimated_at"] = datetime.now(UTC)
        found = [msgspec.structs.asdict(metric) | of_date for metric in estimated_metrics(score.kind, scores)]
        with warehouse.transaction(connection):
            replace_date(connection, ESTIMATED, score, version, day, found)
        done.append((version, day))
    return done


def _due(connection: Connection, score: Score) -> list[dict[str, Any]]:
    return warehouse.rows(
        connection,
        f"""
        select versions.version, dates.as_of_date, dates.made_from || ' {RECIPE}' as made_from
        from ml.scored_dates as dates
        inner join ml.model_versions as versions
            on versions.score = dates.score and versions.version = dates.model_version
        where dates.score = ? and versions.kind = ? and dates.as_of_date > versions.holdout_to
            and (dates.model_version, dates.as_of_date, dates.made_from || ' {RECIPE}') not in (
                select (model_version, as_of_date, made_from) from {ESTIMATED} where score = ?
            )
        order by versions.version, dates.as_of_date
        """,
        [score.name, score.kind, score.name],
    )


def estimates_of(connection: Connection, score: Score, version: int, day: date) -> dict[str, float]:
    """Metric -> what was estimated of a version's date."""
    query = f"select metric, estimated from {ESTIMATED} where score = ? and model_version = ? and as_of_date = ?"
    return dict(connection.execute(query, [score.name, version, day]).fetchall())


def estimated_dates(connection: Connection, score: Score, newest: int, served: dict[date, int]) -> list[EstimatedDate]:
    """The newest as-of dates that are estimated and not yet measured, the oldest first; of a date a version after the
    other. `served` are the versions that served."""
    found = warehouse.rows(
        connection,
        f"""
        select estimated.* from {ESTIMATED} as estimated
        inner join ml.model_versions as versions
            on versions.score = estimated.score and versions.version = estimated.model_version
        where estimated.score = $score and versions.kind = $kind
            and (estimated.model_version, estimated.as_of_date) not in (
                select (model_version, as_of_date) from {REALISED} where score = $score
            )
        qualify dense_rank() over (order by as_of_date desc) <= $newest
        order by as_of_date, model_version, estimated.rowid
        """,
        {"score": score.name, "kind": score.kind, "newest": newest},
    )
    dates: dict[tuple[date, int], EstimatedDate] = {}
    for row in found:
        key = (row["as_of_date"], row["model_version"])
        if key not in dates:
            of_date = {name: row[name] for name in ("as_of_date", "model_version", "rows", "sampled")}
            dates[key] = EstimatedDate(**of_date, served_version=served.get(row["as_of_date"]), metrics=[])
        dates[key].metrics.append(EstimatedMetric(**{name: row[name] for name in EstimatedMetric.__struct_fields__}))
    return list(dates.values())
