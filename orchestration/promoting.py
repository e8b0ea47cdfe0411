"""What people decide of versions: `make train`, `make promote`, `make rollback`, `make rescore`; `make versions` lists
them.

Each decision is recorded first. Then what comes of it is made at once, in a run that the UI shows: predictions,
generation, reports. Where that is killed or stopped by a check, the next `make run` makes it.
"""

import argparse
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.declarations import Project, Score
from orchestration import versions, warehouse
from orchestration.instance import alive, give_slots_back, open_instance, turn
from orchestration.pinned import missing_columns
from orchestration.project import Paths, ProjectError
from orchestration.publishing import served_now
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from rich.console import Console

USAGE = {
    "train": 'SCORE=… REASON="…"',
    "promote": 'SCORE=… VERSION=… REASON="…"',
    "rollback": 'SCORE=… REASON="…", and VERSION=… where it is not the champion before',
    "rescore": "SCORE=…",
}


class NotPromoted(ProjectError):
    """A version can't become champion, or can't score anew: which, why, and what is possible."""


def promote(connection: Connection, score: Score, version: int, reason: str, where: Paths) -> dict[str, Any]:
    """Makes a version the champion, whatever its gate said; the row of `ml.promotions`. Raises `NotPromoted`."""
    refuse_unfit(connection, score, version, where)
    with warehouse.transaction(connection):
        return versions.promote(connection, score, version, "force", reason)


def roll_back(connection: Connection, score: Score, version: int | None, reason: str, where: Paths) -> dict[str, Any]:
    """Makes an earlier champion the champion again, if none is named the last before the present one.

    Gives the row of `ml.promotions`. Raises `NotPromoted`.
    """
    present, before = versions.champion(connection, score), versions.champions_before(connection, score)
    if version is not None and (present is None or version != present["version"]) and version not in before:
        _known(connection, score, version)
        raise NotPromoted(
            f"score '{score.name}': version {version} is no champion to go back to (those are:"
            f" {_listed(before)}); make promote promotes it"
        )
    if version is None and not before:
        now = f"version {present['version']} is the first champion" if present else "there is no champion yet"
        raise NotPromoted(f"score '{score.name}': {now}, so there is none to go back to")
    goes_to = before[0] if version is None else version
    refuse_unfit(connection, score, goes_to, where)
    with warehouse.transaction(connection):
        return versions.promote(connection, score, goes_to, "rollback", reason)


def refuse_unfit(connection: Connection, score: Score, version: int, where: Paths) -> None:
    """Raises `NotPromoted` unless a version can score in the champion's place: it is there, of the score's kind, whole,
    and can read the features as they are declared and built now."""
    from orchestration.model_files import load_model
    from orchestration.training_sets import ScoringError

    known = _known(connection, score, version)
    told = f"score '{score.name}': version {version}"
    champion = versions.champion(connection, score)
    if champion is not None and champion["version"] == version:
        served = served_now(score, where)
        stale = served is not None and served.model_version != version
        raise NotPromoted(
            f"{told} is the champion already"
            + (f"; served is still version {served.model_version}: make run publishes it" if served and stale else "")
        )
    if known["kind"] != score.kind:
        raise NotPromoted(
            f"{told} is of kind {known['kind']}, but the score of kind {score.kind} now; make run trains one"
        )
    try:
        model = load_model(where, score, version)
    except ScoringError as error:
        raise NotPromoted(str(error)) from None
    model_file = f"{score.features_file}: model '{score.features}'"
    faults = [
        f"column '{name}' is {now}, but version {version} needs it{wanted}"
        for name, now, wanted in missing_columns(connection, score, model.card)
    ]
    built = warehouse.columns(connection, score.features_schema, score.features)
    unbuilt = [column.name for column in score.model_columns if column.name not in built]
    if faults:
        raise NotPromoted(f"{told} can't read its features: {model_file}: {'; '.join(faults)}")
    if unbuilt:
        raise NotPromoted(
            f"{told} can't score yet: {model_file} is not built with {', '.join(unbuilt)}; make run builds it"
        )


def rescore(connection: Connection, score: Score, where: Paths) -> str:
    """Has the champion's dates scored anew by what runs next; what was asked for. Raises `NotPromoted`.

    Not by a champion whose files are damaged: the predictions that there are would be lost to the next generations.
    """
    from orchestration.model_files import DamagedModel, load_model

    champion = versions.champion(connection, score)
    if champion is None:
        raise NotPromoted(f"score '{score.name}': there is no champion yet, so there is nothing to score anew")
    try:
        load_model(where, score, champion["version"])
    except DamagedModel as error:
        raise NotPromoted(str(error)) from None
    dates = versions.mark_unscored(connection, score, champion["version"])
    return f"version {champion['version']} scores its {dates} as-of dates anew"


def _known(connection: Connection, score: Score, version: int) -> dict[str, Any]:
    known = {row["version"]: row for row in versions.all_versions(connection, score)}
    if version not in known:
        raise NotPromoted(f"score '{score.name}': there is no version {version} (there are: {_listed(sorted(known))})")
    return known[version]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def score_named(project: Project, name: str) -> Score:
    """The score of that name. Raises `NotPromoted`, with those that there are."""
    found = {score.name: score for score in project.scores}
    if name not in found:
        raise NotPromoted(f"no score is called '{name}' (there are: {', '.join(found) or 'none'})")
    return found[name]


Decision = Callable[[Connection, Score], str]


def _decide(
    where: Paths, console: "Console", log: Path, name: str, command: str, decision: Decision, asked: str = ""
) -> int:
    """Records a decision on a score, and makes and publishes what comes of it; the exit code."""
    import dagster as dg

    from orchestration.display import Display, tell_failures
    from orchestration.run import read_and_import

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    display = Display(console)
    with display.progress:
        # The champion of now may miss a column that the other version does without.
        project = read_and_import(where, champion_goes_on=False)
        score = score_named(project, name)
        from orchestration.carding import tell_versions
        from orchestration.definitions import define
        from orchestration.mirroring import mirror

        run_id = str(uuid.uuid4())
        with turn(where, command, lambda whose: say(f"waiting for {whose}, which works on the same data")):
            with warehouse.open_warehouse(where.warehouse) as connection:
                versions.create_tables(connection)
                decided = decision(connection, score)
            say(f"{score.name}: {decided}")
            everything = define(where).resolve_job_def("everything")
            made = [("predictions", name), ("generations", name)]
            made += [("reports", f"{name}_{report}") for report in ("drift", "performance")]
            config: dict[str, Any] = {}
            if asked:
                made += [("training_sets", name), ("models", name)]
                config = {"ops": {f"models__{name}": {"config": {"asked": asked}}}}
            keys = {dg.AssetKey(key) for key in made}
            job = everything.get_subset(asset_selection=keys)
            instance = open_instance(where)
            give_slots_back(instance, where, run_id)
            display.progress.update(display.task, total=len(keys))
            instance.add_event_listener(run_id, display)
            with alive(where, run_id):
                result = job.execute_in_process(
                    instance=instance,
                    run_id=run_id,
                    raise_on_error=False,
                    run_config=config,
                    tags={"scorehouse/by": command, "scorehouse/decision": f"{score.name}: {decided}"},
                )
            with warehouse.open_warehouse(where.warehouse) as connection:
                tell_versions(connection, score, where)
            mirror(project, score, where, run_id, say)
    served = served_now(score, where)
    is_served = f"version {served.model_version} as of {served.as_of_date}" if served else "nobody yet"
    if not result.success:
        tell_failures(display, where, run_id)
        console.print(
            f"[red]Not published[/]: the decision stands, and {score.name} is served by {is_served} until a run"
            f" succeeds (make run). Read more in {log} or with `make ui`.",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    generation = f" ({served.generation}, {served.rows:,} customers)" if served else ""
    say(f"{score.name} is served by {is_served}{generation}. make versions SCORE={score.name} lists all.")
    return 0


def main() -> int:
    from orchestration.run import in_sight

    parser = argparse.ArgumentParser(prog="make", description=__doc__)
    parser.add_argument("command", choices=["list", *USAGE])
    for name, what in (("score", "which"), ("version", "which"), ("reason", "why, for those who come after")):
        parser.add_argument(f"--{name}", default="", help=what)
    asked = parser.parse_args()
    command, name, reason = f"make {asked.command}", asked.score.strip(), " ".join(asked.reason.split())
    if asked.command == "list":
        from orchestration.listing import list_versions

        return list_versions(name)
    needs = {
        "train": (name, reason),
        "promote": (name, asked.version, reason),
        "rollback": (name, reason),
        "rescore": (name,),
    }
    if not all(needs.get(asked.command, (name, reason))):
        return _usage(f"{command}: say {USAGE[asked.command]}")
    if asked.version and not re.fullmatch("[0-9]{1,9}", asked.version):
        return _usage(f"{command}: '{asked.version[:40]}' is no version; say {USAGE[asked.command]}")
    version = int(asked.version) if asked.version else None

    def work(where: Paths, console: "Console", log: Path) -> int:
        from orchestration.judging import described, told_of

        by = versions.user()
        asked_for = f"asked for{f' by {by}' if by else ''}: {reason}" if asked.command == "train" else ""

        def decision(connection: Connection, score: Score) -> str:
            if asked_for:
                return f"a training is {asked_for}"
            if asked.command == "rescore":
                return rescore(connection, score, where)
            if asked.command == "rollback":
                return told_of(roll_back(connection, score, version, reason, where))
            assert version is not None, "it was asked for"
            promoted = promote(connection, score, version, reason, where)
            failed = [described(one) for one in versions.gate_of(connection, score, version) if not one.passed]
            return told_of(promoted) + (f"; against its gate: {'; '.join(failed)}" if failed else "")

        return _decide(where, console, log, name, command, decision, asked_for)

    return in_sight(work)


def _usage(told: str) -> int:
    print(told, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
