"""Builds rows of a feature model anew, as they would have come out on a past day, and compares them with those stored.

It happens in a data folder of its own, removed in the end: the warehouse is only read, and others may use it meanwhile.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ml.declarations import Project, Score
from orchestration import warehouse
from orchestration.batches import KNOWN_AT, is_own
from orchestration.comparing import STORED, Difference, NotRecomputed, compare
from orchestration.project import Paths, environment, exclusively
from orchestration.warehouse import Connection

SEED = 20170327  # of the scramble
# What dbt builds into the warehouse that it is given, and from nothing but what is there.
BUILT_APART = ("table", "view", "incremental", "ephemeral", "materialized_view", "seed")
MOST_LINES = 20  # of what dbt says when it fails


class Recomputed(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one as-of date: how many are stored, how many raw rows became known only on that day or later, and
    how the rows differ from those computed without these, or where it `is_scrambled`, with noise in them."""

    as_of: str
    is_scrambled: bool
    rows: int
    later: int
    differences: list[Difference]
    seconds: float


def ancestors(manifest: Mapping[str, Any], unique_id: str) -> list[str]:
    """All that a model comes from, sorted, itself included: dbt's unique_ids."""
    found, waiting = set(), [unique_id]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += manifest["parent_map"].get(one, [])
    return sorted(found)


def raw_tables(manifest: Mapping[str, Any], unique_id: str) -> list[tuple[str, str]]:
    """(schema, table) of the sources that a model comes from."""
    sources = [manifest["sources"][one] for one in ancestors(manifest, unique_id) if one in manifest["sources"]]
    return [(source["schema"], source["identifier"]) for source in sources]


def recomputed(
    score: Score,
    as_of_dates: Sequence[str],
    is_scrambled: bool,
    project: Project,
    manifest: Mapping[str, Any],
    where: Paths,
    log: Callable[[str], None],
) -> Iterator[Recomputed]:
    """Each as-of date of a score's feature model, recomputed and compared, the newest first.

    What became known on the day or later is left out of the raw tables, and the clock is that day's; or it stays and
    is scrambled, and the clock is as ever. A raw table without `_known_at` is taken as it is.
    Raises `NotRecomputed` if the model can't be built apart from the warehouse, or dbt fails.
    """
    _refuse_what_is_built_elsewhere(score, manifest, where)
    keys = {(source.schema, source.table): {*source.key, source.known_at} for source in project.sources}
    with scratch(where) as apart:
        log(f"copying what {score.features} comes from")
        timed = _copy(score, as_of_dates, manifest, where, apart)
        # From date to date more rows go, or become noise: so one copy does for all, from the newest date on.
        gone = 0
        for as_of in sorted(as_of_dates, reverse=True):
            started, scrambled = time.monotonic(), 0
            log(f"building {score.features} as of {as_of}{', later facts scrambled' if is_scrambled else ''}")
            with warehouse.open_warehouse(apart.warehouse) as connection:
                _drop_built(connection, manifest)
                for place in timed:
                    if is_scrambled:
                        scrambled += _scramble(connection, place, keys.get(place, set()), as_of)
                    else:
                        gone += _leave_out(connection, place, as_of)
            _build(score, manifest, where, apart, None if is_scrambled else as_of)
            with warehouse.open_warehouse(apart.warehouse) as connection:
                rows, differences = compare(connection, score, as_of)
            yield Recomputed(
                as_of=as_of,
                is_scrambled=is_scrambled,
                rows=rows,
                later=scrambled if is_scrambled else gone,
                differences=differences,
                seconds=time.monotonic() - started,
            )


@contextmanager
def scratch(where: Paths) -> Iterator[Paths]:
    """A data folder of its own, for one process at a time; it is removed in the end, and what a killed one left before.

    Its name is new each time: the dbt of a process that was killed may write to the old one for another moment.
    """
    folder = where.data / "leaks"
    with exclusively(where.data / "leaks.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            yield Paths(project=where.project, data=Path(tempfile.mkdtemp(dir=folder)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_what_is_built_elsewhere(score: Score, manifest: Mapping[str, Any], where: Paths) -> None:
    """Raises `NotRecomputed` where dbt would not write to the scratch folder alone, or read what is not in it."""
    for unique_id in ancestors(manifest, score.features_id):
        kind = manifest["nodes"].get(unique_id, {}).get("config", {}).get("materialized", "table")
        if kind not in BUILT_APART:
            raise NotRecomputed(
                f"{score.features} comes from {unique_id}, a {kind}: its rows can't be computed anew apart from the"
                f" warehouse, so whether {score.features} is right in time can't be told"
                f" (what can be built anew: {', '.join(BUILT_APART)})"
            )
    file = where.project / "profiles.yml"
    for profile in (yaml.safe_load(file.read_text()) or {}).values():
        for output in (profile.get("outputs") or {}).values() if isinstance(profile, dict) else ():
            if "SCOREHOUSE_DATA" not in str(output.get("path")):
                raise NotRecomputed(
                    f"{file}: path is {output.get('path')!r}, so dbt would build into the warehouse itself, not"
                    " apart from it; write path: \"{{ env_var('SCOREHOUSE_DATA') }}/warehouse.duckdb\""
                )


def _copy(
    score: Score, as_of_dates: Sequence[str], manifest: Mapping[str, Any], where: Paths, apart: Paths
) -> list[tuple[str, str]]:
    """Copies the raw tables and the stored rows of the dates; those tables that tell when a row was known."""
    as_of, timed = warehouse.name(score.as_of), []
    with warehouse.open_warehouse(where.warehouse) as connection:
        connection.execute(f"attach {warehouse.literal(str(apart.warehouse))} as scratch")
        with warehouse.transaction(connection):
            for schema, table in raw_tables(manifest, score.features_id):
                if found := warehouse.columns(connection, schema, table):  # else dbt reads it elsewhere, as a file
                    connection.execute(f"create schema if not exists scratch.{warehouse.name(schema)}")
                    place = warehouse.name(schema, table)
                    connection.execute(f"create table scratch.{place} as from {place}")
                    timed += [(schema, table)] if KNOWN_AT in found else []
            connection.execute(
                f"""
                create schema scratch.{warehouse.name(STORED[0])};
                create table scratch.{warehouse.name(*STORED)} as
                from {warehouse.name(score.features_schema, score.features)}
                where {as_of}::varchar in ({", ".join(map(warehouse.literal, as_of_dates))})
                """
            )
    return timed


def _drop_built(connection: Connection, manifest: Mapping[str, Any]) -> None:
    """Drops what was built for another date: a model may refuse to be built from scratch over itself."""
    built = {(node["schema"], node["alias"]) for node in manifest["nodes"].values() if "alias" in node}
    query = """
        select table_schema, table_name, table_type from information_schema.tables
        where table_catalog = current_catalog()
    """
    for schema, table, kind in connection.execute(query).fetchall():
        if (schema, table) in built:
            what = "view" if kind == "VIEW" else "table"
            connection.execute(f"drop {what} {warehouse.name(schema, table)}")


def _since(as_of: str) -> str:
    return f"{KNOWN_AT} >= timestamptz {warehouse.literal(as_of)}"


def _leave_out(connection: Connection, place: tuple[str, str], as_of: str) -> int:
    """Deletes what became known on the day or later; how many rows."""
    return int(warehouse.one(connection, f"delete from {warehouse.name(*place)} where {_since(as_of)}")[0])


def _scramble(connection: Connection, place: tuple[str, str], kept: Set[str | None], as_of: str) -> int:
    """Deals the values of each column that is not `kept` out anew among the rows that became known on the day or later.

    So nothing of them says any more what it belongs to, but each value is one that occurs. How many rows.
    """
    table, columns = warehouse.name(*place), list(warehouse.columns(connection, *place))
    connection.execute(f"create or replace temp table later as from {table} where {_since(as_of)}")
    (rows,) = warehouse.one(connection, "select count(*) from temp.later")
    moved = [column for column in columns if not is_own(column) and column not in kept]
    stays = [column for column in columns if column not in moved]
    dealt = "".join(
        f" positional join (select {warehouse.name(column)} from temp.later"
        f" order by hash(rowid, {number}, {SEED})) as column_{number}"
        for number, column in enumerate(moved)
    )
    connection.execute(
        f"""
        delete from {table} where {_since(as_of)};
        insert into {table} by name
        from (select {warehouse.names(stays)} from temp.later order by rowid) as stays {dealt};
        drop table temp.later
        """
    )
    return int(rows)


def _build(score: Score, manifest: Mapping[str, Any], where: Paths, apart: Paths, today: str | None) -> None:
    """Lets dbt build the model and all that it comes from in the scratch folder, with `today` as the clock if given."""
    arguments = ["--quiet", "--no-use-colors", "build", "--full-refresh"]
    arguments += ["--select", f"+{'.'.join(manifest['nodes'][score.features_id]['fqn'])}"]
    arguments += ["--exclude-resource-type", "test", "--exclude-resource-type", "unit_test"]
    arguments += ["--project-dir", str(where.project), "--profiles-dir", str(where.project)]
    arguments += ["--vars", f"{{today: '{today[:10]}'}}"] if today else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestration.running_dbt", *arguments],
        cwd=where.project,
        env={**os.environ, **environment(apart)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NotRecomputed(
            f"{score.features}: dbt can't build it{f' as of {today}' if today else ''} apart from the warehouse"
            f" (exit code {done.returncode}):\n" + "\n".join(said[-MOST_LINES:])
        )
