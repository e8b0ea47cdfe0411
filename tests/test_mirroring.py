"""Versions and the champion are mirrored to MLflow, here its SQLite store, and an MLflow that fails stops nothing."""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ml.declarations import Project
from orchestration import mirroring, versions, warehouse
from orchestration.mirroring import LONGEST_TAG, SETTINGS, mirror
from orchestration.project import Paths
from tests.small_data import a_model, a_score, a_warehouse, another_version

SCORE = a_score()
SHOP = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(SCORE,))


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """Version 3 is the champion, version 4 has not been judged; MLflow is a SQLite file."""
    where = Paths(project=tmp_path, data=tmp_path / "data")
    where.data.mkdir()
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, SCORE, "n", rows=10)
        another_version(connection, where, SCORE, 4)
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that what is set is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    yield where
    assert not (tmp_path / "mlruns").exists(), "artefacts are in the data folder"


def mirrored(where: Paths, run_id: str = "") -> list[str]:
    """What is told, in a run of its own unless one is named."""
    told: list[str] = []
    mirror(SHOP, SCORE, where, run_id or str(uuid.uuid4()), told.append)
    return told


@contextmanager
def a_trickling_server() -> Iterator[str]:
    """The address of a server that answers each request with a byte every tenth of a second, without an end."""
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            while not over.wait(0.1):
                connection.sendall(b" ")

    def serve(server: socket.socket) -> None:
        while not over.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=trickle, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        serving = threading.Thread(target=serve, args=(server,), daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            serving.join()


def what_is_late_comes() -> None:
    for work in mirroring.late:
        work.exception(60)


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


def in_mlflow() -> dict[str, Any]:
    """Our version -> MLflow's."""
    return {one.tags["scorehouse.version"]: one for one in client().search_model_versions("name='shop.leaving'")}


def test_a_version_is_mirrored_with_metrics_parameters_tags_and_artefacts(where: Paths) -> None:
    (told,) = mirrored(where)
    assert told.endswith("as shop.leaving: version 3, version 4, version 3 is its champion")
    there = in_mlflow()
    assert list(client().get_registered_model("shop.leaving").aliases.items()) == [("champion", there["3"].version)]
    run = client().get_run(there["4"].run_id)
    assert (run.info.run_name, run.info.status) == ("leaving 4", "FINISHED")
    card, naive = a_model().card, run.data.metrics
    assert naive["champion_roc_auc"] == card.metrics["roc_auc"]  # the champion when 4 was trained
    assert {"roc_auc", "baseline_roc_auc", "log_loss", "baseline_log_loss"} <= naive.keys()
    assert run.data.params["train_to"] == str(card.dates["train_to"]) and run.data.params["depth"] == "5"
    assert run.data.tags["scorehouse.training_set"] == "e" * 64
    assert there["3"].tags["scorehouse.promoted"].startswith("version 3 by the gate, ")
    files = {file.path for file in client().list_artifacts(there["4"].run_id, "model")}
    assert files == {"model/model.cbm", "model/card.json"}
    copy = Path(there["4"].source.removeprefix("file://")) / "model.cbm"
    assert copy.read_bytes() == (where.models / "leaving" / "4" / "model.cbm").read_bytes()


def test_what_is_there_is_not_doubled_and_the_alias_follows_the_champion(where: Paths) -> None:
    mirrored(where)
    assert mirrored(where) == []
    with warehouse.open_warehouse(where.warehouse) as connection:
        versions.promote(connection, SCORE, 4, "force", "a reason")
    (told,) = mirrored(where)
    assert told.endswith("as shop.leaving: version 4 is its champion")
    there = in_mlflow()
    assert len(there) == 2 and there["4"].tags["scorehouse.promoted"].endswith(": a reason")
    assert dict(client().get_registered_model("shop.leaving").aliases) == {"champion": there["4"].version}


def test_what_was_begun_when_the_server_went_away_is_completed_later(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def gone(*_: Any) -> None:
        raise ConnectionError("the server went away")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifact", gone)
        (told,) = mirrored(where)
    assert told.endswith("the server went away; it is caught up the next time")
    assert in_mlflow() == {}
    mirrored(where)
    experiment = client().get_experiment_by_name("shop").experiment_id
    runs = client().search_runs([experiment])
    assert sorted(run.info.run_name for run in runs) == ["leaving 3", "leaving 4"]
    assert sorted(in_mlflow()) == ["3", "4"]


def test_a_damaged_version_is_told_and_the_others_are_mirrored(where: Paths) -> None:
    (where.models / "leaving" / "3" / "card.json").write_text("{}")
    damaged, told = mirrored(where)
    assert damaged.startswith("· not mirrored to MLflow: score 'leaving': version 3 can't be read: ")
    assert told.endswith("as shop.leaving: version 4, its champion is not version 3, whose files are damaged")


def test_the_alias_follows_to_a_champion_that_was_damaged_after_it_was_mirrored(where: Paths) -> None:
    mirrored(where)
    with warehouse.open_warehouse(where.warehouse) as connection:
        versions.promote(connection, SCORE, 4, "force", "a reason")
    (where.models / "leaving" / "4" / "card.json").write_text("{}")
    *_, told = mirrored(where)
    assert told.endswith("as shop.leaving: version 4 is its champion")


def test_a_reason_longer_than_mlflow_takes_is_cut(where: Paths) -> None:
    with warehouse.open_warehouse(where.warehouse) as connection:
        another_version(connection, where, SCORE, 5, trigger="because " * 20_000)
    (told,) = mirrored(where)
    assert told.endswith("version 5, version 3 is its champion")
    assert len(in_mlflow()["5"].tags["scorehouse.trigger"]) == LONGEST_TAG


def test_a_server_that_trickles_keeps_a_run_waiting_once_and_not_for_long(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow  # noqa: F401  # its import takes seconds

    monkeypatch.setattr(mirroring, "PATIENCE", 1)
    at_rest = os.environ["MLFLOW_TRACKING_URI"]
    with a_trickling_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begun = time.monotonic()
        (told,) = mirrored(where, "a run")
        assert told == (
            f"· leaving is not mirrored to MLflow at {address}: that takes longer than 1 seconds;"
            " it is caught up the next time"
        )
        (of_other,) = mirrored(where, "a run")
        assert "it did not answer in time for what came before" in of_other
        assert mirrored(where, "another run") == [of_other], "what is still at work may write"
        assert time.monotonic() - begun < 5
    what_is_late_comes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", at_rest)
    monkeypatch.setattr(mirroring, "PATIENCE", 60)
    assert mirrored(where, "a run") == [of_other.replace(address, at_rest)]
    (told,) = mirrored(where, "the next run")
    assert told.endswith("version 3, version 4, version 3 is its champion")


def test_an_upload_that_takes_longer_goes_on_beside_the_run(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    log_artifact, waits = MlflowClient.log_artifact, threading.Event()

    def slowly(*told: Any) -> None:
        waits.wait(60)
        log_artifact(*told)

    mirrored(where)  # the database is made
    with warehouse.open_warehouse(where.warehouse) as connection:
        another_version(connection, where, SCORE, 5)
    monkeypatch.setattr(MlflowClient, "log_artifact", slowly)
    monkeypatch.setattr(mirroring, "PATIENCE", 1)
    (told,) = mirrored(where)
    assert "that takes longer than 1 seconds" in told
    waits.set()
    what_is_late_comes()
    assert sorted(in_mlflow()) == ["3", "4", "5"]


def test_a_server_that_does_not_answer_is_told_without_its_secrets(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{port}/mlflow")
    (told,) = mirrored(where)
    assert told.startswith(f"· leaving is not mirrored to MLflow at http://127.0.0.1:{port}/mlflow: ")
    assert "Connection refused" in told and told.endswith("; it is caught up the next time")
    assert "s3cret" not in told and "ann" not in told.split()


def test_without_the_package_one_line_says_so(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert mirrored(where) == [
        "· MLFLOW_TRACKING_URI is set, but mlflow is not installed: pip install 'scorehouse[mlflow]', or unset it"
    ]


def test_without_an_address_nothing_is_done(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirrored(where) == []
