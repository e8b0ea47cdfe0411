"""From a training set to a candidate, and to a champion if it passes its gate."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec
from pydantic import Field

from ml.declarations import Project, Score
from ml.encoding import EncodingError
from ml.gate import sliced_columns
from ml.learning import Learning
from orchestration import versions, warehouse
from orchestration.carding import card_page, card_url, git_commit, tell_versions
from orchestration.cataloguing import tell_features
from orchestration.checks import refuse_unsound
from orchestration.judging import described, judge, judged, told_of
from orchestration.mirroring import mirror
from orchestration.model_files import DamagedModel, is_whole, load_card, load_model, model_folder
from orchestration.project import Paths
from orchestration.retraining import decide, when_trained
from orchestration.training_sets import ScoringError, clock, prune_training_sets, training_rows, training_set_asset
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from ml.registry import Card

SEED = 0


class Training(dg.Config):
    """Why a candidate is to be trained now, whatever its score declares: that is told as its trigger."""

    asked: str = Field(default="", description="why a candidate is to be trained now; without it retrain: decides")


def train_version(
    connection: Connection, score: Score, training_set: str, where: Paths, log: Any, trigger: str, today: date
) -> dict[str, Any]:
    """Trains a candidate on a frozen training set, saves and records it; gives its row of `ml.model_versions`.

    `trigger` says what started it, `today` is the project's clock.
    """
    from ml import cards, registry, training

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
    made = cards.make_card(
        candidate,
        score,
        version=version,
        training_set=training_set,
        trained_at=datetime.now(UTC),
        champion=champion_metrics,
        champion_version=champion["version"] if champion else None,
        commit=git_commit(where.project),
        trigger=trigger,
        trained_on=today,
    )
    card = registry.save(folder, candidate.booster, cards.evaluated(candidate, made, sliced_columns(score.gate)))
    versions.record_version(connection, card, trained_by(score))
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
                    connection, score, current["training_set"], where, context.log, decision.trigger, today
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
        mirror(project, score, where, context.run_id, context.log.info)
        metrics, card = json.loads(version["metrics"]), load_card(where, score, version["version"])
        passed = all(result.passed for result in verdict)
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": version["train_rows"],
                "version": version["version"],
                "champion": champion["version"] if champion else "none",
                **({"taken back": told_of(undone)} if undone else {}),
                "metrics on held-out dates": dg.MetadataValue.md(metrics_table(card)),
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
                    description=None if passed else "; ".join(map(described, verdict)),
                    metadata={result.condition: judged(result) for result in verdict},
                )
            ],
            data_version=dg.DataVersion(f"{version['version']}-{version['booster_sha256'][:12]}"),
        )

    return [training_set, model]


def metrics_table(card: "Card") -> str:
    """The metrics of a version in Markdown, each with its interval, beside naive forecast and champion: narrow, as the
    UI cuts what is wide."""
    from reports.model_card import measure, metric_lines

    heads = ["metric", f"version {card.version} (95 %)", "naive"]
    if card.champion_version:
        heads.append(f"version {card.champion_version}, champion then")
    rows = [heads, ["---"] * len(heads)]
    for line in metric_lines(card):
        interval = f" ({' to '.join(map(measure, line.interval))})" if line.interval else ""
        cells = [line.name, measure(line.value) + interval, measure(line.baseline), measure(line.champion)]
        rows.append(cells[: len(heads)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nNaive: {card.baseline_name}"
