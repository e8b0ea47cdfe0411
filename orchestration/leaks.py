"""The leak guard: features of past as-of dates, recomputed without what became known later, must be those stored.

`make leaks` runs the job `leaks`, in this process, shown while it happens and recorded where `make ui` looks.
"""

import argparse
import random
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec
from pydantic import Field

from ml.declarations import Project, Score
from orchestration import warehouse
from orchestration.batches import KNOWN_AT
from orchestration.built import as_defined, read_built
from orchestration.checks import RIGHT_IN_TIME, last_evaluation
from orchestration.comparing import NotRecomputed
from orchestration.instance import alive, open_instance
from orchestration.project import Paths, ProjectError, read_json
from orchestration.recomputing import Recomputed, ancestors, raw_tables, recomputed
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from rich.console import Console

OLDER = 2  # as-of dates that are drawn besides the newest but one: of the newest, nothing became known later
MOST_COLUMNS = 10  # that a finding lists
BY = {"scorehouse/by": "make leaks"}


class Guard(dg.Config):
    """Which as-of dates are recomputed (none: the newest but one, and two older ones), and how: without what became
    known later, or with it scrambled."""

    as_of: list[str] = Field(default=[])
    scramble: bool = False


class Trial(msgspec.Struct, frozen=True, order=True):
    """An as-of date to recompute, and how."""

    as_of: str
    is_scrambled: bool


def right_in_time(
    score: Score, key: dg.AssetKey, project: Project, manifest: Mapping[str, Any], where: Paths
) -> dg.AssetChecksDefinition:
    """The asset check of a feature model, which any of its scores stands for."""

    @dg.asset_check(
        asset=key,
        name=RIGHT_IN_TIME,
        blocking=True,
        description="Rows of past as-of dates are built anew from what was known before the date, and must be those"
        " that are stored. By itself weekly, in the job leaks; as_of and scramble say what else is tried.",
    )
    def guard(context: dg.AssetCheckExecutionContext, config: Guard) -> dg.AssetCheckResult:
        _refuse_another_definition(score, manifest, where)
        last = last_evaluation(context.instance, dg.AssetCheckKey(key, RIGHT_IN_TIME))
        failed = [] if last is None else _trials_in(last.metadata)
        with warehouse.open_warehouse(where.warehouse) as connection:
            dates = _as_of_dates(connection, score)
            tables = _tables(connection, score, manifest)
        if not dates:
            raise NotRecomputed(f"{_told(score)}: has no row yet; make run builds it")
        raw = {f"{schema}.{table}" for schema, table in raw_tables(manifest, score.features_id)}
        if raw <= set(tables) and not failed:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"nothing can be told of leaks: {', '.join(tables)} tell no known_at (docs/sources.md)",
            )
        asked, how = _asked(score, dates, config.as_of)
        context.log.info(f"· {_told(score)} at {', '.join(asked)}{', ' if how else ''}{how}")
        if tables:
            context.log.info(
                f"· {_told(score)}: taken as they are now, as they tell no known_at: {', '.join(tables)}; "
                "a leak from them is not found (known_at in docs/sources.md)"
            )
        trials = {Trial(as_of, config.scramble) for as_of in asked}
        # A failure stands until the same trial passes: other dates may be right.
        trials |= {trial for trial in failed if trial.as_of in dates}
        found = []
        for scrambled in (False, True):
            of_kind = [trial.as_of for trial in trials if trial.is_scrambled == scrambled]
            if of_kind:
                for one in recomputed(score, of_kind, scrambled, project, manifest, where, context.log.info):
                    context.log.info(_line(score, one))
                    found.append(one)
        wrong = [one for one in found if one.differences]
        findings = _findings(score, wrong, tables, manifest, where) if wrong else ""
        passed = f"{sum(one.rows for one in found):,} rows of {', '.join(sorted({one.as_of for one in found}))}"
        return dg.AssetCheckResult(
            passed=not wrong,
            severity=dg.AssetCheckSeverity.ERROR,
            description=findings or f"{passed} are as they come out of what was known then",
            metadata={
                "drawn": how or "all were asked for",
                "tried": [_line(score, one) for one in found],
                "taken as they are now": ", ".join(tables) or "none",
                "failed": [msgspec.to_builtins(Trial(one.as_of, one.is_scrambled)) for one in wrong],
            },
        )

    return guard


def _told(score: Score) -> str:
    return f"{score.features_schema}.{score.features}"


def _refuse_another_definition(score: Score, manifest: Mapping[str, Any], where: Paths) -> None:
    """Raises `NotRecomputed` if the stored rows were built by another SQL: they would differ, and be no leak."""
    if score.features_id not in as_defined(manifest, read_built(where)):
        raise NotRecomputed(
            f"{_told(score)}: what is stored was not built, or not by the SQL that the model and those it reads have"
            " now; make run builds it, then run make leaks again"
        )


def _as_of_dates(connection: Connection, score: Score) -> list[str]:
    """The as-of dates that are stored, as the warehouse writes them, the newest first."""
    if not warehouse.exists(connection, score.features_schema, score.features):
        return []
    as_of = warehouse.name(score.as_of)
    query = f"""
        select distinct {as_of}::varchar from {warehouse.name(score.features_schema, score.features)}
        where {as_of} is not null order by 1 desc
    """
    return [day for (day,) in connection.execute(query).fetchall()]


def _asked(score: Score, dates: Sequence[str], named: Sequence[str]) -> tuple[list[str], str]:
    """The dates that were named, or those drawn and how. Raises `NotRecomputed` if the model lacks one."""
    if named:
        found = [[day for day in dates if day == one or day.startswith(f"{one} ")] for one in named]
        for one, days in zip(named, found, strict=True):
            if not days:
                raise NotRecomputed(
                    f"{_told(score)}: has no rows of the as-of date {one!r} (it has {len(dates)} dates from {dates[-1]}"
                    f" to {dates[0]}; the newest: {', '.join(dates[:5])})"
                )
        return [day for days in found for day in days], ""
    seed = dates[0]
    older = random.Random(seed).sample(dates[2:], min(OLDER, len(dates[2:])))
    return [*dates[1:2], *sorted(older, reverse=True)] or [seed], f"of {len(dates)} dates, drawn with the seed {seed}"


def _tables(connection: Connection, score: Score, manifest: Mapping[str, Any]) -> list[str]:
    """The tables of which nothing tells when their rows were known, so that they are taken as they are now."""
    raw = [
        f"{schema}.{table}"
        for schema, table in raw_tables(manifest, score.features_id)
        if KNOWN_AT not in warehouse.columns(connection, schema, table)
    ]
    nodes = [manifest["nodes"].get(one, {}) for one in ancestors(manifest, score.features_id)]
    return raw + [f"{node['schema']}.{node['alias']}" for node in nodes if node.get("resource_type") == "seed"]


def _trials_in(metadata: Mapping[str, dg.MetadataValue[Any]]) -> list[Trial]:
    """The trials that failed when the check was last evaluated."""
    failed = metadata.get("failed")
    return msgspec.convert(failed.value, list[Trial]) if failed else []


def _line(score: Score, found: Recomputed) -> str:
    """How a trial went, in a line."""
    later = f"{found.later:,} later raw rows {'scrambled' if found.is_scrambled else 'left out'}"
    columns = [one.column for one in found.differences if one.column]
    differ = "1 column differs" if len(columns) == 1 else f"{len(columns)} columns differ"
    told = differ if columns else "rows are missing on one side"
    sign, verdict = ("✗", told) if found.differences else ("✓", "all as stored")
    return f"{sign} {_told(score)} at {found.as_of}: {found.rows:,} rows, {verdict}; {later}, {found.seconds:.1f} s"


def _findings(
    score: Score, wrong: Sequence[Recomputed], as_now: Sequence[str], manifest: Mapping[str, Any], where: Paths
) -> str:
    """What differs, with examples, what may be the cause, and what to do."""
    lineage = read_json(where.data / "dbt" / "lineage" / f"{score.features_id}.json").get("lineage", {})
    lines = []
    for found in wrong:
        how = "with later facts scrambled" if found.is_scrambled else "from what was known before it"
        lines.append(f"{_told(score)} at {found.as_of}, computed {how}:")
        for one in found.differences[:MOST_COLUMNS]:
            what = f"column {one.column} differs" if one.column else "whole rows are missing"
            made_from = [f"{parent.split('.')[-1]}.{column}" for parent, column in lineage.get(one.column, [])]
            lines.append(
                f"  {what} in {one.rows:,} of {found.rows:,} rows; {one.entity}: {one.stored} is stored,"
                f" {one.recomputed} comes out" + (f" (made from {', '.join(made_from)})" if made_from else "")
            )
        more = len(found.differences) - MOST_COLUMNS
        lines += [f"  and {more} more columns"] if more > 0 else []
    lines.append(
        f"A fact is used that became known on the as-of date or later: look at the joins on what these columns are made"
        f" from, each needs known_at < {score.as_of}."
    )
    with warehouse.open_warehouse(where.warehouse) as connection:
        rewritten = _rewritten(connection, raw_tables(manifest, score.features_id))
    dates = ", ".join(sorted({found.as_of for found in wrong}))
    if rewritten:
        lines.append(
            f"Or history was rewritten since: {', '.join(rewritten)}. Then the rows of {dates} are to be built again:"
            " make run FULL_REFRESH=1."
        )
    if as_now:
        lines.append(f"Of {', '.join(as_now)} nothing tells when a row was known; what changed there differs, too.")
    return "\n".join(lines)


def _rewritten(connection: Connection, tables: Sequence[tuple[str, str]]) -> list[str]:
    """The raw tables of which rows that had landed have changed or gone, each with what is known of it."""
    found = []
    for schema, table in tables:
        if "_batch_id" not in warehouse.columns(connection, schema, table):
            continue
        held = f"select _batch_id from {warehouse.name(schema, table)}"
        replaced, deleted, anew = warehouse.one(
            connection,
            f"""
            select
                coalesce(sum(replaced), 0), coalesce(sum(deleted), 0),
                count(*) filter (landed > 0 and is_followed and batch_id not in ({held}))
            from (
                select *, lead(batch_id) over (partition by source order by loaded_at) is not null as is_followed
                from quality.source_metrics where schema_name = ? and table_name = ? and status <> 'failed'
            )
            """,
            [schema, table],
        )
        counts = {"rows replaced": replaced, "rows deleted": deleted, "batches read anew": anew}
        if told := ", ".join(f"{what}: {count:,}" for what, count in counts.items() if count):
            found.append(f"{schema}.{table} ({told})")
    return found


def _leaks(where: Paths, console: "Console", log: Path, model: str | None, config: Guard) -> int:
    """Runs the job `leaks` on all feature models, or one; the exit code."""
    from orchestration.display import Display, tell_failures
    from orchestration.run import read_and_import

    display = Display(console)
    with display.progress:
        project = read_and_import(where)
        from orchestration.definitions import define

        scores = {score.features: score for score in project.scores}
        if not scores:
            raise ProjectError(f"{where.project}: declares no score, so it has no feature model to look at")
        if model is not None and model not in scores:
            raise ProjectError(f"{model}: is no feature model of a score (those are: {', '.join(sorted(scores))})")
        job = define(where).resolve_job_def("leaks")
        if model is not None:
            checks = job.asset_layer.asset_graph.asset_check_keys
            job = job.get_subset(asset_check_selection={key for key in checks if key.asset_key.path[-1] == model})
        run_id, instance = str(uuid.uuid4()), open_instance(where)
        display.progress.update(display.task, description="looking for leaks")
        instance.add_event_listener(run_id, display)
        with alive(where, run_id):
            result = job.execute_in_process(
                instance=instance,
                run_id=run_id,
                raise_on_error=False,
                tags=BY,
                run_config={"ops": {op: {"config": config.model_dump()} for op in job.graph.node_dict}},
            )
    tell_failures(display, where, run_id)
    if not result.success:
        console.print(f"[red]Failed[/]. Read more in {log} or with `make ui`.", soft_wrap=True)
        return 1
    right = sorted(check.asset_key.path[-1] for check in result.get_asset_check_evaluations() if check.passed)
    if right:
        console.print(f"Right in time: {', '.join(right)}", soft_wrap=True)
    return 0


def main() -> int:
    from orchestration.run import in_sight

    parser = argparse.ArgumentParser(prog="make leaks", description=__doc__)
    parser.add_argument("--model", help="a feature model; all if not given")
    parser.add_argument("--as-of", nargs="+", default=[], help="as-of dates; the newest but one, and two drawn")
    parser.add_argument("--scramble", action="store_true", help="scramble what became known later, not leave it out")
    asked = parser.parse_args()
    config = Guard(as_of=asked.as_of, scramble=asked.scramble)
    return in_sight(lambda where, console, log: _leaks(where, console, log, asked.model, config))


if __name__ == "__main__":
    sys.exit(main())
