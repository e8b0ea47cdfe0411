"""Who scores customers: the gate's verdict on a version, and the champion."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from ml.encoding import EncodingError
from ml.gate import GateResult, check_gate, gate_names, sliced_columns
from ml.slices import Slice
from orchestration import versions
from orchestration.model_files import DamagedModel, load_model
from orchestration.project import Paths
from orchestration.training_sets import ScoringError, training_rows
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import pyarrow as pa


def judge(connection: Connection, score: Score, version: dict[str, Any], where: Paths) -> list[GateResult]:
    """The gate's verdict on a version, taken again if the declared conditions have changed since.

    Of a version that a person took back it says so: that verdict promotes nothing.
    """
    known = versions.gate_of(connection, score, version["version"])
    if [result.condition for result in known] == list(score.gate):
        return known
    compared, champion_metrics, another = _compared(connection, score, version, where)
    own, champions, damaged = _slices(connection, score, version, compared, where)
    results = check_gate(
        score.gate,
        json.loads(version["metrics"]),
        json.loads(version["baseline_metrics"]),
        champion_metrics,
        own,
        champions,
    )
    if damaged:
        results = [
            msgspec.structs.replace(one, note=damaged) if sliced_columns([one.condition], of_champion=True) else one
            for one in results
        ]
    if another:
        results = [
            msgspec.structs.replace(one, note="; ".join(filter(None, [one.note, another])))
            if _asks_for_champion([one.condition])
            else one
            for one in results
        ]
    undone = versions.taken_back(connection, score, version["version"])
    if undone is not None and all(result.passed for result in results):
        note = f"but not promoted again, as a {undone['how']} put version {undone['version']} in its place"
        results[-1] = msgspec.structs.replace(results[-1], note="; ".join(filter(None, [results[-1].note, note])))
    versions.record_gate(connection, score, version["version"], results)
    return results


def _compared(
    connection: Connection, score: Score, version: dict[str, Any], where: Paths
) -> tuple[int | None, dict[str, float] | None, str]:
    """The version that a gate compares another with, and its metrics on the held-out rows of that one.

    It is the champion of now, measured anew if it was not when the other was trained; of the champion itself it is the
    champion of then, and also where that of now can't score these rows, which is told.
    """
    of_then = json.loads(version["champion_metrics"]) if version["champion_metrics"] else None
    champion = versions.champion(connection, score)
    known = (version["version"], version["champion_version"])
    if champion is None or champion["version"] in known or not _asks_for_champion(score.gate):
        return version["champion_version"], of_then, ""

    from ml import training

    try:
        model = load_model(where, score, champion["version"])
        found = training.champion_metrics(model, _held_out(connection, score, version, where))
    except (EncodingError, DamagedModel) as error:
        why = f"the champion is that of then, as version {champion['version']} can't be measured: {error}"
        return version["champion_version"], of_then, why
    return champion["version"], found, ""


def _asks_for_champion(conditions: Sequence[str]) -> bool:
    return any(name.startswith("champion_") for condition in conditions for name in gate_names(condition))


def _slices(
    connection: Connection, score: Score, version: dict[str, Any], compared: int | None, where: Paths
) -> tuple[list[Slice], list[Slice], str]:
    """The slices that the gate speaks of: of a version, and of the one that it is compared with.

    A column that the feature model did not have yet makes none. Where the other's files are damaged it has none either,
    and why is told: it stops no verdict on another.
    """
    asked = sliced_columns(score.gate)
    if not asked:
        return [], [], ""

    from ml import training

    rows = _held_out(connection, score, version, where)
    own = training.metrics_in_slices(load_model(where, score, version["version"]), rows, _there(asked, rows))
    of_champion = _there(sliced_columns(score.gate, of_champion=True), rows)
    if compared is None or not of_champion:
        return own, [], ""
    try:
        champion = load_model(where, score, compared)
    except DamagedModel as error:
        return own, [], str(error)
    return own, training.metrics_in_slices(champion, rows, of_champion), ""


def _there(columns: Iterable[str], rows: "pa.Table") -> list[str]:
    return [column for column in columns if column in rows.column_names]


def _held_out(connection: Connection, score: Score, version: dict[str, Any], where: Paths) -> "pa.Table":
    from ml import training

    return training.held_out(training_rows(connection, score, version["training_set"], where), score)


def current_champion(connection: Connection, score: Score) -> dict[str, Any]:
    """The champion's row of `ml.model_versions`. Raises `ScoringError`, with what failed, if there is none."""
    versions.create_tables(connection)
    champion = versions.champion(connection, score)
    if champion is None:
        newest = versions.newest_version(connection, score)
        verdict = versions.gate_of(connection, score, newest["version"]) if newest else []
        failed = [described(result) for result in verdict if not result.passed]
        raise ScoringError(
            f"score '{score.name}': no version has passed its gate yet, so nobody is scored"
            + (f"; version {newest['version']}: {'; '.join(failed)}" if newest and failed else "")
        )
    return champion


def told_of(promotion: Mapping[str, Any]) -> str:
    """A promotion in words: `version 1 by rollback instead of version 2, 2024-05-01 06:30, by ann: scores too low`."""
    instead = f" instead of version {promotion['replaced_version']}" if promotion["replaced_version"] else ""
    by = f", by {promotion['promoted_by']}" if promotion["promoted_by"] else ""
    at = promotion["promoted_at"].astimezone(UTC)
    how = "by the gate" if promotion["how"] == "gate" else f"by {promotion['how']}"
    return f"version {promotion['version']} {how}{instead}, {at:%Y-%m-%d %H:%M}{by}: {promotion['reason']}"


def described(result: GateResult) -> str:
    """A gate's condition with the figures it was judged by: `roc_auc >= 0.8 (roc_auc 0.8791): passed`."""
    return f"{result.condition} ({_figures(result)}): {_verdict(result)}"


def judged(result: GateResult) -> str:
    """The same beside the condition, which it does not repeat: `roc_auc 0.8791: passed`."""
    return f"{_figures(result)}: {_verdict(result)}" if result.values else _verdict(result)


def _figures(result: GateResult) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in result.values.items())


def _verdict(result: GateResult) -> str:
    return ("passed" if result.passed else "failed") + (f", {result.note}" if result.note else "")
