"""What is published equals the warehouse, value by value; what does not is told by column, and not served."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import dagster as dg
import duckdb
import msgspec
import pytest
from litestar.testing import TestClient

from ml.declarations import Feature, Project
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.parity import PublishedDiffers
from orchestration.project import Paths
from orchestration.publishing import generation_asset, publish
from orchestration.training_sets import ScoringError
from serving.app import create_app
from serving.generations import store
from tests.small_data import a_score, a_warehouse

SCORE = a_score()
SHOP = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(SCORE,))
ROWS = 1500  # more than are compared


class Shop(msgspec.Struct):
    """A warehouse, with the folder of what is published from it."""

    connection: duckdb.DuckDBPyConnection
    where: Paths

    def score(self) -> None:
        scoring.score_dates(self.connection, SCORE, current_champion(self.connection, SCORE), self.where)

    def publish(self) -> Path:
        """Scores and publishes; gives the folder of the generation."""
        self.score()
        return self.folder(publish(self.connection, SCORE, SHOP, self.where)["generation"])

    def folder(self, generation: str | None) -> Path:
        return self.where.generations / SCORE.name / str(generation)

    def served(self) -> Path:
        return self.folder(store.current(self.where.generations, SCORE.name))

    def change(self, sql: str) -> None:
        self.connection.execute(f"update features.customer_features set {sql}")


@contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    with warehouse.open_warehouse(folder / "warehouse.duckdb") as connection:
        yield Shop(connection, Paths(project=folder, data=folder))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        a_warehouse(shop.connection, shop.where, SCORE, "n", rows=ROWS)
        yield shop


def rewritten(
    folder: Path,
    features: Callable[[str, list[object]], list[object] | None] = lambda _, values: values,
    score: Callable[[store.CustomerScore], store.CustomerScore] = lambda customer: customer,
) -> None:
    """Writes the generation of a folder anew, sound in itself, with other values."""
    with store.open_store(folder) as opened:
        ids = [key for key, _ in opened.sample(10**9)]
        scores = [msgspec.json.decode(opened.get(key) or b"", type=store.CustomerScore) for key in ids]
        arrays = [features(key, msgspec.json.decode(opened.features(key) or b"")) for key in ids]
        generation = opened.generation
    pairs = list(zip(ids, scores, arrays, strict=True))
    shutil.rmtree(folder)
    store.write(
        folder.parent.parent,
        generation,
        [(key, store.payload(score(one))) for key, one, _ in pairs],
        {},
        [(key, msgspec.json.encode(array)) for key, _, array in pairs],
    )


def test_features_are_published_with_the_scores_that_were_made_from_them(shop: Shop) -> None:
    folder = shop.publish()
    assert shop.served() == folder
    expected = warehouse.rows(shop.connection, "select * from features.customer_features where customer_id = 1234")[0]
    with TestClient(create_app(shop.where.data)) as client:
        answer = client.get(f"/customers/1234/features?score={SCORE.name}").json()
    assert (answer["customer_id"], answer["as_of_date"], answer["model_version"]) == ("1234", "2024-05-06", 3)
    assert answer["features"] == {
        "days_away": 34,
        "spend": 308.5,
        "member": True,
        "colour": "red",
        "joined_on": str(expected["joined_on"]),
        "seen_at": "2024-05-04T20:56:00Z",
    }
    types = {feature.name: feature.data_type for feature in store.verify(folder).features}
    assert types["spend"] == "DOUBLE" and types["seen_at"] == "TIMESTAMP WITH TIME ZONE"


def test_nothing_changed_publishes_nothing_and_one_changed_feature_a_new_generation(shop: Shop) -> None:
    first = shop.publish()
    assert shop.publish() == first
    shop.change("joined_on = joined_on - 1 where customer_id = 7")
    second = shop.publish()
    assert second != first and shop.served() == second


def test_features_that_were_not_scored_are_not_published(shop: Shop) -> None:
    first = shop.publish()
    shop.change("spend = 1 where customer_id = 7")
    with pytest.raises(
        ScoringError, match=r"'leaving': the rows of customer_features at 2024-05-06 are not those that"
    ):
        publish(shop.connection, SCORE, SHOP, shop.where)
    shop.connection.execute("delete from features.customer_features")
    with pytest.raises(ScoringError, match=r"are not those that were scored; materialize predictions/leaving first"):
        publish(shop.connection, SCORE, SHOP, shop.where)
    assert shop.served() == first


def test_each_differing_column_is_counted_with_an_example_and_the_old_generation_serves_on(shop: Shop) -> None:
    first = shop.publish()
    shop.change("spend = 12.75 where customer_id < 300")
    second = shop.publish()
    store.flip(shop.where.generations, SCORE.name, first.name)

    def other(customer_id: str, values: list[object]) -> list[object]:
        days, spend, member, colour, joined, seen = values
        return [days, 12.5 if spend == 12.75 else spend, not member, colour, joined, seen]

    rewritten(second, other, lambda customer: msgspec.structs.replace(customer, band="other"))
    with pytest.raises(PublishedDiffers) as raised:
        publish(shop.connection, SCORE, SHOP, shop.where)
    told = str(raised.value)
    (spent,) = warehouse.one(
        shop.connection,
        """
        select count(*) from (
            select customer_id from features.customer_features order by hash(customer_id::varchar) limit 1000
        ) where customer_id < 300
        """,
    )
    assert raised.value.columns == {"band": 1000, "spend": spent, "member": 1000}
    assert f"score 'leaving': generation {second.name} is not what the warehouse holds: column band: 1000 of" in told
    assert f"; column spend: {spent} of 1000 differ, e.g. customer " in told
    assert ": 12.5 published, 12.75 in the warehouse; column member" in told
    assert told.endswith("; the old generation serves on")
    assert shop.served() == first


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, "34", 'column days_away: 1000 of 1000 can\'t be read, e.g. customer 0: is "34", not a number'),
        (1, "NaN", "column spend: 1000 of 1000 differ, e.g. customer "),
        (1, 1e-300, "column spend: 1000 of 1000 differ, e.g. customer "),
        (2, None, "column member: 1000 of 1000 differ, e.g. customer "),
        (5, "2024-05-05T17:30:00.000001Z", "column seen_at: 1000 of 1000 differ, e.g. customer "),
        (5, "2024-05-05T17:30:00", 'is "2024-05-05T17:30:00", without a time zone (write "2024-12-31T23:59:59Z")'),
    ],
)
def test_a_value_that_is_not_the_warehouses_or_of_another_type_is_found(
    shop: Shop, place: int, value: object, told: str
) -> None:
    folder = shop.publish()
    rewritten(folder, lambda _, values: [*values[:place], value, *values[place + 1 :]])
    with pytest.raises(PublishedDiffers) as raised:
        publish(shop.connection, SCORE, SHOP, shop.where)
    assert told in str(raised.value)


def test_the_asset_check_tells_what_was_compared_and_which_columns_differ(tmp_path: Path) -> None:
    asset = generation_asset(SCORE, SHOP, Paths(project=tmp_path, data=tmp_path))
    with open_shop(tmp_path) as shop:
        a_warehouse(shop.connection, shop.where, SCORE, "n", rows=ROWS)
        shop.score()
    (check,) = dg.materialize([asset]).get_asset_check_evaluations()
    assert check.passed
    told = {name: value.value for name, value in check.metadata.items()}
    assert told == {"customers": 1500, "customers compared": 1000, "features compared": 6}

    with open_shop(tmp_path) as shop:
        served = shop.served()
    rewritten(served, lambda _, values: [*values[:3], "blue", *values[4:]])
    failed = dg.materialize([asset], raise_on_error=False)
    assert not failed.success
    (check,) = failed.get_asset_check_evaluations()
    assert not check.passed
    assert check.metadata["customers that differ"].value == {"colour": 1000}
    assert "column colour: 1000 of 1000 differ" in str(check.metadata["difference"].value)


def test_customers_are_counted_on_both_sides(shop: Shop) -> None:
    folder = shop.publish()
    with store.open_store(folder) as opened:
        stored = {key: (opened.get(key) or b"", opened.features(key) or b"") for key, _ in opened.sample(10**9)}
        generation = opened.generation
    del stored["999"]
    shutil.rmtree(folder)
    store.write(
        shop.where.generations,
        msgspec.structs.replace(generation, rows=ROWS - 1),
        [(key, score) for key, (score, _) in stored.items()],
        {},
        [(key, features) for key, (_, features) in stored.items()],
    )
    told = (
        rf"1499 customers are in generation {folder.name}, but the warehouse has 1500 scores and the features of 1500"
    )
    with pytest.raises(PublishedDiffers, match=told):
        publish(shop.connection, SCORE, SHOP, shop.where)


def test_a_feature_may_be_called_as_a_column_of_predictions_is(tmp_path: Path) -> None:
    named_alike = [Feature(name=name, data_type="", description="") for name in ("score", "band")]
    score = a_score(columns=(*SCORE.columns, *named_alike))
    with open_shop(tmp_path) as shop:
        a_warehouse(shop.connection, shop.where, score, "n", rows=10)
        shop.connection.execute("alter table features.customer_features add column score integer default 7")
        shop.connection.execute("alter table features.customer_features add column band varchar default 'x'")
        scoring.score_dates(shop.connection, score, current_champion(shop.connection, score), shop.where)
        folder = shop.folder(publish(shop.connection, score, SHOP, shop.where)["generation"])
        with store.open_store(folder) as opened:
            assert (opened.features("3") or b"").endswith(b',7,"x"]')
        rewritten(folder, lambda _, values: [*values[:-1], "low"])
        with pytest.raises(PublishedDiffers, match=r"holds: column band: 10 of 10 differ, .* low published, x in the"):
            publish(shop.connection, score, SHOP, shop.where)


@pytest.mark.parametrize("name", ["content", "Content", "_row", "_customer", "customer_key", "features"])
def test_whatever_a_feature_is_called_a_change_of_another_is_scored_again_and_published(
    tmp_path: Path, name: str
) -> None:
    score = a_score(columns=(*SCORE.columns, Feature(name=name, data_type="", description="")))
    with open_shop(tmp_path) as shop:
        a_warehouse(shop.connection, shop.where, score, "n", rows=10)
        column = warehouse.name(name)
        shop.connection.execute(f"alter table features.customer_features add column {column} integer default 7")
        champion, folders = current_champion(shop.connection, score), []
        for days in (1, 50):
            shop.change(f"days_away = {days}")
            assert scoring.score_dates(shop.connection, score, champion, shop.where)[1] == 10
            folders.append(shop.folder(publish(shop.connection, score, SHOP, shop.where)["generation"]))
        assert folders[0] != folders[1]
        with store.open_store(folders[1]) as opened:
            assert (opened.features("3") or b"").startswith(b"[50,")


def test_a_feature_of_a_type_that_has_no_value_in_json_is_named(tmp_path: Path) -> None:
    score = a_score(columns=(*SCORE.columns, Feature(name="span", data_type="interval", description="")))
    where = Paths(project=tmp_path, data=tmp_path)
    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        a_warehouse(connection, where, score, "n", rows=10)
        connection.execute("alter table features.customer_features add column span interval")
        scoring.score_dates(connection, score, current_champion(connection, score), where)
        with pytest.raises(
            ScoringError, match=r"'leaving': feature 'span' of customer_features: INTERVAL can't be the"
        ):
            publish(connection, score, SHOP, where)
    assert not where.generations.exists()
