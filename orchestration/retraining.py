"""When a score's candidate is trained, and why: whatever its owner declares, else whenever there are new labels."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import msgspec

from ml.learning import BUDGET_DAYS
from ml.realised import drifted_share
from ml.registry import contract_of
from ml.scores import Score
from orchestration import versions, warehouse
from orchestration.model_files import card_of
from orchestration.project import Paths, read_json
from orchestration.warehouse import Connection
from serving.pages.performance import read_performance


class Decision(msgspec.Struct, frozen=True):
    """Whether a candidate is trained now: `trigger` is why, None if none is; `waits` is what it waits for then, with
    something that asks for a training already if it `is_held_back`."""

    trigger: str | None = None
    waits: str = ""
    is_held_back: bool = False


def decide(
    connection: Connection,
    score: Score,
    current: dict[str, Any],
    trained_by: str,
    is_whole: bool,
    today: date,
    where: Paths,
    asked: str = "",
) -> Decision:
    """Whether to train on the current training set (a row of `ml.training_sets`), and why.

    `trained_by` is what decides a training besides its rows, `is_whole` whether the newest version's files are,
    `asked` why somebody asks for one now. A first training, one after a change of what trains, and one that was asked
    for wait for nothing. `today` is the project's clock, which days are counted by.
    """
    newest = versions.newest_version(connection, score)
    if newest is None:
        return Decision("first training")
    number = f"version {newest['version']}"
    changed = {
        f"its kind is {score.kind}, and that of {number} {newest['kind']}": newest["kind"] != score.kind,
        "its features have changed": newest["contract"] not in (None, contract_of(score.columns)),
        f"what trains it has changed since {number}": newest["engine"] != trained_by,
        f"the files of {number} are damaged": not is_whole,
    }
    if any(changed.values()):
        return Decision("; ".join(why for why, holds in changed.items() if holds))
    if newest["training_set"] == current["training_set"]:
        return Decision(waits=f"{number} has learned from all there is, so another training would give the same model")
    if asked:
        return Decision(asked)
    last = newest["trained_on"]
    frozen = versions.training_set(connection, score, newest["training_set"])
    known = frozen["known_until"] if frozen else newest["holdout_to"]
    fresh = _new_labels(connection, score, known, today)
    if score.retrain is None:
        return Decision(f"{fresh:,} new labels" if fresh else "the rows it learns from have changed")
    fired = [why for why in _fired(connection, score, last, fresh, today, where) if why]
    if not fired:
        return Decision(waits=f"{fresh:,} new labels since {known}; it is trained {when_trained(score)}")
    held_back = _held_back(connection, score, last, today)
    if held_back:
        return Decision(waits=f"{'; '.join(fired)}, but {held_back}", is_held_back=True)
    return Decision("; ".join(fired))


def _new_labels(connection: Connection, score: Score, last: date, today: date) -> int:
    label = warehouse.name(score.label_schema, score.label)
    query = f"select count(*) from {label} where matures_on > date '{last}' and matures_on <= date '{today}'"
    return int(warehouse.one(connection, query)[0])


def _fired(
    connection: Connection, score: Score, last: date, fresh: int, today: date, where: Paths
) -> Iterator[str | None]:
    """Of each trigger that is declared why it starts a training, or None."""
    declared = score.retrain
    assert declared is not None
    if declared.every_days is not None:
        due = today - last >= timedelta(days=declared.every_days)
        yield f"schedule: {(today - last).days} days since the last training" if due else None
    if declared.new_labels is not None:
        yield f"new labels: {fresh:,}, of {declared.new_labels:,} asked for" if fresh >= declared.new_labels else None
    champion = versions.champion(connection, score)
    if champion is None:  # of whom no report tells: where reports alone start a training none ever would
        if fresh and declared.every_days is None and declared.new_labels is None:
            yield f"no version has passed its gate yet, and there are {fresh:,} new labels"
        return
    if declared.drift is not None:
        yield _drifted(score, champion["version"], declared.drift, where)
    if declared.performance:
        yield _broken_now(connection, score, champion, today, where)


def told_by_reports(score: Score, version: int, where: Paths) -> list[str]:
    """Why a champion is to be trained anew by its newest reports, of drift and of realised performance, if they are
    declared as triggers. Reads files alone, so that a sensor may ask while a run holds the warehouse."""
    declared = score.retrain
    found = []
    if declared is not None and declared.drift is not None:
        found.append(_drifted(score, version, declared.drift, where))
    if declared is not None and declared.performance:
        found.append(_broken(score, version, where))
    return [why for why in found if why]


def _broken_now(
    connection: Connection, score: Score, champion: dict[str, Any], today: date, where: Paths
) -> str | None:
    """That the champion is worse than promised by all that has matured, of which its report was before these labels."""
    from orchestration.promises import broken_promise
    from orchestration.realised import measure

    measure(connection, score, today, where)
    found = broken_promise(connection, score, champion, where)
    return f"performance: {found}" if found else None


def _drifted(score: Score, version: int, line: float, where: Paths) -> str | None:
    """That features which carry this share of a version's importance have drifted, by its newest report.

    Those that seem broken do not count: what is learned from broken data is no better.
    """
    reports = sorted((where.reports / score.name).glob("????-??-??/drift.json"), reverse=True)
    figures = next((one for one in map(read_json, reports) if one.get("model_version") == version), None)
    card = card_of(where, score, version) if figures else None
    if not figures or card is None:
        return None
    metrics = figures["metrics"]
    broken = [name for name in card.importance if metrics.get(f"column.{name}.is_broken")]
    drift = drifted_share(metrics | {f"column.{name}.verdict": "stable" for name in broken}, card.importance)
    if drift is None or drift[0] < line:
        return None
    share, names = drift
    return f"drift: {share:.0%} of the importance of version {version} has drifted ({', '.join(names[:3])})"


def _broken(score: Score, version: int, where: Paths) -> str | None:
    """That a version is worse than promised, by its newest report."""
    found = read_performance(where.reports, score.name)
    if found is None or found.model_version != version or found.verdict != "worse":
        return None
    causes = ", ".join(cause.name for cause in found.causes)
    return f"performance: {found.told}" + (f" (likely cause: {causes})" if causes else "")


def _held_back(connection: Connection, score: Score, last: date, today: date) -> str | None:
    """Why no training may start now: the cool-down or the budget."""
    declared = score.retrain
    assert declared is not None
    cool = last + timedelta(days=declared.cooldown_days)
    if today < cool:
        return f"it cools down until {cool}"
    if declared.budget is not None:
        since = today - timedelta(days=BUDGET_DAYS)
        spent = versions.trained_since(connection, score, since)
        if spent >= declared.budget:
            return f"{spent} trainings since {since} are its budget of {BUDGET_DAYS} days"
    return None


def when_trained(score: Score) -> str:
    """When a score is trained anew, in words: `after 4000 new labels or a broken promise`."""
    declared = score.retrain
    if declared is None:
        return "after new labels"
    parts = {
        f"{declared.every_days:g} days" if declared.every_days else "": declared.every_days,
        f"{declared.new_labels} new labels": declared.new_labels,
        f"drift of {declared.drift or 0:.0%} of the importance": declared.drift,
        "a broken promise": declared.performance,
    }
    return f"after {' or '.join(text for text, holds in parts.items() if holds)}"
