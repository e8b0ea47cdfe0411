"""Who scores customers: the gate's verdict on a version, and the champion."""

import json
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec

from ml.declarations import Score
from ml.gate import GateResult, check_gate, sliced_columns
from ml.slices import Slice
from orchestration import versions
from orchestration.model_files import load_model
from orchestration.project import Paths
from orchestration.training_sets import ScoringError, training_rows
from orchestration.warehouse import Connection


def judge(connection: Connection, score: Score, version: dict[str, Any], where: Paths) -> list[GateResult]:
    """The gate's verdict on a version, taken again if the declared conditions have changed since.

    Of a version that a person took back it says so: that verdict promotes nothing.
    """
    known = versions.gate_of(connection, score, version["version"])
    if [result.condition for result in known] == list(score.gate):
        return known
    champion_metrics = json.loads(version["champion_metrics"]) if version["champion_metrics"] else None
    results = check_gate(
        score.gate,
        json.loads(version["metrics"]),
        json.loads(version["baseline_metrics"]),
        champion_metrics,
        *_slices(connection, score, version, where),
    )
    undone = versions.taken_back(connection, score, version["version"])
    if undone is not None and all(result.passed for result in results):
        note = f"but not promoted again, as a {undone['how']} put version {undone['version']} in its place"
        results[-1] = msgspec.structs.replace(results[-1], note="; ".join(filter(None, [results[-1].note, note])))
    versions.record_gate(connection, score, version["version"], results)
    return results


def _slices(
    connection: Connection, score: Score, version: dict[str, Any], where: Paths
) -> tuple[list[Slice], list[Slice]]:
    """The slices that the gate speaks of: of a version, and of the champion that it was compared with."""
    columns = sliced_columns(score.gate)
    if not columns:
        return [], []

    from ml import training

    rows = training.held_out(training_rows(connection, score, version["training_set"], where), score)
    compared = [version["version"], version["champion_version"]]
    own, champions = (
        training.metrics_in_slices(load_model(where, score, one), rows, columns) if one is not None else []
        for one in compared
    )
    return own, champions


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
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.values.items())
    return f"{result.condition} ({figures}): {'passed' if result.passed else 'failed'}" + (
        f", {result.note}" if result.note else ""
    )
