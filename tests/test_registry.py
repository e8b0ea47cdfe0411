"""A saved model comes back the same or not at all."""

import ast
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from catboost import CatBoost, CatBoostError

from ml import registry
from ml.declarations import Kind
from ml.evaluation import evaluate_holdout
from ml.explanation import contributions
from ml.leaf_table import LeafTable
from ml.prediction import score_rows
from ml.registry import BOOSTER, CARD, Card, CorruptModel, Model, UnsavedModel, load, load_card, save
from tests.conftest import REPOSITORY
from tests.small_data import a_candidate, a_model, some_rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, to be read only."""
    folder = tmp_path_factory.mktemp("models") / "leaving" / "3"
    save(folder, a_model().booster, a_model().card)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# --- There and back


@pytest.mark.parametrize("kind", ["probability", "amount"])
def test_a_model_that_was_saved_scores_and_explains_as_before(kind: Kind, tmp_path: Path) -> None:
    model, rows = a_model(kind), some_rows(kind=kind, seed=12)
    save(tmp_path / "model", model.booster, model.card)
    loaded = load(tmp_path / "model")
    assert score_rows(loaded, rows).tolist() == score_rows(model, rows).tolist()
    matrix = np.array([[np.nan] * 6, [30, 12.5, 1, 2, 19_000, 19_700]], dtype=np.float32, order="F")
    told = (contributions(one.leaf_table, matrix) for one in (model, loaded))
    for before, after in zip(*told, strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_explains_a_model_is_made_once_however_many_batches_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, right = [], registry.leaf_table

    def slowly(booster: CatBoost) -> LeafTable:
        made.append(booster)
        time.sleep(0.1)
        return right(booster)

    monkeypatch.setattr(registry, "leaf_table", slowly)
    model = Model(a_model().booster, a_model().card)
    with ThreadPoolExecutor(4) as threads:
        tables = list(threads.map(lambda _: model.leaf_table, range(4)))
    evaluate_holdout(model, a_candidate().holdout, a_candidate().holdout.column("label").to_numpy())
    assert len(made) == 1 and all(table is tables[0] for table in tables)


@pytest.mark.parametrize("kind", ["probability", "amount"])
def test_a_card_comes_back_as_it_was_with_its_checksums(kind: Kind, tmp_path: Path) -> None:
    card = a_model(kind).card
    signed = save(tmp_path / "model", a_model(kind).booster, card)
    assert load(tmp_path / "model").card == load_card(tmp_path / "model") == signed
    assert len({signed.booster_sha256, signed.card_sha256, card.card_sha256}) == 3
    assert msgspec.structs.replace(signed, booster_sha256="0" * 64, card_sha256="0" * 64) == card


def test_a_metric_that_could_not_be_measured_comes_back_as_nan(tmp_path: Path) -> None:
    metrics, baseline = {"roc_auc": math.nan, "brier": 0.1}, {"roc_auc": 0.5, "brier": math.nan}
    save(tmp_path / "model", a_model().booster, a_model(metrics=metrics, baseline=baseline).card)
    card = load_card(tmp_path / "model")
    assert math.isnan(card.metrics["roc_auc"]) and math.isnan(card.baseline["brier"])
    assert (card.metrics["brier"], card.baseline["roc_auc"]) == (0.1, 0.5)


def test_texts_of_any_letters_come_back(tmp_path: Path) -> None:
    odd = a_model(score='Zoë\'s "score" \\ \n 🙂', baseline_name='"card_sha256": "' + "a" * 64 + '"').card
    save(tmp_path / "model", a_model().booster, odd)
    assert (load_card(tmp_path / "model").score, load_card(tmp_path / "model").baseline_name) == (
        odd.score,
        odd.baseline_name,
    )


def test_a_copy_of_the_two_files_is_the_model(copied: Path) -> None:
    assert sorted(path.name for path in copied.iterdir()) == sorted([BOOSTER, CARD])
    assert load(copied).card.version == 3


def test_the_same_model_is_saved_as_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save(tmp_path / "again", a_model().booster, a_model().card)
    for name in (BOOSTER, CARD):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_nothing_is_pickled(saved: Path) -> None:
    assert (saved / BOOSTER).read_bytes().startswith(b"CBM1")
    assert json.loads((saved / CARD).read_text())["score"] == "leaving"
    for path in (REPOSITORY / "ml").glob("*.py"):
        imported = [
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (*node.names, ast.alias(getattr(node, "module", None) or ""))
        ]
        assert not {name.partition(".")[0] for name in imported} & {"pickle", "joblib", "dill", "cloudpickle", "shelve"}


# --- Whole or not at all


def test_a_saved_model_is_never_written_over(copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(FileExistsError, match=f"{copied} exists already, and a saved model never changes"):
        save(copied, a_model("amount").booster, a_model("amount").card)
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


SAVE_UNTIL = """
import os, signal, sys
from pathlib import Path
from ml.registry import load, save
model = load(Path(sys.argv[1]))
setattr(os, sys.argv[3], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
save(Path(sys.argv[2]), model.booster, model.card)
"""


@pytest.mark.parametrize("last", ["fsync", "rename"])
def test_a_save_that_was_killed_leaves_no_model_and_the_next_one_works(saved: Path, tmp_path: Path, last: str) -> None:
    folder = tmp_path / "leaving" / "4"
    killed = subprocess.run([sys.executable, "-c", SAVE_UNTIL, saved, folder, last], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists() and len(list(folder.parent.iterdir())) == 1
    save(folder, a_model("amount").booster, a_model("amount").card)
    assert load(folder).card.kind == "amount"
    assert os.listdir(folder.parent) == ["4"] and len(os.listdir(folder)) == 2


# --- Damage


@pytest.mark.parametrize("last", ["booster", "card"])
def test_a_disk_that_does_not_take_a_model_is_told_and_nothing_is_left_of_it(
    tmp_path: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        if last == "booster":
            raise CatBoostError("(Error 28: No space left on device) can't write 8 bytes")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((CatBoost, "save_model") if last == "booster" else (os, "fsync")), full)
    model = a_model()
    with pytest.raises(UnsavedModel, match=r"/3: the model can't be saved \(.*No space left on device.*make room"):
        save(tmp_path / "3", model.booster, model.card)
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_any_byte_of_the_card_is_found(copied: Path) -> None:
    path = copied / CARD
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptModel, match=CARD):
            load(copied)
    path.write_bytes(whole)
    assert load(copied)


def test_a_change_of_a_byte_of_the_booster_is_found(copied: Path) -> None:
    path = copied / BOOSTER
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 83), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        with pytest.raises(
            CorruptModel, match=f"{BOOSTER}: has the checksum [0-9a-f]{{64}}, but [0-9a-f]{{64}} was saved"
        ):
            load(copied)
    path.write_bytes(whole)
    assert load(copied)


@pytest.mark.parametrize("name", [CARD, BOOSTER])
def test_a_file_cut_short_or_grown_is_found(copied: Path, name: str) -> None:
    path = copied / name
    whole = path.read_bytes()
    for damaged in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"\n", whole + whole, b"\0" + whole):
        path.write_bytes(damaged)
        with pytest.raises(CorruptModel, match=name):
            load(copied)


@pytest.mark.parametrize("name", [CARD, BOOSTER])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(CorruptModel, match=f"{name}: is missing"):
        load(copied)


@pytest.mark.parametrize("name", [CARD, BOOSTER])
def test_a_folder_in_place_of_a_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(CorruptModel, match=rf"{name}: can't be read \(Is a directory\)"):
        load(copied)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel, match=r"nowhere/card\.json: is missing"):
        load(tmp_path / "nowhere")


def test_the_booster_of_another_version_is_found(copied: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", a_model("amount").booster, a_model("amount").card)
    shutil.copy(tmp_path / "other" / BOOSTER, copied)
    with pytest.raises(CorruptModel, match=BOOSTER):
        load(copied)


def test_a_card_whose_features_are_not_those_of_the_booster_is_found(tmp_path: Path) -> None:
    card: Card = a_model().card
    turned = msgspec.structs.replace(card.encoder, columns=tuple(reversed(card.encoder.columns)))
    save(tmp_path / "model", a_model().booster, a_model(encoder=turned).card)
    with pytest.raises(CorruptModel, match=r"its features are not those of .*card\.json"):
        load(tmp_path / "model")
