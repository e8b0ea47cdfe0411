"""Builds the dbt project as Dagster assets: one asset a model, one asset check a data test, in one dbt invocation."""

import hashlib
import importlib
import importlib.metadata
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import dagster as dg
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliInvocation,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from packaging.version import Version
from pydantic import Field
from sqlglot.errors import SqlglotError

from ml.declarations import Project
from orchestration import warehouse
from orchestration.backfilling import Backfill, backfill_of, built_again
from orchestration.built import as_defined, definitions, last_built, read_built, redefined, write_built
from orchestration.checks import refuse_unsound
from orchestration.figures import create_tables
from orchestration.lineage import column_lineage
from orchestration.pinned import refuse_broken_contracts
from orchestration.project import Paths, read_json, replaced
from orchestration.warehouse import Connection

# dbt's own folders of earlier invocations (compiled SQL, results) that are kept to look things up in.
KEPT_INVOCATIONS = 10
# What the name of a table ends with while dbt builds another in its place.
PARKED = "__being_replaced"
# Seconds, all together.
IMPORTED_LATER = ("catboost", "sklearn.metrics", "scipy.stats")
IMPORTED_FOR_PAGES = ("evidently.presets",)  # if any score has them


class DbtEnded(RuntimeError):
    """dbt ended without results: how, what it said, and where its log is."""


class Build(dg.Config):
    """How dbt models are built: what is missing or new (the default), some as-of dates again, or all from scratch."""

    full_refresh: bool = False
    as_of_from: str | None = Field(default=None, description="First as-of date to build again, YYYY-MM-DD.")
    as_of_to: str | None = Field(default=None, description="Last as-of date to build again, YYYY-MM-DD.")


class Dbt(DbtCliResource):
    """The dbt command line, without what dagster-dbt does before each invocation and nothing here uses.

    It would ask `dbt --version` in a process of its own, and load a dbt adapter into this one, whose connection stays
    open and locks the warehouse: half of a small build's time. Both are private there, so a test watches over them.
    """

    @property
    def _cli_version(self) -> Version:
        return Version(importlib.metadata.version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> None:  # type: ignore[override]
        return None


def dbt_resource(where: Paths) -> DbtCliResource:
    return Dbt(
        project_dir=_dbt_project(where),  # type: ignore[arg-type]
        dbt_executable=sys.executable,
        global_config_flags=["-P", "-m", "orchestration.running_dbt"],
    )


def _dbt_project(where: Paths) -> DbtProject:
    return DbtProject(project_dir=where.project, target_path=where.dbt_target, profiles_dir=where.project)


SETTINGS = DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True, enable_code_references=True)
TRANSLATOR = DagsterDbtTranslator(settings=SETTINGS)


def asset_keys(manifest: Mapping[str, Any]) -> dict[str, dg.AssetKey]:
    """dbt's unique_id -> Dagster's key, for all that is a table."""
    nodes = [node for node in manifest["nodes"].values() if node["resource_type"] in ("model", "seed", "snapshot")]
    return {node["unique_id"]: TRANSLATOR.get_asset_key(node) for node in (*nodes, *manifest["sources"].values())}


def transformed_assets(manifest: Mapping[str, Any], project: Project, where: Paths) -> dg.AssetsDefinition:
    """All models and seeds of the project. Unit tests are left to development and CI, as dbt advises."""
    keys = asset_keys(manifest)

    @dbt_assets(
        manifest=manifest,
        project=_dbt_project(where),
        dagster_dbt_translator=TRANSLATOR,
        pool="warehouse",
        name="dbt_build",
    )
    def dbt_build(context: dg.AssetExecutionContext, dbt: DbtCliResource, config: Build) -> Iterator[Any]:
        refuse_unsound(context)
        refuse_broken_contracts(project, where)
        backfill = backfill_of(manifest, config.as_of_from, config.as_of_to)
        selected = context.selected_asset_keys
        with warehouse.open_warehouse(where.warehouse) as connection:
            create_tables(connection)
            _settle(connection)  # a build that was killed
            shrunk = _shrunk(connection, manifest)
            built, last = as_defined(manifest, read_built(where), shrunk=shrunk), last_built(where)
            outdated = [one for one in _outdated(connection, manifest, built, shrunk) if keys[one] in selected]
            all_built = built.keys() >= definitions(manifest).keys()
            is_news = config.full_refresh or backfill is not None or not all_built or _has_arrived(connection, last)
            write_built(where, built)
            if not config.full_refresh:
                _park(connection, [manifest["nodes"][unique_id] for unique_id in outdated])
        if outdated:
            told = ", ".join(manifest["nodes"][unique_id]["name"] for unique_id in outdated)
            context.log.info(f"building from scratch: {told} as now defined, and from what there is now, differ")
        arguments = ["build", "--exclude-resource-type", "unit_test"]
        if config.full_refresh:
            arguments += ["--full-refresh"]
        if backfill:
            arguments += ["--vars", json.dumps(backfill.dbt_variables)]
        events, failure = [], None
        with ThreadPoolExecutor() as beside:
            # dbt works in a process of its own: time enough for what the scores' steps import if they have work.
            has_pages = any(score.alerts.report for score in project.scores)
            later = [*IMPORTED_LATER, *(IMPORTED_FOR_PAGES if has_pages else ())] if is_news else []
            importing = [beside.submit(importlib.import_module, name) for name in later]
            invocation = dbt.cli(arguments, context=context)
            try:
                for event in invocation.stream():
                    events.append(event)
                    context.log.info(f"dbt: {event.metadata['unique_id'].value} done, {len(events)} so far")
            except Exception as error:
                failure = _explained(error, invocation)
            for imported in importing:
                imported.result()
        made = [str(event.metadata["unique_id"].value) for event in events if isinstance(event, dg.Output)]
        if failure is None and not context.is_subset:
            made += shrunk
        write_built(where, as_defined(manifest, built, made, shrunk))
        # The warehouse is free again only now: rows and lineage of what was built are read in one go.
        with warehouse.open_warehouse(where.warehouse) as connection:
            _settle(connection)
            for event in events:
                if isinstance(event, dg.Output):
                    event = _described(event, connection, invocation, keys, where, context.log)
                    event = _noted(event, connection, manifest, outdated, backfill)
                yield event
        _prune(where)
        if failure is not None:
            raise failure

    return dbt_build


def _shrunk(connection: Connection, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The sources whose raw table has lost rows that were gone at their origin -> when it did last."""
    found = connection.execute(
        """
        select schema_name, table_name, max(loaded_at)::varchar from quality.source_metrics
        where deleted > 0 group by 1, 2
        """
    ).fetchall()
    last = {(schema, table): when for schema, table, when in found}
    return {
        source["unique_id"]: last[source["schema"], source["identifier"]]
        for source in manifest["sources"].values()
        if (source["schema"], source["identifier"]) in last
    }


def _has_arrived(connection: Connection, last: datetime | None) -> bool:
    """Whether a batch of rows has landed since dbt built last."""
    (newest,) = warehouse.one(connection, "select max(loaded_at) from quality.source_metrics")
    return last is None or (newest is not None and newest >= last)


def _explained(failure: Exception, invocation: DbtCliInvocation) -> Exception:
    """Why dbt has failed: as it is, where its results tell more, else how it ended and what it said."""
    code, log = invocation.process.poll(), invocation.target_path / "dbt.log"
    if code is None or (invocation.target_path / "run_results.json").is_file():
        return failure
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = str(failure).partition("Errors parsed from dbt logs:")[2].strip()
    if code == -signal.SIGKILL:
        said = "the system does so when memory is short: SCOREHOUSE_MEMORY_LIMIT limits what it takes"
    return DbtEnded(
        f"dbt ended without results ({how}){f': {said}' if said else ''}"
        + (f"\nits log: {log}" if log.is_file() else "; what it said is in the log of the run")
    )


def _outdated(
    connection: Connection, manifest: Mapping[str, Any], built: Mapping[str, str], shrunk: Mapping[str, str]
) -> list[str]:
    """The incremental models whose table has rows of another definition than theirs."""
    nodes = [manifest["nodes"][unique_id] for unique_id in redefined(manifest, built, shrunk)]
    return [node["unique_id"] for node in nodes if warehouse.exists(connection, node["schema"], node["alias"])]


def _park(connection: Connection, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Puts tables aside, so that dbt builds them from scratch and no others: its `--full-refresh` is of all."""
    tables = connection.execute("select schema_name, table_name from duckdb_tables()").fetchall()
    with warehouse.transaction(connection):
        for schema, table in {(node["schema"], node["alias"]) for node in nodes} & set(tables):  # dbt replaces views
            aside = warehouse.name(table + PARKED)
            connection.execute(f"alter table {warehouse.name(schema, table)} rename to {aside}")


def _settle(connection: Connection) -> None:
    """What was put aside goes where dbt has built another in its place, and is put back where it has not."""
    parked = connection.execute(
        "select schema_name, table_name from duckdb_tables() where ends_with(table_name, ?)", [PARKED]
    ).fetchall()
    with warehouse.transaction(connection):
        for schema, table in parked:
            own, aside = table.removesuffix(PARKED), warehouse.name(schema, table)
            if warehouse.exists(connection, schema, own):
                connection.execute(f"drop table {aside}")
            else:
                connection.execute(f"alter table {aside} rename to {warehouse.name(own)}")


def _described(
    event: dg.Output[Any],
    connection: Connection,
    invocation: DbtCliInvocation,
    keys: Mapping[str, dg.AssetKey],
    where: Paths,
    log: dg.DagsterLogManager,
) -> dg.Output[Any]:
    """The event with the table's rows and its columns' lineage."""
    node = invocation.manifest["nodes"][event.metadata["unique_id"].value]
    found: dict[str, Any] = {}
    if node["config"]["materialized"] not in ("view", "ephemeral"):
        (found["dagster/row_count"],) = warehouse.one(
            connection, f"select count(*) from {warehouse.name(node['schema'], node['alias'])}"
        )
    if node["resource_type"] == "model":
        try:
            lineage = _lineage(node, connection, invocation, where)
        except SqlglotError as error:  # a dialect's newest words, a model in Python: what is built stays built
            log.warning(f"{node['unique_id']}: has no column lineage, sqlglot can't read it: {error}")
            lineage = {}
        found["dagster/column_lineage"] = dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(keys[parent], made_from) for parent, made_from in deps]
                for column, deps in lineage.items()
            }
        )
    return event.with_metadata({**event.metadata, **found})


def _noted(
    event: dg.Output[Any],
    connection: Connection,
    manifest: Mapping[str, Any],
    outdated: Sequence[str],
    backfill: Backfill | None,
) -> dg.Output[Any]:
    """The event with a note for people, where its table was built otherwise than on other days."""
    unique_id = event.metadata["unique_id"].value
    note = None
    if unique_id in outdated:
        note = "built from scratch: its definition has changed, or that of what it is made from"
    elif backfill:
        note = built_again(connection, manifest["nodes"][unique_id], backfill)
    return event.with_metadata({**event.metadata, "note": note}) if note else event


def _lineage(
    node: Mapping[str, Any], connection: Connection, invocation: DbtCliInvocation, where: Paths
) -> dict[str, list[tuple[str, str]]]:
    """Column -> (parent's unique_id, column); kept until model, macros or the columns of what it reads change."""
    manifest = invocation.manifest
    tables, ids = {}, {}
    for unique_id in (*node["depends_on"]["nodes"], node["unique_id"]):  # an incremental model reads itself
        read = manifest["sources"].get(unique_id) or manifest["nodes"][unique_id]
        table = read.get("identifier") or read["alias"]
        relation = f"{read['schema']}.{table}"
        tables[relation], ids[relation] = warehouse.columns(connection, read["schema"], table), unique_id
    # The compiled text won't do: it differs from day to day, and between a full and an incremental build.
    own = node["package_name"]
    macros = [macro["macro_sql"] for macro in manifest["macros"].values() if macro["package_name"] == own]
    checksum = hashlib.sha256(json.dumps([node["checksum"], macros, ids, tables]).encode()).hexdigest()
    kept = where.data / "dbt" / "lineage" / f"{node['unique_id']}.json"
    if (stored := read_json(kept)).get("of") == checksum:
        return stored["lineage"]  # type: ignore[no-any-return]
    compiled = invocation.target_path / "compiled" / own / node["original_file_path"]
    found = column_lineage(compiled.read_text(), manifest["metadata"]["adapter_type"], tables)
    lineage = {
        column: sorted((ids[table], made_from) for table, made_from in deps if ids[table] != node["unique_id"])
        for column, deps in found.items()
    }
    with replaced(kept) as staged:
        staged.write_text(json.dumps({"of": checksum, "lineage": lineage}))
    return lineage


def _prune(where: Paths) -> None:
    """Removes all but the newest folders that invocations leave in dbt's target folder."""
    left = sorted(where.dbt_target.glob("dbt_build-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in left[:-KEPT_INVOCATIONS]:
        shutil.rmtree(folder, ignore_errors=True)
