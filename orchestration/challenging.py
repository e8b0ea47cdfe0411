"""A challenger scores the customers that the champion scores, and is compared with it: it is never served.

Its predictions stand beside the champion's under its own `model_version`.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import msgspec

from ml.declarations import Score
from orchestration import versions, warehouse
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection


class Comparison(msgspec.Struct, frozen=True):
    """Two versions on the customers that both have scored at an as-of date, the newest that both have.

    `rank_correlation` is Spearman's, 1 where both put the customers in the same order; None where it can't be measured,
    as all scores of one are alike, or where a category is scored, whose score is of whichever class is likeliest.
    """

    as_of_date: date
    customers: int
    rank_correlation: float | None
    band_differs: float

    def __str__(self) -> str:
        order = f"rank correlation {self.rank_correlation:.3f}, " if self.rank_correlation is not None else ""
        return (
            f"{self.customers:,} customers scored by both at {self.as_of_date}, {order}"
            f"{self.band_differs:.1%} in another band"
        )


def score_in_shadow(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    scored: Callable[[dict[str, Any]], object],
    log: logging.Logger,
) -> str | None:
    """Lets the challenger score by `scored`, and tells how it compares with the champion, or why it can't.

    None if there is no other version yet. Whatever ails it stops nothing: customers are the champion's. What nobody has
    foreseen is in the log with its traceback.
    """
    challenger = versions.challenger(connection, score, champion)
    if challenger is None:
        return None
    name = f"version {challenger['version']}"
    try:
        scored(challenger)
    except ScoringError as error:
        return f"{name} can't score: {error}"
    except Exception as error:  # whatever it is, the champion has scored
        log.warning(f"{name}, the challenger, can't score", exc_info=True)
        return f"{name} can't score: {type(error).__name__}: {error}"
    found = compare_versions(connection, score, champion["version"], challenger["version"])
    return f"{name}: {found or 'no customer was scored by both yet'}"


def compare_versions(connection: Connection, score: Score, one: int, other: int) -> Comparison | None:
    """How the predictions of two versions compare; None where they have no as-of date in common."""
    if not warehouse.exists(connection, "predictions", score.name):
        return None
    predictions, entity = warehouse.name("predictions", score.name), warehouse.names(score.entity)
    # Customers with the same score share the mean of their ranks.
    rank = "rank() over (order by {0}) + (count(*) over (partition by {0}) - 1) / 2.0"
    rows = warehouse.rows(
        connection,
        f"""
        with newest as (
            select max(as_of_date) as as_of_date from {predictions} where model_version = ? and as_of_date in (
                select as_of_date from {predictions} where model_version = ?
            )
        ),

        pairs as (
            select one.as_of_date, one.score as one, other.score as other, one.band is distinct from other.band as moved
            from (select * from {predictions} where model_version = ?) as one
            inner join (select * from {predictions} where model_version = ?) as other using ({entity}, as_of_date)
            where as_of_date = (select as_of_date from newest)
        ),

        ranked as (select *, {rank.format("one")} as rank_of_one, {rank.format("other")} as rank_of_other from pairs)

        select max(as_of_date)::date as as_of_date, count(*) as customers, avg(moved::integer) as band_differs,
            corr(rank_of_one, rank_of_other) as rank_correlation
        from ranked
        """,
        [one, other, one, other],
    )
    found = rows[0]
    if not found["customers"]:
        return None
    order = found["rank_correlation"]
    if score.kind == "category" or order is None or order != order:  # NaN where all are alike
        found["rank_correlation"] = None
    return Comparison(**found)
