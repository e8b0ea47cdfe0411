"""Loads raw tables as the dbt sources declare them: `config.meta.load.from` says where from, the source where to."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, time
from typing import cast

import dagster as dg
import duckdb
import msgspec

from ml.declarations import DeclarationError, Project, Source
from orchestration import landing, warehouse
from orchestration.addresses import expanded_url, without_secrets
from orchestration.batches import (
    MEANING_OF_OWN,
    Batch,
    LoadError,
    Loading,
    is_own,
    new_batch_id,
    quarantine_of,
    table_of,
    told,
)
from orchestration.events import batches_of_events
from orchestration.figures import Landed, create_tables, record_end, record_failure
from orchestration.files import batches_of_files
from orchestration.json_lines import json_rows
from orchestration.pages import batches_of_pages, check_api
from orchestration.project import Paths
from orchestration.shaping import refuse_rows_known_at_no_time
from orchestration.streams import address_of, batches_of_stream
from orchestration.tables import batches_of_table, check_table
from orchestration.telling import tell_sources
from orchestration.warehouse import Connection

# Scheme of `from` -> what gives its batches. A batch that has been landed is safe when the next one is asked for.
KINDS: dict[str, Callable[[Loading], Iterator[Batch]]] = {
    **dict.fromkeys(("", "package", "http", "https", "s3"), batches_of_files),
    "events": batches_of_events,
    **dict.fromkeys(("api+http", "api+https"), batches_of_pages),
    "nats": batches_of_stream,
    "postgresql": batches_of_table,
}


# What of a declaration only its kind can judge.
CHECKS: dict[str, Callable[[Source], object]] = {
    **dict.fromkeys(("api+http", "api+https"), check_api),
    "nats": address_of,
    "postgresql": check_table,
}


class Loaded(msgspec.Struct, kw_only=True):
    """What a load did: the rows of the raw table now, the batches that landed, and what else a person should know."""

    rows: int
    batches: list[Landed]
    notes: list[str]

    @property
    def changed(self) -> bool:
        return any(batch.landed or batch.replaced or batch.deleted for batch in self.batches)


def check_sources(project: Project) -> None:
    """Raises `DeclarationError` for sources that can never be loaded as they are declared, before any is."""
    faults = []
    for source in project.sources:
        try:
            if source.scheme in CHECKS:
                CHECKS[source.scheme](source)
        except LoadError as error:
            faults.append(str(error))
    if faults:
        raise DeclarationError("\n".join(faults))


def load(
    connection: Connection, source: Source, where: Paths, clock: datetime, log: Callable[[str], None] = print
) -> Loaded:
    """Lands what is new at a source, each batch in one transaction: killed at any instant, the next load goes on.

    Rows carry `_loaded_at` (UTC), `_batch_id` and `_source`; repaired rows of the quarantine come first. `clock` is the
    moment it is for the project. Raises `LoadError`; the batch at fault leaves no trace but its row in
    quality.source_metrics, those before it stay.
    """
    create_tables(connection)
    try:
        loaded = _load(connection, source, where, clock, log)
    except LoadError as error:
        with suppress(duckdb.Error):
            record_end(connection, source, str(error))
        raise
    record_end(connection, source, None)
    return loaded


def _load(connection: Connection, source: Source, where: Paths, clock: datetime, log: Callable[[str], None]) -> Loaded:
    try:
        uri = expanded_url(source)
    except LoadError as error:
        raise _unread(connection, source, str(error)) from None
    loading = Loading(
        connection=connection, source=source, project=where.project, data=where.data, uri=uri, clock=clock
    )
    refuse_rows_known_at_no_time(connection, source)
    landed = [_land(connection, patient, batch, clock) for patient, batch in _repaired(loading)]
    is_history = _is_first(connection, source)
    with closing(_read(loading)) as batches:
        for batch in batches:
            landed.append(_land(connection, source, batch, clock, is_history))
            log(f"{source.schema}.{source.table}: {landed[-1].rows:,} rows of {batch.source}")
    if not warehouse.exists(connection, source.schema, source.table):
        nothing = f"{told(source)}: nothing has come yet from '{without_secrets(source.uri)}'"
        raise LoadError("; ".join([nothing, *loading.notes]))
    connection.execute(
        "delete from quality.first_loads where schema_name = ? and table_name = ?", [source.schema, source.table]
    )
    (rows,) = warehouse.one(connection, f"select count(*) from {table_of(source)}")
    return Loaded(rows=rows, batches=landed, notes=loading.notes)


def _is_first(connection: Connection, source: Source) -> bool:
    """Whether this is the first full load of a table, or goes on with one that was stopped."""
    place = [source.schema, source.table]
    if not warehouse.exists(connection, *place):
        connection.execute("delete from quality.first_loads where schema_name = ? and table_name = ?", place)
        connection.execute("insert into quality.first_loads values (?, ?)", place)
    query = "select count(*) from quality.first_loads where schema_name = ? and table_name = ?"
    return bool(warehouse.one(connection, query, place)[0])


def _read(loading: Loading) -> Generator[Batch]:
    """The source's batches. That it can't be read is written down, as the failure of a batch is, and told."""
    source = loading.source
    try:
        # Closed here and now, not when the garbage is collected: a source may hold a connection.
        with closing(cast("Generator[Batch]", KINDS[source.scheme](loading))) as batches:
            yield from batches
        return
    except LoadError as error:
        fault = str(error)
    except duckdb.Error as error:
        fault = f"{told(source)}: can't be read, the table stays as it was: {_reason(error)}"
    except (OSError, UnicodeError, RecursionError) as error:
        fault = f"{told(source)}: can't be read, the table stays as it was: {type(error).__name__}: {error}"
    raise _unread(loading.connection, source, fault)


def _unread(connection: Connection, source: Source, fault: str) -> LoadError:
    """The error of a source of which no batch can be had, once it is written down."""
    unread = Batch(id=new_batch_id(), source=without_secrets(source.uri), relation="")
    record_failure(connection, source, unread, fault, datetime.now(UTC))
    return LoadError(fault)


def _repaired(loading: Loading) -> Iterator[tuple[Source, Batch]]:
    """The rows of the quarantine that somebody has repaired, a batch for each file or such that they came from.

    What is bad in them still goes back to the quarantine. A newer version of the file replaces them, too.
    """
    connection, source = loading.connection, loading.source
    if not (
        warehouse.exists(connection, "quarantine", source.table)
        and warehouse.exists(connection, source.schema, source.table)
    ):
        return
    quarantine = quarantine_of(source)
    waiting = f"from {quarantine} where repaired is not null and readmitted_at is null"
    for (origin,) in connection.execute(f"select distinct source {waiting} order by 1").fetchall():
        of_origin = f"repaired is not null and readmitted_at is null and source = {warehouse.literal(origin)}"
        # A repair is made by hand: a column that the table lacks is a slip of it, not the source's new one.
        known = warehouse.literal([column.lower() for column in loading.wanted() if not is_own(column)])
        connection.execute(
            f"""
            create or replace temp table repairs as
            select
                repaired as line,
                list_filter(json_keys(try_cast(repaired as json)), lambda key: lower(key) not in {known}) as unknown
            from {quarantine} where {of_origin};
            create or replace temp table lines as
            select line from temp.repairs where coalesce(len(unknown), 0) = 0
            """
        )
        rows = json_rows(connection, "temp.lines", loading.wanted())
        batch = Batch(
            id=new_batch_id(),
            source=origin,
            relation=rows.relation,
            form="json",
            sniffed=rows.sniffed,
            unreadable=f"""
                {rows.unreadable}
                union all
                select 'the table has no column ' || array_to_string(unknown, ', ') as rule, line as row
                from temp.repairs where len(unknown) > 0
            """,
            then=f"update {quarantine} set readmitted_at = now() where {of_origin}",
        )
        yield msgspec.structs.replace(source, max_rejected=1.0), batch


def _land(connection: Connection, source: Source, batch: Batch, clock: datetime, is_history: bool = False) -> Landed:
    loaded_at = datetime.now(UTC)
    try:
        with warehouse.transaction(connection):
            return landing.land(connection, source, batch, loaded_at, clock, is_history)
    except LoadError as error:
        fault = str(error)
    except duckdb.Error as error:
        fault = f"{told(source)}: {batch.source} did not land, the table stays as it was: {_reason(error)}"
    with suppress(duckdb.Error):  # a full disk takes no record of it either
        record_failure(connection, source, batch, fault, loaded_at)
    raise LoadError(fault)


def _reason(error: duckdb.Error) -> str:
    """What went wrong, in a line: without the settings that follow the first empty line, and of a stream the cause."""
    return " ".join(str(error).partition("\n\n")[0].rpartition("IOError: ")[2].split())


def clock_of(project: Project) -> datetime:
    """The moment it is for the project: the start of the day that it fixed, or now; UTC."""
    return datetime.combine(project.today, time.min, UTC) if project.today else datetime.now(UTC)


def _freshness(connection: Connection, source: Source, project: Project) -> dg.AssetCheckResult:
    """dbt's source freshness, but on the clock of the project: `dbt source freshness` knows the real one alone."""
    column = warehouse.name(source.loaded_at)
    try:
        (newest,) = warehouse.one(connection, f"select max({column})::timestamptz from {table_of(source)}")
    except duckdb.Error as error:
        raise LoadError(
            f"{told(source)}: loaded_at_field '{source.loaded_at}' gives no time: {str(error).splitlines()[0]}"
        ) from None
    days = (clock_of(project) - newest).total_seconds() / 86_400 if newest else math.inf
    is_late = days > (source.error_after_days or math.inf)
    return dg.AssetCheckResult(
        check_name="freshness",
        passed=not is_late and days <= (source.warn_after_days or math.inf),
        severity=dg.AssetCheckSeverity.ERROR if is_late else dg.AssetCheckSeverity.WARN,
        description=f"newest {source.loaded_at}: {newest or 'no row'}{_too_old(source, days)}",
        metadata={"newest": str(newest), "days old": round(days, 3) if newest else "no row"},
    )


def _too_old(source: Source, days: float) -> str:
    limits = {"warns": source.warn_after_days, "fails": source.error_after_days}
    told_limits = " and ".join(f"{does} after {limit:g}" for does, limit in limits.items() if limit is not None)
    age = f", {days:.1f} days old" if math.isfinite(days) else ""
    return f"{age}; it {told_limits} days"


def raw_asset(
    source: Source, key: dg.AssetKey, figures: list[dg.AssetKey], project: Project, where: Paths
) -> dg.AssetsDefinition:
    """The asset of a declared raw table, under the key that dagster-dbt gives the dbt source.

    `figures` are the keys that quality.source_metrics has, which each load writes to: none if no model reads it.
    """

    has_freshness = source.warn_after_days is not None or source.error_after_days is not None
    freshness = dg.AssetCheckSpec(
        "freshness",
        asset=key,
        description=f"The newest {source.loaded_at} is as young as its freshness asks, by the project's clock.",
    )

    @dg.asset(
        key=key,
        check_specs=[freshness] if has_freshness else [],
        group_name="raw",
        kinds={"duckdb", "source"},
        description=source.description or None,
        owners=[source.owner] if "@" in source.owner else [],
        metadata={"loaded from": without_secrets(source.uri)},
        pool="warehouse",
    )
    def raw_table(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        with warehouse.open_warehouse(where.warehouse) as connection:
            try:
                loaded = load(connection, source, where, clock_of(project), context.log.info)
            finally:  # a failure is a thing to tell, too
                tell_sources(connection, project, where)
                for told_in in figures:
                    context.log_event(dg.AssetMaterialization(told_in))
            columns = warehouse.columns(connection, source.schema, source.table)
            checked = [_freshness(connection, source, project)] if has_freshness else []
        described = {**MEANING_OF_OWN, **source.columns}
        schema = [dg.TableColumn(name, kind, description=described.get(name)) for name, kind in columns.items()]
        set_aside = sum(batch.set_aside for batch in loaded.batches)
        added = [column for batch in loaded.batches for column in batch.added_columns]
        left_out = dict.fromkeys(column for batch in loaded.batches for column in batch.left_out_columns)
        notes = [
            *loaded.notes,
            *([f"bad rows, in {quarantine_of(source)}: {set_aside:,}".replace('"', "")] if set_aside else []),
            *([f"new columns: {', '.join(added)}"] if added else []),
            *([f"null, since they are not declared and did not come: {', '.join(left_out)}"] if left_out else []),
        ]
        not_here = loaded.batches[-1].not_here if loaded.batches else 0
        if not_here:
            notes.append(f"only at the source, as set aside, or older than the overlap when they came: {not_here:,}")
        for note in notes:
            context.log.warning(f"{source.schema}.{source.table}: {note}")
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": loaded.rows,
                "dagster/column_schema": dg.TableSchema(columns=schema),
                "batches": len(loaded.batches),
                "rows landed": sum(batch.landed for batch in loaded.batches),
                "rows set aside": set_aside,
                "note": "; ".join(notes),
                "changed": loaded.changed,
            },
            check_results=checked,
        )

    return raw_table
