"""From a champion to scores in the warehouse."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Score
from orchestration import versions, warehouse
from orchestration.challenging import score_in_shadow
from orchestration.checks import refuse_unsound
from orchestration.project import Paths
from orchestration.training import current_champion, engine, load_model
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from ml.registry import Model


def score_dates(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> tuple[list[date], int]:
    """Scores every as-of date after the champion's training data whose rows are new or changed; gives dates and rows.

    Each date is replaced whole, and one that the features no longer have is withdrawn, all in one transaction; rows
    stream through in Arrow batches. Raises `ScoringError` if there is nobody to score, the champion can't read the
    features as they are now, or the table of predictions is another entity's.
    """
    features, predictions = _features(score), warehouse.name("predictions", score.name)
    version, as_of = champion["version"], warehouse.name(score.as_of)
    query = f"{feature_rows(score)} where {as_of}::date > date '{champion['train_to']}'"
    per_date = made_from(connection, score, query)
    if not per_date:
        raise ScoringError(
            f"score '{score.name}': {features} has no rows after {champion['train_to']}, up to which version {version}"
            " was trained, so there is nobody to score"
        )
    _make_table(connection, score)
    scored = versions.scored_dates(connection, score, version)
    due = [row for row in per_date if scored.get(row["as_of_date"]) != row["made_from"]]
    withdrawn = sorted(scored.keys() - {row["as_of_date"] for row in per_date})
    replaced = [*withdrawn, *(row["as_of_date"] for row in due)]
    if not replaced:
        return [], 0

    from ml.encoding import EncodingError

    model = load_model(where, score, version)
    scored_at = datetime.now(UTC)
    listed = ", ".join(f"date '{day}'" for day in replaced)
    of_dates = f"model_version = {version} and as_of_date::date in ({listed})"
    ordered = f"{query} and {as_of}::date in ({listed}) order by {warehouse.names([score.as_of, *score.entity])}"
    with warehouse.transaction(connection):
        connection.execute(f"delete from {predictions} where {of_dates}")
        versions.forget_scored_dates(connection, score, version, replaced)
        try:
            _insert(connection, predictions, model, score, ordered, scored_at)
        except EncodingError as error:
            raise ScoringError(
                f"score '{score.name}': its champion, version {version}, can't read the rows of {features}: {error};"
                " either the column comes back, or a version trained without it passes the gate"
            ) from None
        versions.record_scored_dates(connection, score, version, due, scored_at)
    return [row["as_of_date"] for row in due], sum(row["rows"] for row in due)


def feature_rows(score: Score) -> str:
    """SQL of the rows that predictions are made from: keys and features, also those that only an old champion reads."""
    columns = warehouse.names([*score.entity, score.as_of, *(column.name for column in score.model_columns)])
    return f"select {columns} from {_features(score)}"


def made_from(connection: Connection, score: Score, rows: str) -> list[dict[str, Any]]:
    """For each as-of date of a query of `feature_rows`: as_of_date, rows, made_from.

    `made_from` is a hash of what decides their predictions: the rows themselves, and bands and engine, as the same rows
    are scored again under others.
    """
    setting = hashlib.sha256(json.dumps([score.bands, engine()]).encode()).hexdigest()[:8]
    return warehouse.rows(
        connection,
        f"""
        select
            {warehouse.name(score.as_of)}::date as as_of_date,
            count(*) as rows,
            count(*) || '-' || sum(hash({warehouse.WHOLE_ROW})::hugeint) || '-{setting}' as made_from
        from ({rows}) as {warehouse.WHOLE_ROW}
        group by 1
        order by 1
        """,
    )


def _features(score: Score) -> str:
    return warehouse.name(score.features_schema, score.features)


def _insert(
    connection: Connection, predictions: str, model: "Model", score: Score, rows: str, scored_at: datetime
) -> None:
    """Writes the predictions of the rows of a query, as they stream through the model."""
    import pyarrow as pa

    from ml import prediction

    failures: list[Exception] = []

    def scored(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                if batch.num_rows:
                    yield prediction.score_batch(model, score, batch, scored_at)
        except Exception as error:
            failures.append(error)
            raise

    with warehouse.batches(connection, rows) as batches:
        given = scored(batches)
        first = next(given, None)
        if first is None:  # all dates were withdrawn
            return
        reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], given))
        try:
            with warehouse.registered(connection, reader) as stream:
                connection.execute(f"insert into {predictions} by name select * from {stream}")
        except Exception:
            if failures:  # DuckDB hides it in a text with a traceback
                raise failures[0] from None
            raise


def _make_table(connection: Connection, score: Score) -> None:
    """The table of a score's predictions, whose keys have the types that they have in the features."""
    types = warehouse.columns(connection, score.features_schema, score.features)
    expected = {
        **{column: types[column] for column in score.entity},
        "as_of_date": types[score.as_of],
        "score": "DOUBLE",
        "band": "VARCHAR",
        "reasons": 'STRUCT(feature VARCHAR, "value" VARCHAR, contribution DOUBLE)[]',
        "model_version": "INTEGER",
        "scored_at": "TIMESTAMP WITH TIME ZONE",
    }
    table = warehouse.name("predictions", score.name)
    columns = ", ".join(f"{warehouse.name(column)} {kind}" for column, kind in expected.items())
    connection.execute(f"create schema if not exists predictions; create table if not exists {table} ({columns})")
    found = warehouse.columns(connection, "predictions", score.name)
    if found != expected:
        differ = ", ".join(sorted({f"{column} {kind}" for column, kind in found.items() ^ expected.items()}))
        old = warehouse.name(f"{score.name}_old")
        raise ScoringError(
            f"score '{score.name}': the predictions of before have other columns than those of now ({differ});"
            f" keep them under another name and run again: alter table {table} rename to {old}"
        )


def predictions_asset(score: Score, features: dg.AssetKey, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's predictions."""

    @dg.asset(
        key=["predictions", score.name],
        deps=[dg.AssetKey(["models", score.name]), features],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"duckdb", "catboost"},
        description=f"{score.title}: one row per {' × '.join(score.entity)} × as_of_date × model_version."
        " Every as-of date after the champion's training data is scored."
        + (" So it is by the challenger, the newest other version, which is never served." if score.shadow else ""),
        pool="warehouse",
    )
    def predictions(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            champion = current_champion(connection, score)
            dates, rows = score_dates(connection, score, champion, where)
            query = f"""
                select count(*), max(as_of_date)::date from {warehouse.name("predictions", score.name)}
                where model_version = ?
            """
            total, newest = warehouse.one(connection, query, [champion["version"]])
            compared = {}
            if score.shadow:
                told = score_in_shadow(
                    connection, score, champion, lambda challenger: score_dates(connection, score, challenger, where)
                )
                context.log.info(f"· predictions.{score.name}: challenger {told}")
                compared = {"challenger": told}
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total,
                "rows scored now": rows,
                "as-of dates scored now": ", ".join(map(str, dates)) or "none: all were scored before",
                "newest as-of date": str(newest),
                "model version": champion["version"],
                "changed": bool(dates),
                **compared,
            }
        )

    return predictions
