"""`make versions`: every version of every score, how good it is, what its gate said, and what became of it."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ml.declarations import DeclarationError, Score
from ml.gate import GateResult
from ml.metrics import METRICS
from orchestration import versions, warehouse
from orchestration.challenging import compare_versions
from orchestration.project import Paths, ProjectError, load_project, paths, refuse_unrun
from orchestration.promoting import score_named
from orchestration.publishing import served_now
from orchestration.warehouse import Connection


def list_versions(name: str) -> int:
    """Prints the versions of all scores, or of the one of that name; the exit code."""
    where = paths()
    try:
        project = load_project(where)
        refuse_unrun(where, project)
        scores = [score_named(project, name)] if name else list(project.scores)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            told = [line for score in scores for line in told_of_score(connection, score, where)]
    except (DeclarationError, ProjectError, warehouse.WarehouseError) as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    print("\n".join(told) or f"{where.project.name} declares no score")
    return 0


def told_of_score(connection: Connection, score: Score, where: Paths) -> Iterator[str]:
    """The lines of a score: what is served, then its versions, the newest first."""
    known = versions.all_versions(connection, score)
    champion = versions.champion(connection, score)
    other = versions.challenger(connection, score, champion) if champion and score.shadow else None
    served = served_now(score, where)
    is_served = (
        f"version {served.model_version} is served as of {served.as_of_date} to {served.rows:,} customers"
        if served
        else "nothing is served yet"
    )
    waits = served and champion and served.model_version != champion["version"]
    yield f"{score.name}: {is_served}" + (
        f"; the champion is version {champion['version']}, which make run publishes" if champion and waits else ""
    )
    if not known:
        yield "  no version has been trained yet; make run does it"
    for version in known:
        is_champion = champion is not None and champion["version"] == version["version"]
        is_challenger = other is not None and other["version"] == version["version"]
        yield from _version(connection, score, version, where, is_champion, is_challenger)
        if champion is not None and is_challenger:
            compared = compare_versions(connection, score, champion["version"], version["version"])
            yield f"    beside version {champion['version']}: {compared or 'no customer was scored by both yet'}"


def _version(
    connection: Connection, score: Score, version: Mapping[str, Any], where: Paths, is_champion: bool, shadow: bool
) -> Iterator[str]:
    from orchestration.judging import described, told_of
    from orchestration.model_files import is_whole

    number = version["version"]
    verdict = versions.gate_of(connection, score, number)
    promotions = [
        row for row in versions.promotions(connection, score) if number in (row["version"], row["replaced_version"])
    ]
    ended = promotions[-1] if promotions and promotions[-1]["version"] != number else None
    if is_champion:
        state = "champion"
    elif ended and ended["how"] == "rollback":
        state = "taken back"
    elif promotions:
        state = "was champion"
    elif not verdict:
        state = "not judged yet"
    else:
        state = "passed" if all(result.passed for result in verdict) else "refused"
    yield (
        f"  version {number}: {state}{', scores in shadow' if shadow else ''}; trained {_minute(version['trained_at'])}"
        f" on {version['train_from']} to {version['train_to']} ({version['train_rows']:,} rows),"
        f" held out {version['holdout_from']} to {version['holdout_to']}"
    )
    if version["trigger"]:
        yield f"    trained for: {version['trigger']}"
    if version["kind"] != score.kind:
        yield f"    is of another kind: {version['kind']}"
    yield f"    {'; '.join(_metrics(version, verdict))}"
    yield from (f"    {'✓' if result.passed else '✗'} {described(result)}" for result in verdict)
    yield from (f"    promoted: {told_of(row)}" for row in promotions if row["version"] == number)
    if ended:
        yield f"    replaced: {told_of(ended)}"
    if not is_whole(where, score, dict(version)):
        yield f"    its files in {where.models / score.name / str(number)} are gone or damaged"


def _metrics(version: Mapping[str, Any], verdict: list[GateResult]) -> Iterator[str]:
    """The metrics that the gate looks at, and the first one of the kind, each beside the champion's and the naive."""
    metrics, naive = json.loads(version["metrics"]), json.loads(version["baseline_metrics"])
    champions = json.loads(version["champion_metrics"]) if version["champion_metrics"] else {}
    named = {name for result in verdict for name in result.values}
    shown = [name for name in METRICS[version["kind"]] if name in metrics]
    for place, name in enumerate(shown):
        if place and not named & {name, f"champion_{name}", f"baseline_{name}"}:
            continue
        beside = f"champion then {champions[name]:.4f}, " if name in champions else ""
        yield f"{name} {metrics[name]:.4f} ({beside}naive {naive[name]:.4f})"


def _minute(at: Any) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
