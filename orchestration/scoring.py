"""From a champion to scores in the warehouse."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Score
from orchestration import versions, warehouse
from orchestration.project import Paths
from orchestration.training import ScoringError, current_champion, model_folder
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa


def score_dates(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> tuple[list[date], int]:
    """Scores every as-of date after the champion's training data whose rows are new or changed; gives dates and rows.

    Each date is replaced whole, all in one transaction; rows stream through in Arrow batches.
    """
    features, predictions = (
        warehouse.name(score.features_schema, score.features),
        warehouse.name("predictions", score.name),
    )
    as_of = warehouse.name(score.as_of)
    columns = warehouse.names([*score.entity, score.as_of, *(column.name for column in score.columns)])
    query = f"select {columns} from {features} where {as_of}::date > date '{champion['train_to']}'"
    per_date = warehouse.rows(
        connection,
        f"""
        select {as_of}::date as as_of_date, count(*) as rows, count(*) || '-' || sum(hash(content)::hugeint) as features
        from ({query}) as content group by 1 order by 1
        """,
    )
    scored = (
        versions.scored_dates(connection, score, champion["version"])
        if warehouse.exists(connection, "predictions", score.name)
        else {}
    )
    due = [row for row in per_date if scored.get(row["as_of_date"]) != row["features"]]
    if not due:
        if not per_date:
            raise ScoringError(
                f"score '{score.name}': {features} has no rows after {champion['train_to']}, up to which version"
                f" {champion['version']} was trained, so there is nobody to score"
            )
        return [], 0

    import pyarrow as pa

    from ml import prediction, registry

    model = registry.load(model_folder(where.models, score, champion["version"]))
    scored_at = datetime.now(UTC)
    dates = ", ".join(f"date '{row['as_of_date']}'" for row in due)
    read = warehouse.batches(
        connection, f"{query} and {as_of}::date in ({dates}) order by {warehouse.names([score.as_of, *score.entity])}"
    )
    given = (prediction.score_batch(model, score, batch, scored_at) for batch in read)
    first = next(given)

    def all_batches() -> Iterator["pa.RecordBatch"]:
        yield first
        yield from given

    incoming = pa.RecordBatchReader.from_batches(first.schema, all_batches())
    connection.execute("create schema if not exists predictions")
    connection.begin()
    try:
        # An empty table of the same shape makes the table; the reader itself can be read only once.
        connection.register("incoming", first.schema.empty_table())
        connection.execute(f"create table if not exists {predictions} as select * from incoming")
        connection.register("incoming", incoming)
        connection.execute(
            f"delete from {predictions} where model_version = {champion['version']} and as_of_date::date in ({dates})"
        )
        connection.execute(f"insert into {predictions} by name select * from incoming")
        versions.record_scored_dates(connection, score, champion["version"], due, scored_at)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.unregister("incoming")
    return [row["as_of_date"] for row in due], sum(row["rows"] for row in due)


def predictions_asset(score: Score, features: dg.AssetKey, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's predictions."""

    @dg.asset(
        key=["predictions", score.name],
        deps=[dg.AssetKey(["models", score.name]), features],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"duckdb", "catboost"},
        description=f"{score.title}: one row per {' × '.join(score.entity)} × as_of_date × model_version."
        " Every as-of date after the champion's training data is scored.",
        pool="warehouse",
    )
    def predictions(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with warehouse.open_warehouse(where.warehouse) as connection:
            champion = current_champion(connection, score)
            dates, rows = score_dates(connection, score, champion, where)
            query = "select count(*), max(as_of_date)::date from predictions.{} where model_version = ?"
            total, newest = warehouse.one(connection, query.format(warehouse.name(score.name)), [champion["version"]])
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total,
                "rows scored now": rows,
                "as-of dates scored now": ", ".join(map(str, dates)) or "none: all were scored before",
                "newest as-of date": str(newest),
                "model version": champion["version"],
                "changed": bool(dates),
            }
        )

    return predictions
