"""From a training set to a champion: the model, and its gate."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec
from pydantic import Field

from ml.declarations import Project, Score
from ml.encoding import EncodingError
from ml.gate import GateResult, check_gate, sliced_columns
from ml.learning import Learning
from ml.slices import Slice
from orchestration import versions, warehouse
from orchestration.carding import card_page, card_url, git_commit, tell_versions
from orchestration.cataloguing import tell_features
from orchestration.checks import refuse_unsound
from orchestration.mirroring import mirror
from orchestration.project import Paths
from orchestration.retraining import decide, when_trained
from orchestration.training_sets import ScoringError, clock, prune_training_sets, training_rows, training_set_asset
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from ml.registry import Card, Model

SEED = 0


class DamagedModel(ScoringError):
    """A version whose files are gone or changed; the message says where there may be copies."""


def model_folder(folder: Path, score: Score, version: int) -> Path:
    return folder / score.name / str(version)


def load_card(where: Paths, score: Score, version: int) -> "Card":
    """A version's card. Raises `DamagedModel` if its file is not as it was saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load_card(model_folder(where.models, score, version))


def load_model(where: Paths, score: Score, version: int) -> "Model":
    """A version's model, ready to score. Raises `DamagedModel` if its files are not as they were saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load(model_folder(where.models, score, version))


@contextmanager
def _told(where: Paths, score: Score, version: int) -> Iterator[None]:
    from ml.registry import CorruptModel

    try:
        yield
    except CorruptModel as error:
        copies = where.generations / score.name / f"*-v{version}-*"
        raise DamagedModel(
            f"score '{score.name}': version {version} can't be read: {error}; bring model.cbm and card.json back,"
            f" of which each generation has a copy ({copies})"
        ) from None


class Training(dg.Config):
    """Why to train now, whatever the score declares; nothing else would be said in its row of `ml.model_versions`."""

    asked: str = Field(default="", description="why a candidate is to be trained now; without it retrain: decides")


def train_version(
    connection: Connection, score: Score, training_set: str, where: Paths, log: Any, trigger: str = "asked for"
) -> dict[str, Any]:
    """Trains a candidate on a frozen training set, saves and records it; gives its row of `ml.model_versions`.

    `trigger` says what started it.
    """
    from ml import registry, training

    told = time.monotonic()

    def progress(done: int, most: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:  # each line is an event that Dagster keeps
            told = time.monotonic()
            log.info(f"training: {done} of at most {most} trees")

    rows = training_rows(connection, score, training_set, where)
    frozen = versions.training_set(connection, score, training_set)
    candidate = training.train(
        rows, score, seed=SEED, progress=progress, known_until=frozen["known_until"] if frozen else None
    )
    champion = versions.champion(connection, score)
    champion_metrics = None
    if champion is not None:
        try:
            champion_metrics = training.champion_metrics(
                load_model(where, score, champion["version"]), candidate.holdout
            )
        except (EncodingError, DamagedModel) as error:  # it can't score anybody any more: as if there were none
            log.warning(f"version {champion['version']}, the champion, can't be compared with: {error}")
            champion = None
    version = _next_version(connection, score, where)
    folder = model_folder(where.models, score, version)
    made = training.make_card(
        candidate,
        score,
        version=version,
        training_set=training_set,
        trained_at=datetime.now(UTC),
        champion=champion_metrics,
        champion_version=champion["version"] if champion else None,
        commit=git_commit(where.project),
        trigger=trigger,
    )
    card = registry.save(folder, candidate.booster, training.evaluated(candidate, made))
    versions.record_version(
        connection, card, trained_by(score), champion_metrics, champion["version"] if champion else None
    )
    found = versions.newest_version(connection, score)
    assert found is not None, "the version just recorded"
    return found


def _next_version(connection: Connection, score: Score, where: Paths) -> int:
    """One more than any version that the warehouse or the disk knows.

    They differ where the warehouse was removed, or a run was killed between saving a model and recording it. What
    `registry.save` had half written is no version: it has another name, and is removed by the next save.
    """
    newest = versions.newest_version(connection, score)
    kept = [folder.name for folder in (where.models / score.name).glob("*")]
    numbers = [int(name) for name in kept if name.isascii() and name.isdigit()]
    return max([newest["version"] if newest else 0, *numbers]) + 1


def is_whole(where: Paths, score: Score, version: dict[str, Any]) -> bool:
    """Whether the files of a version are as they were saved."""
    from ml import registry

    try:
        return registry.verify(model_folder(where.models, score, version["version"])) == str(version["booster_sha256"])
    except registry.CorruptModel:
        return False


def engine() -> str:
    """What else than data decides what a training gives, and what is known of it: where it differs, train again."""
    from ml.training import recipe

    packages = ("scorehouse", "catboost", "scikit-learn", "numpy", "optuna")
    versions_of = " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return f"{versions_of} seed {SEED} recipe {recipe()}"


def trained_by(score: Score) -> str:
    """What decides a training of this score besides its rows: the engine, and what its owner declares of learning."""
    if score.learning == Learning():
        return engine()
    declared = hashlib.sha256(msgspec.json.encode(score.learning, order="deterministic")).hexdigest()[:8]
    return f"{engine()} learning {declared}"


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
        note = f"but not promoted again: {told_of(undone)}"
        results = [msgspec.structs.replace(one, note="; ".join(filter(None, [one.note, note]))) for one in results]
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


def training_assets(
    score: Score, features: dg.AssetKey, label: dg.AssetKey, project: Project, where: Paths
) -> list[dg.AssetsDefinition]:
    """The assets that turn a score's features and labels into a champion."""
    training_set = training_set_asset(score, features, label, project, where)
    model_key = dg.AssetKey(["models", score.name])

    @dg.asset(
        key=model_key,
        deps=[training_set.key],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"catboost"},
        description=f"The model behind `{score.name}`: a candidate is trained {when_trained(score)},"
        f" and becomes the champion if it passes its gate: {'; '.join(score.gate)}.",
        check_specs=[
            dg.AssetCheckSpec("gate", asset=model_key, description="The candidate meets: " + "; ".join(score.gate))
        ],
        pool="warehouse",
    )
    def model(context: dg.AssetExecutionContext, config: Training) -> Iterator[dg.MaterializeResult[None]]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            current = versions.current_training_set(connection, score)
            if current is None:
                raise ScoringError(
                    f"score '{score.name}': has no training set yet; materialize training_sets/{score.name} first"
                )
            version = versions.newest_version(connection, score)
            whole = version is not None and is_whole(where, score, version)
            today = clock(project)
            decision = decide(connection, score, current, trained_by(score), whole, today, where, config.asked)
            if decision.trigger is not None:
                context.instance.add_run_tags(context.run_id, {f"scorehouse/trained/{score.name}": decision.trigger})
                if version is not None:
                    context.log.info(f"· models.{score.name}: trained: {decision.trigger}")
                version = train_version(
                    connection, score, current["training_set"], where, context.log, decision.trigger
                )
                prune_training_sets(connection, score, where.training_sets)
            elif config.asked or decision.is_held_back:
                context.log.info(f"· models.{score.name}: not trained: {decision.waits}")
            assert version is not None, "a first training has a trigger"
            verdict = judge(connection, score, version, where)
            champion = versions.champion(connection, score)
            undone = versions.taken_back(connection, score, version["version"])
            tell_features(connection, project, score, where)
            tell_versions(connection, score, where)
        mirror(project, score, where, context.log.info)
        metrics = json.loads(version["metrics"])
        passed = all(result.passed for result in verdict)
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": version["train_rows"],
                "version": version["version"],
                "champion": champion["version"] if champion else "none",
                **({"taken back": told_of(undone)} if undone else {}),
                "metrics on held-out dates": dg.MetadataValue.md(_table(load_card(where, score, version["version"]))),
                "trained on": f"{version['train_from']} to {version['train_to']}",
                "held out": f"{version['holdout_from']} to {version['holdout_to']}",
                "trees": version["trees"],
                "contract of its features": version["contract"],
                "card": dg.MetadataValue.url(card_url(score, version["version"])),
                "card as a file": dg.MetadataValue.path(str(card_page(where, score, version["version"]))),
                "trained": decision.trigger or f"no: {decision.waits}",
                "changed": decision.trigger is not None,
                **{f"metric/{metric}": value for metric, value in metrics.items()},
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=passed,
                    check_name="gate",
                    # A refusal leaves the champion scoring; without a champion there is nothing to score with.
                    severity=dg.AssetCheckSeverity.WARN if champion else dg.AssetCheckSeverity.ERROR,
                    metadata={result.condition: described(result) for result in verdict},
                )
            ],
            data_version=dg.DataVersion(f"{version['version']}-{version['booster_sha256'][:12]}"),
        )

    return [training_set, model]


def told_of(promotion: Mapping[str, Any]) -> str:
    """A promotion in words: `version 1 by rollback instead of version 2, 2024-05-01 06:30, by ann: scores too low`."""
    instead = f" instead of version {promotion['replaced_version']}" if promotion["replaced_version"] else ""
    by = f", by {promotion['promoted_by']}" if promotion["promoted_by"] else ""
    at = promotion["promoted_at"].astimezone(UTC)
    how = "by the gate" if promotion["how"] == "gate" else f"by {promotion['how']}"
    return f"version {promotion['version']} {how}{instead}, {at:%Y-%m-%d %H:%M}{by}: {promotion['reason']}"


def _table(card: "Card") -> str:
    """The metrics of a version in Markdown, with their intervals, beside naive forecast and champion."""
    from reports.model_card import measure, metric_lines

    champion = f"version {card.champion_version}, champion then" if card.champion_version else "champion: none"
    rows = [
        f"| {line.name} | {measure(line.value)}"
        f" | {' to '.join(map(measure, line.interval)) if line.interval else '–'}"
        f" | {measure(line.baseline)} | {measure(line.champion)} |"
        for line in metric_lines(card)
    ]
    head = f"| metric | version {card.version} | 95 % interval | baseline: {card.baseline_name} | {champion} |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def described(result: GateResult) -> str:
    """A gate's condition with the figures it was judged by: `roc_auc >= 0.8 (roc_auc 0.8791): passed`."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.values.items())
    return f"{result.condition} ({figures}): {'passed' if result.passed else 'failed'}" + (
        f", {result.note}" if result.note else ""
    )
