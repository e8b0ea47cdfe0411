"""Tells people what the loads brought: the file behind the page /sources, from quality.source_metrics."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
import msgspec

from ml.declarations import Project, Source
from orchestration import warehouse
from orchestration.addresses import without_secrets
from orchestration.batches import quarantine_of, table_of
from orchestration.project import Paths, replaced
from orchestration.warehouse import Connection
from serving.pages.sources import FILE, WIDEST, BatchFigures, SourceFigures, SourceReport, read_sources

DAY = 86_400


def tell_sources(connection: Connection, project: Project, where: Paths) -> None:
    """Writes what /sources shows of all raw tables, if it has changed: whole or not at all."""
    report = SourceReport(
        written_at=datetime.now(UTC), sources=[_figures(connection, source) for source in project.sources]
    )
    before = read_sources(where.reports)
    if before is not None and before.sources == report.sources:
        return
    with replaced(where.reports / FILE) as staged:
        staged.write_bytes(msgspec.json.encode(report))


def _figures(connection: Connection, source: Source) -> SourceFigures:
    batches = warehouse.rows(
        connection,
        f"""
        select * from quality.source_metrics where schema_name = ? and table_name = ?
        order by loaded_at desc limit {WIDEST}
        """,
        [source.schema, source.table],
    )
    ended = "select max(fault) from quality.last_loads where schema_name = ? and table_name = ?"
    (fault,) = warehouse.one(connection, ended, [source.schema, source.table])
    rows = waiting = 0
    if warehouse.exists(connection, source.schema, source.table):
        (rows,) = warehouse.one(connection, f"select count(*) from {table_of(source)}")
    if warehouse.exists(connection, "quarantine", source.table):
        query = f"select count(*) from {quarantine_of(source)} where readmitted_at is null"
        (waiting,) = warehouse.one(connection, query)
    return SourceFigures(
        name=f"{source.schema}.{source.table}",
        description=source.description,
        owner=source.owner,
        loaded_from=without_secrets(source.uri),
        rows=rows,
        quarantined=waiting,
        fault=fault,
        batches=[
            BatchFigures(
                source=batch["source"],
                loaded_at=batch["loaded_at"],
                status=batch["status"],
                fault=batch["fault"],
                rows=batch["rows"],
                landed=batch["landed"],
                rejected=batch["rejected"],
                rejected_by_rule=json.loads(batch["rejected_by_rule"] or "{}"),
                null_shares=json.loads(batch["null_shares"] or "{}"),
                volume=batch["volume_ratio"],
                lag_days=None if batch["freshness_lag_seconds"] is None else batch["freshness_lag_seconds"] / DAY,
                seconds=batch["seconds"],
            )
            for batch in reversed(batches)
        ],
    )


def figures_asset(key: dg.AssetKey, raw: Sequence[dg.AssetKey]) -> dg.AssetSpec:
    """quality.source_metrics, for a project that reads it: no step of its own makes it, the loads write it."""
    return dg.AssetSpec(
        key,
        deps=raw,
        group_name="quality",
        kinds={"duckdb"},
        description="What each batch of each raw table brought, and what became of it. One row per batch.",
    )
