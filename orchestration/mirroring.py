"""Mirrors versions and the champion to MLflow, if `MLFLOW_TRACKING_URI` names one.

The warehouse stays what counts: nothing is read back, and an MLflow that does not answer, or takes long, stops nothing.
What could not be mirrored is caught up the next time.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Project, Score
from orchestration import versions, warehouse
from orchestration.addresses import URL, without_secrets
from orchestration.project import Paths
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Nothing is reported to MLflow's makers, and a server that is silent is soon given up. These are seconds of a read, of
# which one byte is enough: a server that trickles is bounded by PATIENCE alone.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
PATIENCE = 60  # seconds that a run waits for what there is of a score to be brought over, which may go on beside it
CHAMPION = "champion"
ARTEFACTS = "model"  # the folder of a run's artefacts
LONGEST_TAG = 4000  # characters, fewer than any of MLflow's stores takes
# Runs for which MLflow could not be reached, or took too long: their other scores don't wait for it too.
given_up: set[str] = set()
late: list["Future[list[str]]"] = []  # what goes on after it was given up
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")


class Mirrored(msgspec.Struct, frozen=True):
    """A version as MLflow is told it. `told` may change later, the rest never does."""

    version: int
    sha256: str
    trained_at: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    told: dict[str, str]
    files: tuple[Path, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What it is found again by: versions count from 1 again where a data folder was removed."""
        return str(self.version), self.sha256


def mirror(project: Project, score: Score, where: Paths, run_id: str, tell: Callable[[str], None]) -> None:
    """Brings a score's versions and champion to MLflow, as far as they are not there; `tell` is given what happened.

    It keeps the run waiting for `PATIENCE` at most, and once in a run.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError:
        tell("· MLFLOW_TRACKING_URI is set, but mlflow is not installed: pip install 'scorehouse[mlflow]', or unset it")
        return
    name, reached = f"{project.name}.{score.name}", threading.Event()

    def not_mirrored(reason: str) -> None:
        tell(
            f"· {score.name} is not mirrored to MLflow at {without_secrets(uri)}: {reason};"
            " it is caught up the next time"
        )

    # Two at a time would each add what the other is about to.
    if run_id in given_up or not all(work.done() for work in late):
        not_mirrored("it did not answer in time for what came before")
        return
    with warehouse.open_warehouse(where.warehouse) as connection:
        champion = versions.champion(connection, score)
        found = _versions(connection, score, where, tell)

    def bring() -> list[str]:
        client = MlflowClient(tracking_uri=uri)
        experiment = _experiment(client, project.name, uri, where)
        reached.set()
        return _bring(client, name, experiment, found, champion)

    brought = _beside(bring)
    try:
        changed = brought.result(PATIENCE)
    except Exception as error:  # whatever it is, an MLflow that fails is none of a run's business
        is_late = not brought.done()
        if is_late:
            late.append(brought)
        if is_late or not reached.is_set():
            given_up.add(run_id)
        not_mirrored(f"that takes longer than {PATIENCE} seconds" if is_late else _reason(error, uri))
        return
    if changed:
        tell(f"· {score.name} is mirrored to MLflow at {without_secrets(uri)} as {name}: {', '.join(changed)}")


def _beside(work: Callable[[], list[str]]) -> "Future[list[str]]":
    """What comes of work in a thread that ends with the process: one of an executor would be waited for."""
    outcome: Future[list[str]] = Future()

    def done() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # who waits is told
            outcome.set_exception(error)

    threading.Thread(target=done, daemon=True).start()
    return outcome


def _reason(error: Exception, uri: str) -> str:
    """What MLflow said, in a line, without what is secret in the address or the environment."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = said.partition("(Caused by ")[2].removesuffix(")") or said  # of a server that can't be reached
    login = re.split(r"[/?#]", uri.partition("://")[2], maxsplit=1)[0].rpartition("@")[0]
    secrets = [login, login.partition(":")[2], *(os.environ.get(name, "") for name in SECRETS)]
    said = URL.sub(lambda match: without_secrets(match[0]), said.replace(uri, without_secrets(uri)))
    for secret in filter(None, secrets):
        said = said.replace(secret, "…")
    return said


def _versions(connection: Connection, score: Score, where: Paths, tell: Callable[[str], None]) -> list[Mirrored]:
    """The versions of a score, the oldest first; one whose files are damaged is told of, and left out."""
    from orchestration.judging import described, told_of
    from orchestration.model_files import DamagedModel, load_card, model_folder

    found = []
    promotions = versions.promotions(connection, score)
    for row in reversed(versions.all_versions(connection, score)):
        version = row["version"]
        try:
            card = load_card(where, score, version)
        except DamagedModel as error:
            tell(f"· not mirrored to MLflow: {error}")
            continue
        verdict = versions.gate_of(connection, score, version)
        failed = "; ".join(described(result) for result in verdict if not result.passed)
        last = [one for one in promotions if one["version"] == version][-1:]
        champions = json.loads(row["champion_metrics"] or "{}")
        of_others = {"baseline": card.baseline, "champion": champions}
        folder = model_folder(where.models, score, version)
        page = where.reports / score.name / "versions" / str(version) / "card.html"
        found.append(
            Mirrored(
                version=version,
                sha256=card.booster_sha256,
                trained_at=card.trained_at,
                params={
                    **{name: str(value) for name, value in card.params.items()},
                    **{name: str(day) for name, day in card.dates.items()},
                    **{f"{part}_rows": str(rows) for part, rows in card.rows.items()},
                    "trees": str(card.trees),
                    "baseline": card.baseline_name,
                },
                metrics={
                    **card.metrics,
                    **{f"{whose}_{name}": value for whose, of in of_others.items() for name, value in of.items()},
                },
                tags=_cut(
                    {
                        "scorehouse.score": score.name,
                        "scorehouse.version": str(version),
                        "scorehouse.model_sha256": card.booster_sha256,
                        "scorehouse.kind": card.kind,
                        "scorehouse.training_set": card.training_set,
                        "scorehouse.contract": card.contract,
                        "scorehouse.trigger": card.trigger,
                        "mlflow.source.git.commit": card.commit or "",
                        "mlflow.source.name": "scorehouse",
                    }
                ),
                told=_cut(
                    {
                        "scorehouse.gate": f"refused: {failed}" if failed else "passed" if verdict else "",
                        **({"scorehouse.promoted": told_of(last[0])} if last else {}),
                    }
                ),
                files=tuple(file for file in (folder / "model.cbm", folder / "card.json", page) if file.is_file()),
            )
        )
    return found


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as long as MLflow takes them: people's reasons may be longer."""
    return {tag: text[:LONGEST_TAG] for tag, text in tags.items()}


def _experiment(client: "MlflowClient", name: str, uri: str, where: Paths) -> str:
    """The id of the project's experiment, made on first use.

    With a database alone as MLflow, its artefacts would lie in whatever folder this process works in: they go into the
    data folder.
    """
    from mlflow.store.db.db_types import DATABASE_ENGINES

    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    is_database = re.split(r"[:+]", uri, maxsplit=1)[0] in DATABASE_ENGINES
    return str(client.create_experiment(name, (where.data / "mlflow").as_uri() if is_database else None))


def _bring(
    client: "MlflowClient", name: str, experiment: str, found: list[Mirrored], champion: dict[str, Any] | None
) -> list[str]:
    """Adds what MLflow lacks and mends what differs there; gives what was done, nothing if all was as it should be."""
    from mlflow.exceptions import MlflowException

    done = []
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
        aliases = {}
    known = {
        (one.tags.get("scorehouse.version"), one.tags.get("scorehouse.model_sha256")): one
        for one in _all_versions(client, name)
    }
    for version in found:
        there = known.get(version.key)
        if there is None:
            run_id, source = _run(client, experiment, version)
            known[version.key] = there = client.create_model_version(
                name, source, run_id, tags={**version.tags, **version.told}
            )
            done.append(f"version {version.version}")
        for tag, text in version.told.items():
            if there.tags.get(tag) != text:
                client.set_model_version_tag(name, str(there.version), tag, text)
    if champion is None:
        if CHAMPION in aliases:
            client.delete_registered_model_alias(name, CHAMPION)
            done.append(f"it has no {CHAMPION}")
        return done
    reigns = known.get((str(champion["version"]), champion["booster_sha256"]))
    if reigns is None:
        done.append(f"its {CHAMPION} is not version {champion['version']}, whose files are damaged")
    elif str(aliases.get(CHAMPION)) != str(reigns.version):
        client.set_registered_model_alias(name, CHAMPION, str(reigns.version))
        done.append(f"version {champion['version']} is its {CHAMPION}")
    return done


def _all_versions(client: "MlflowClient", name: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _run(client: "MlflowClient", experiment: str, version: Mirrored) -> tuple[str, str]:
    """The id of a version's run, with all that it holds, and where its artefacts are.

    One that was begun and never finished, as of a server that went away, is gone on with.
    """
    from mlflow.entities import Metric, Param

    score, at = version.tags["scorehouse.score"], int(version.trained_at.timestamp() * 1000)
    begun = client.search_runs(
        [experiment],
        f"tags.`scorehouse.score` = '{score}' and tags.`scorehouse.model_sha256` = '{version.sha256}'"
        f" and tags.`scorehouse.version` = '{version.version}'",
        max_results=1,
    )
    run = begun[0] if begun else client.create_run(experiment, at, version.tags, f"{score} {version.version}")
    run_id = run.info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric(metric, value, at, 0) for metric, value in version.metrics.items()],
        params=[Param(param, value) for param, value in version.params.items()],
    )
    for file in version.files:
        client.log_artifact(run_id, str(file), ARTEFACTS)
    client.set_terminated(run_id, "FINISHED", at)
    return run_id, f"{run.info.artifact_uri}/{ARTEFACTS}"
