"""From a champion to scores in the warehouse."""

import hashlib
import importlib.metadata
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Score
from orchestration import versions, warehouse
from orchestration.challenging import score_in_shadow
from orchestration.checks import refuse_unsound
from orchestration.judging import current_champion
from orchestration.model_files import card_of, load_model
from orchestration.project import Paths
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa

    from ml.registry import Model

Tell = Callable[[int, int], None]

MOST_WORKERS = 4  # threads that score


def score_dates(
    connection: Connection,
    score: Score,
    champion: dict[str, Any],
    where: Paths,
    tell: Tell = lambda done, due: None,
) -> tuple[list[date], int]:
    """Scores every as-of date after the champion's training data whose rows are new or changed; gives dates and rows.

    Each date is replaced whole and recorded in a transaction of its own, the newest first, as it is the one to be
    served; one that the features no longer have is withdrawn. Killed at any instant, all dates before are kept, and the
    next call goes on. Rows stream through in Arrow batches; `tell` is called with the rows scored and those due. Raises
    `ScoringError` if there is nobody to score, the champion can't read the features as they are now, or the table of
    predictions is another entity's.
    """
    version, as_of = champion["version"], warehouse.name(score.as_of)
    query = f"{feature_rows(score)} where {as_of}::date > date '{champion['train_to']}'"
    per_date = made_from(connection, score, query)
    if not per_date:
        raise ScoringError(
            f"score '{score.name}': {_features(score)} has no rows after {champion['train_to']}, up to which version"
            f" {version} was trained, so there is nobody to score"
        )
    _make_table(connection, score)
    scored = versions.scored_dates(connection, score, version)
    due = [row for row in per_date if scored.get(row["as_of_date"]) != row["made_from"]]
    for day in sorted(scored.keys() - {row["as_of_date"] for row in per_date}):
        with warehouse.transaction(connection):
            _withdraw(connection, score, version, day)
            versions.forget_scored_dates(connection, score, version, [day])
    if not due:
        return [], 0

    from ml.encoding import EncodingError

    model = load_model(where, score, version)
    done, rows_due = 0, sum(row["rows"] for row in due)

    def add(rows: int) -> None:
        nonlocal done
        done += rows
        tell(done, rows_due)

    predictions = warehouse.name("predictions", score.name)
    for row in reversed(due):
        day, scored_at = row["as_of_date"], datetime.now(UTC)
        rows = f"{feature_rows(score)} where {as_of}::date = date '{day}'"
        with warehouse.transaction(connection):
            _withdraw(connection, score, version, day)
            try:
                _insert(connection, predictions, model, score, rows, scored_at, add)
            except EncodingError as error:
                raise ScoringError(
                    f"score '{score.name}': version {version} can't read the rows of"
                    f" {_features(score)}: {error}; either the column comes back, or a version trained without it"
                    " passes the gate"
                ) from None
            versions.record_scored_dates(connection, score, version, [row], scored_at)
    return [row["as_of_date"] for row in due], rows_due


def _withdraw(connection: Connection, score: Score, version: int, day: date) -> None:
    """Takes back what a version has said at an as-of date."""
    predictions = warehouse.name("predictions", score.name)
    connection.execute(f"delete from {predictions} where model_version = {version} and as_of_date::date = date '{day}'")


def feature_rows(score: Score) -> str:
    """SQL of the rows that predictions are made from: keys and features, also those that only an old champion reads."""
    columns = warehouse.names([*score.entity, score.as_of, *(column.name for column in score.model_columns)])
    return f"select {columns} from {_features(score)}"


def made_from(connection: Connection, score: Score, rows: str) -> list[dict[str, Any]]:
    """For each as-of date of a query of `feature_rows`: as_of_date, rows, made_from.

    `made_from` is a hash of what decides their predictions: the rows themselves, and bands, who is given reasons, and
    what scores, as the same rows are scored again under others.
    """
    told = score.explained
    setting = [score.bands, what_scores(), told.top, told.bands, told.sample]
    mark = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:8]
    return warehouse.rows(
        connection,
        f"""
        select
            {warehouse.name(score.as_of)}::date as as_of_date,
            count(*) as rows,
            count(*) || '-' || sum(hash({warehouse.WHOLE_ROW})::hugeint) || '-{mark}' as made_from
        from ({rows}) as {warehouse.WHOLE_ROW}
        group by 1
        order by 1
        """,
    )


def what_scores() -> str:
    """What else than a model and rows decides a score: the packages that encode, predict and calibrate.

    Not what trains alone: where that differs, a version is trained, and nothing is scored anew before it is champion.
    """
    packages = ("scorehouse", "catboost", "numpy")
    return " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def _features(score: Score) -> str:
    return warehouse.name(score.features_schema, score.features)


def _insert(
    connection: Connection,
    predictions: str,
    model: "Model",
    score: Score,
    rows: str,
    scored_at: datetime,
    tell: Callable[[int], None] = lambda rows: None,
) -> None:
    """Writes the predictions of the rows of a query, as they stream through the model; `tell` counts them."""
    import pyarrow as pa

    from ml import prediction

    failures: list[Exception] = []

    def scored(batch: pa.RecordBatch) -> pa.RecordBatch:
        return prediction.score_batch(model, score, batch, scored_at)

    def given(ready: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in ready:
                tell(batch.num_rows)
                yield batch
        except Exception as error:
            failures.append(error)
            raise

    with warehouse.batches(connection, rows) as batches, closing(_several_at_a_time(scored, batches)) as ready:
        first = next(ready)
        reader = pa.RecordBatchReader.from_batches(first.schema, given(chain([first], ready)))
        try:
            with warehouse.registered(connection, reader) as stream:
                connection.execute(f"insert into {predictions} by name select * from {stream}")
        except Exception:
            if failures:  # DuckDB hides it in a text with a traceback
                raise failures[0] from None
            raise


def _several_at_a_time(
    work: "Callable[[pa.RecordBatch], pa.RecordBatch]", batches: "Iterable[pa.RecordBatch]"
) -> "Generator[pa.RecordBatch, None, None]":
    """What becomes of each batch, in order: made by several threads, while the next is read and the one before written.

    Not by more than a few, since each batch in work takes memory.
    """
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    with ThreadPoolExecutor(workers) as threads:
        coming: deque[Future[pa.RecordBatch]] = deque()
        for batch in batches:
            if batch.num_rows:
                coming.append(threads.submit(work, batch))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _make_table(connection: Connection, score: Score) -> None:
    """The table of a score's predictions, whose keys have the types that they have in the features."""
    types = warehouse.columns(connection, score.features_schema, score.features)
    expected = {
        **{column: types[column] for column in score.entity},
        "as_of_date": types[score.as_of],
        "score": "DOUBLE",
        "band": "VARCHAR",
        "reasons": 'STRUCT(feature VARCHAR, "value" VARCHAR, contribution DOUBLE)[]',
        **({"probabilities": "MAP(VARCHAR, DOUBLE)"} if score.kind == "category" else {}),
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


def _unknown_classes(score: Score, version: int, where: Paths) -> str | None:
    """That `reasons` names classes which the version does not know, so that they explain nobody. It is no fault: a
    class may come with the next training."""
    card = card_of(where, score, version) if score.kind == "category" and score.explained.bands else None
    unknown = [name for name in score.explained.bands or () if card and name not in card.classes]
    if not card or not unknown:
        return None
    return (
        f"reasons: bands names {', '.join(unknown)}, which version {version} gives to nobody"
        f" (its classes: {', '.join(card.classes)})"
    )


def _telling(log: dg.DagsterLogManager) -> Tell:
    """Tells the log how far a scoring is, once a second at most, as each line is an event that Dagster keeps."""
    told = time.monotonic()

    def tell(done: int, due: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            log.info(f"scoring: {done:,} of {due:,} rows")

    return tell


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
            dates, rows = score_dates(connection, score, champion, where, _telling(context.log))
            query = f"""
                select count(*), max(as_of_date)::date from {warehouse.name("predictions", score.name)}
                where model_version = ?
            """
            total, newest = warehouse.one(connection, query, [champion["version"]])
            unknown = _unknown_classes(score, champion["version"], where)
            if unknown is not None:
                context.log.info(f"· predictions.{score.name}: {unknown}")
            compared = {}
            if score.shadow:
                told = score_in_shadow(
                    connection,
                    score,
                    champion,
                    lambda challenger: score_dates(connection, score, challenger, where),
                    context.log,
                )
                if told is not None:
                    context.log.info(f"· predictions.{score.name}: challenger: {told}")
                    compared = {"challenger": told}
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total,
                "rows scored now": rows,
                "as-of dates scored now": ", ".join(map(str, dates)) or "none: all were scored before",
                "newest as-of date": str(newest),
                "model version": champion["version"],
                "changed": bool(dates),
                **({"reasons": unknown} if unknown else {}),
                **compared,
            }
        )

    return predictions
