"""Predictions on demand: the published number for a published customer, and all that is wrong with a wrong request."""

import json
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from litestar import Litestar
from litestar.testing import TestClient

from ml.declarations import Feature, Kind, Project, Score
from ml.learning import Explained
from ml.on_demand import make_scorer, predict, predict_few
from ml.values import Fault, read_rows
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.project import Paths
from orchestration.publishing import publish as publish_score
from serving.app import create_app
from serving.generations import store
from serving.generations.generation import StoreUnavailable
from serving.generations.opening import Store
from serving.predicting import predictor
from serving.predicting.answers import ContractAnswer, PredictionsAnswer
from serving.predicting.predictor import FEW_BYTES
from serving.predicting.requests import wrong_values
from serving.predicting.schemas import features_schema
from tests.sample_generations import publish
from tests.small_data import a_model, a_score, a_warehouse
from tests.test_api import eventually
from tests.test_guard import raw
from tests.test_scrape import of, scrape

Client = TestClient[Litestar]

ROWS = 1100
FEATURES = {
    "days_away": 50,
    "spend": 12.5,
    "member": True,
    "colour": "red",
    "joined_on": "2023-05-06",
    "seen_at": "2024-05-01T17:30:00Z",
}
TYPES = {
    "days_away": "INTEGER",
    "spend": "DOUBLE",
    "member": "BOOLEAN",
    "colour": "VARCHAR",
    "joined_on": "DATE",
    "seen_at": "TIMESTAMP WITH TIME ZONE",
}
PREDICT = "/scores/leaving/predict"


def a_shop(folder: Path, score: Score) -> Path:
    """A published score of 1,100 customers, and its data folder. All of them are explained in the warehouse."""
    project = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(score,))
    where = Paths(project=folder, data=folder)
    with warehouse.open_warehouse(folder / "warehouse.duckdb") as connection:
        a_warehouse(connection, where, score, "n", ROWS)
        scoring.score_dates(connection, score, current_champion(connection, score), where)
        publish_score(connection, score, project, where)
    return folder


@pytest.fixture(scope="module", params=["probability", "category"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of either kind."""
    kind: Kind = request.param
    score = a_score(kind, explained=Explained(top=3), **({"bands": {}} if kind == "category" else {}))
    return a_shop(tmp_path_factory.mktemp(kind), score)


@pytest.fixture(scope="module")
def client(shop: Path) -> Iterator[Client]:
    """An application's client, once the model is there."""
    with TestClient(create_app(shop, look_every=0.02)) as client:
        eventually(lambda: client.post(PREDICT, json={"rows": [{"features": FEATURES}]}).status_code == 200, 20)
        yield client


def told(client: Client, rows: Sequence[Any], status: int = 200, reasons: bool = False) -> Any:
    answer = client.post(PREDICT, json={"rows": rows, "reasons": reasons})
    assert answer.status_code == status, answer.text
    if status == 200:
        msgspec.json.decode(answer.content, type=PredictionsAnswer)
    else:
        assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


# --- The same number


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [{"features": FEATURES, "id": "new"}]},
        {"rows": [{"customer_id": "7", "overrides": {"spend": None}}, {"features": FEATURES}]},
        {"rows": [{"customer_id": "7"}], "reasons": True},
        {"rows": [{"features": FEATURES | {"days_away": "soon"}}]},
        {"rows": [{"customer_id": "nobody"}]},
        {"rows": []},
        [],
    ],
)
def test_a_prediction_is_answered_before_litestar_as_the_handler_answers_it(client: Client, body: Any) -> None:
    plain, of_the_handler = (client.post(path, json=body) for path in (PREDICT, f"{PREDICT}?by=handler"))
    assert plain.status_code == of_the_handler.status_code
    assert plain.headers == of_the_handler.headers
    assert plain.content == of_the_handler.content


def test_predictions_do_without_the_handler(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above compares two ways, and not one with itself."""
    monkeypatch.setattr("serving.predicting.api.caller_of", lambda *_: 1 / 0)
    assert told(client, [{"features": FEATURES}])["predictions"]
    assert client.post(f"{PREDICT}?by=handler", json={"rows": [{"features": FEATURES}]}).status_code == 500
    long = {"rows": [{"features": FEATURES, "id": "x" * FEW_BYTES}]}
    assert client.post(PREDICT, json=long).status_code == 500, "a long body is the handler's"


@pytest.mark.parametrize(
    ("body", "status", "fault"),
    [
        (json.dumps({"rows": [{"features": FEATURES}]}), 200, '"value":'),
        (json.dumps({"rows": [{"features": FEATURES | {"days_away": "soon"}}]}), 422, "not a number without fraction"),
    ],
)
def test_a_body_in_pieces_is_read_as_a_whole(client: Client, body: str, status: int, fault: str) -> None:
    sent = body.encode()
    pieces = [(sent[:7], True), (b"", True), (sent[7:50], True), (sent[50:], False)]
    headers = {"Host": "127.0.0.1", "Content-Length": str(len(sent))}
    found, answer = raw(client, client.app, "POST", PREDICT, headers, pieces)
    assert found == status and fault in answer.decode()


@pytest.mark.parametrize("features", [FEATURES, FEATURES | {"spend": "much"}])
def test_a_prediction_is_worked_on_counted_and_audited_once(
    shop: Path, client: Client, monkeypatch: pytest.MonkeyPatch, features: Any
) -> None:
    worked: list[int] = []
    answer = predictor._answer

    def counted(*arguments: Any, **more: Any) -> bytes:
        worked.append(1)
        return answer(*arguments, **more)

    monkeypatch.setattr(predictor, "_answer", counted)
    answered: list[Any] = []
    with TestClient(create_app(shop, audit_days=30, answered=lambda *told: answered.append(told))) as audited:
        eventually(lambda: audited.get("/scores/leaving/contract").status_code == 200)
        eventually(lambda: audited.post(PREDICT, json={"rows": [{"features": FEATURES}]}).status_code == 200, 20)
        before = scrape(audited)
        worked.clear()
        answered.clear()
        status = audited.post(PREDICT, json={"rows": [{"features": features}] * 3}).status_code
        assert len(worked) == 1
        assert [one[:3] for one in answered] == [("/scores/{score}/predict", "POST", status)]
        rows = 3 if status == 200 else 0
        after = scrape(audited)
        assert (
            of(after, "predictions_total", score="leaving") - of(before, "predictions_total", score="leaving") == rows
        )
    (log,) = (shop / "logs" / "audit").glob("*.jsonl")
    line = [json.loads(one) for one in log.read_text().splitlines() if '"POST"' in one][-1]
    assert (line["route"], line["status"]) == ("/scores/{score}/predict", status)
    assert line["customers"] == (3 if rows else None)


def test_a_fault_inside_is_met_once_and_logged(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    met: list[int] = []

    def broken(*_: Any, **__: Any) -> bytes:
        met.append(1)
        raise KeyError("within")

    monkeypatch.setattr(predictor, "_answer", broken)
    answer = client.post(PREDICT, json={"rows": [{"features": FEATURES}]})
    assert answer.status_code == 500 and "within" not in answer.text
    assert len(met) == 1 and "within" in caplog.text


def test_every_published_customer_is_predicted_to_the_bit_with_band_probabilities_and_reasons(
    shop: Path, client: Client
) -> None:
    generation = store.current(shop / "generations", "leaving")
    with store.open_store(shop / "generations" / "leaving" / str(generation)) as opened:
        published = [json.loads(opened.get(key) or b"") for key, _ in opened.sample(10**9)]
    with duckdb.connect(str(shop / "warehouse.duckdb"), read_only=True) as connection:
        scores = dict(connection.execute("select customer_id::varchar, score from predictions.leaving").fetchall())
    assert len(published) == len(scores) == ROWS

    asked = [{"customer_id": one["customer_id"]} for one in published]
    many = [
        *told(client, asked[:1000], reasons=True)["predictions"],
        *told(client, asked[1000:], reasons=True)["predictions"],
    ]
    for one, found in zip(published, many, strict=True):
        assert found["value"] == found["published_value"] == one["value"] == scores[one["customer_id"]]
        for name in ("customer_id", "band", "reasons", "probabilities"):
            assert found.get(name) == one.get(name), name

    features = {
        one["customer_id"]: client.get(f"/customers/{one['customer_id']}/features?score=leaving").json()["features"]
        for one in published[::40]
    }
    for one, found in zip(published[::40], many[::40], strict=True):
        (alone,) = told(client, [{"customer_id": one["customer_id"]}])["predictions"]
        (sent,) = told(client, [{"features": features[one["customer_id"]], "id": "x"}])["predictions"]
        for name in ("value", "band", "percentile", "probabilities"):
            assert alone.get(name) == sent.get(name) == found.get(name), name
        assert "reasons" not in alone and "published_value" not in sent
        assert (sent["id"], alone["customer_id"]) == ("x", one["customer_id"])


def test_an_answer_says_where_it_comes_from_and_keeps_the_order_of_the_rows(client: Client) -> None:
    answer = told(client, [{"features": FEATURES, "id": "new"}, {"customer_id": "7"}, {"features": FEATURES}])
    summary = client.get("/scores/leaving").json()
    for name in ("generation", "model_version", "as_of_date"):
        assert answer[name] == summary[name]
    assert (answer["score"], answer["stale"]) == ("leaving", False)
    predictions = answer["predictions"]
    assert [one["row"] for one in predictions] == [1, 2, 3]
    assert [(one.get("id"), one.get("customer_id")) for one in predictions] == [
        ("new", None),
        (None, "7"),
        (None, None),
    ]


def test_an_id_may_be_a_number_as_in_a_lookup(client: Client) -> None:
    number, text = told(client, [{"customer_id": 7}, {"customer_id": "7"}])["predictions"]
    assert number == text | {"row": 1} and number["customer_id"] == "7"


def test_an_override_counts_in_place_of_what_is_published_and_the_difference_is_seen(client: Client) -> None:
    published = client.get("/customers/7/features?score=leaving").json()["features"]
    (what_if,) = told(client, [{"customer_id": "7", "overrides": {"days_away": 59, "spend": None}}])["predictions"]
    (sent,) = told(client, [{"features": published | {"days_away": 59, "spend": None}}])["predictions"]
    assert what_if["value"] == sent["value"] != what_if["published_value"]
    assert what_if["published_value"] == client.get("/scores/leaving/customers/7").json()["value"]


def test_reasons_are_of_the_values_that_were_sent(client: Client) -> None:
    (found,) = told(client, [{"customer_id": "7", "overrides": {"days_away": 58}}], reasons=True)["predictions"]
    (reason,) = [one for one in found["reasons"] if one["feature"] == "days_away"]
    assert reason["value"] == "58"
    assert reason["text"].startswith("Days away: 58, which ")


def test_a_thousand_rows_are_predicted_and_none_or_more_are_refused_with_the_limit(client: Client) -> None:
    assert len(told(client, [{"features": FEATURES}] * 1000)["predictions"]) == 1000
    assert told(client, [], 422)["detail"] == "One request has 1 to 1,000 rows, and this one has none."
    assert told(client, [{"features": FEATURES}] * 1001, 422)["detail"] == (
        "One request has 1 to 1,000 rows, and this one has 1,001. Send several."
    )


# --- What is wrong


def test_all_that_is_wrong_is_told_by_row_and_feature_and_nothing_is_predicted(client: Client) -> None:
    wrong = {**FEATURES, "days_away": "50", "joined_on": "2023-02-30", "days_awy": 3}
    del wrong["member"]
    problem = told(
        client, [{"features": FEATURES}, {"features": wrong}, {"customer_id": "7", "overrides": {"x": 1}}], 422
    )
    assert problem["errors"] == [
        {"row": 2, "column": "days_awy", "fault": "is not known (is 'days_away' meant?)"},
        {"row": 2, "column": "days_away", "fault": 'is "50", not a number without fraction (its type: INTEGER)'},
        {"row": 2, "column": "member", "fault": "is missing"},
        {"row": 2, "column": "joined_on", "fault": 'is "2023-02-30", not a date (write "2024-12-31") (its type: DATE)'},
        {"row": 3, "column": "x", "fault": "is not known"},
    ]
    assert problem["detail"] == (
        f"2 rows are wrong, so nothing is predicted: 5 faults. The features are {', '.join(TYPES)}."
    )


def test_where_the_features_are_many_a_fault_says_where_they_are_told() -> None:
    faults = [Fault(row=1, feature="visits", fault="is missing")]
    few, many = (wrong_values(faults, [f"f{n}" for n in range(count)], "leaving").detail for count in (20, 21))
    assert few.endswith(" The features are " + ", ".join(f"f{n}" for n in range(20)) + ".")
    assert many.endswith(": 1 fault. GET /scores/leaving/contract tells the 21 features with their types.")


def test_at_most_twenty_faults_are_listed(client: Client) -> None:
    problem = told(client, [{"features": {}}] * 50, 422)
    assert len(problem["errors"]) == 20
    assert problem["detail"].startswith(
        "50 rows are wrong, so nothing is predicted: 300 faults, the first of which are"
    )


def test_unknown_customers_are_told_with_their_rows(client: Client) -> None:
    problem = told(client, [{"customer_id": "7"}, {"customer_id": "nobody"}, {"customer_id": ""}], 404)
    assert problem["detail"] == (
        "2 of the customers are not known to score 'leaving', the first in row 2. An id is customer_id."
    )
    assert [(one["row"], one["fault"]) for one in problem["errors"]] == [
        (2, "customer 'nobody' is not known"),
        (3, "customer '' is not known"),
    ]
    assert client.post("/scores/x/predict", json={"rows": [{"customer_id": "7"}]}).json()["known_scores"] == ["leaving"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "has neither features nor a customer_id"),
        ({"features": FEATURES, "customer_id": "7"}, "has both features and a customer_id"),
        ({"features": FEATURES, "overrides": {}}, "has overrides, which only rows with a customer_id may have"),
        ({"customer_id": "7", "id": "a"}, "has an id, which only rows with features may have: a customer has one"),
        ({"customer_id": 7.5}, "Expected `int | str`, got `float` - at `$.customer_id`"),
        ({"customer_id": "7", "override": {}}, "Object contains unknown field `override`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_a_row_of_another_form_is_told_by_its_number(client: Client, row: Any, fault: str) -> None:
    problem = told(client, [{"customer_id": "7"}, row], 422)
    assert problem["errors"] == [{"row": 2, "column": None, "fault": fault}]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"nonsense", 400),
        (b'{"rows": [{"features": ' + b"[" * 100_000, 400),
        (b'{"rows": [1, {"features": {"spend": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}", 400),
        (b'{"rows": [{"features": {"spend": 1e999}}]}', 422),
        (b'{"rows": [{"features": {"spend": NaN}}]}', 400),
        (b'{"rows": [{"features": {"days_away": ' + b"9" * 10_000 + b"}}]}", 422),
        (b'{"rows": [{"features": {"\xff": 1}}]}', 400),
        (b'{"rows": [{"features": {"\\ud800": 1}}]}', 400),
        (b'{"rows": 1}', 422),
        (b'{"rows": [{"features": null}]}', 422),
        (b'{"rows": [{"customer_id": "7"}], "reason": true}', 422),
        (b"[]", 422),
    ],
)
def test_no_body_is_bad_enough_for_an_error_of_the_server(client: Client, body: bytes, status: int) -> None:
    answer = client.post(PREDICT, content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status


def test_of_a_name_that_comes_twice_the_last_counts(client: Client) -> None:
    sent = json.dumps(FEATURES).encode()
    body = b'{"rows": [{"features": {"days_away": "x", ' + sent[1:] + b"}]}"
    assert (
        client.post(PREDICT, content=body).json()
        == client.post(PREDICT, json={"rows": [{"features": FEATURES}]}).json()
    )


def test_numbers_that_are_none_are_sent_as_text(client: Client) -> None:
    ends = [{"features": FEATURES | {"spend": spend}} for spend in ("NaN", None, "Infinity", 1.7e308)]
    nan, null, infinite, largest = (one["value"] for one in told(client, ends)["predictions"])
    assert (nan, infinite) == (null, largest)


# --- The contract


def test_the_contract_is_a_json_schema_that_every_published_row_meets(client: Client) -> None:
    contract = msgspec.json.decode(client.get("/scores/leaving/contract").content, type=ContractAnswer)
    assert contract.model_version == 3
    Draft202012Validator.check_schema(contract.features)
    validator = Draft202012Validator(contract.features)
    for customer in range(0, 100, 9):
        validator.validate(client.get(f"/customers/{customer}/features?score=leaving").json()["features"])
    assert contract.features["required"] == list(TYPES)
    assert not validator.is_valid(FEATURES | {"days_away": "1"})
    assert not validator.is_valid(FEATURES | {"other": 1})


def test_the_openapi_document_has_each_score_with_its_features_by_type(client: Client) -> None:
    document = client.get("/openapi.json").json()
    general, own = document["paths"]["/scores/{score}/predict"]["post"], document["paths"][PREDICT]["post"]
    assert own["operationId"] != general["operationId"]
    assert "parameters" not in own
    assert own["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/PredictRequest_leaving")
    features = document["components"]["schemas"]["Features_leaving"]["properties"]
    assert list(features) == list(TYPES)
    assert features["joined_on"]["anyOf"] == [{"type": "string", "format": "date"}, {"type": "null"}]


def test_every_type_of_a_feature_has_a_schema_that_takes_what_is_documented() -> None:
    documented = {
        "BOOLEAN": ([True], [1]),
        "UTINYINT": ([255], [256, -1, "1"]),
        "HUGEINT": ([-(2**127), 2**127 - 1], [2**127]),
        "DECIMAL(4,2)": (["12.50", "-1", "0.5"], [12.5, "123", "1.234", "1e2"]),
        "DECIMAL(2,2)": (["0.50"], ["1.50"]),
        "DECIMAL(18,0)": (["12"], ["12.5"]),
        "FLOAT": ([1, 0.5, "NaN"], [1e39, "1"]),
        "DOUBLE": ([1e300, "-Infinity"], ["x"]),
        "TIMESTAMP": (["2024-03-04T05:06:07.25"], ["2024-03-04T05:06:07Z", "2024-03-04"]),
        "TIMESTAMP_S": (["2024-03-04T05:06:07"], ["2024-03-04T05:06:07.5"]),
        "VARCHAR": (["", "x"], [1]),
    }
    for data_type, (right, wrong) in documented.items():
        validator = Draft202012Validator(features_schema([Feature(name="x", data_type=data_type, description="")]))
        for value in [*right, None]:
            assert validator.is_valid({"x": value}), (data_type, value)
            read_rows([{"x": value}], [Feature(name="x", data_type=data_type, description="")])
        for value in wrong:
            assert not validator.is_valid({"x": value}), (data_type, value)


# --- Models that are not there


def test_a_generation_without_model_or_features_predicts_nothing_and_is_looked_up(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    publish(tmp_path / "generations", score="older", features=())
    with TestClient(create_app(tmp_path, look_every=0.02)) as client:
        asked = {"rows": [{"customer_id": "1"}]}
        eventually(lambda: client.post("/scores/churn/predict", json=asked).status_code == 409)
        eventually(lambda: client.post("/scores/older/predict", json=asked).status_code == 409)
        assert client.post("/scores/churn/predict", json=asked).json()["detail"] == (
            "Generation g1 of score 'churn' was published without a model; the next one that is published has them."
        )
        assert "a model and features" in client.post("/scores/older/predict", json=asked).json()["detail"]
        assert client.get("/scores/older/contract").status_code == 409
        assert client.get("/health/ready").json()["status"] == "ready"
        assert "/scores/churn/predict" not in client.get("/openapi.json").json()["paths"]


def test_a_store_that_is_away_while_a_model_is_loaded_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.cbm").write_bytes(b"no model")
    publish(tmp_path / "generations", attachments={"model.cbm": tmp_path / "model.cbm"})

    def away(*_: Any) -> bytes:
        raise StoreUnavailable("Redis is away")

    def detail() -> str:
        return str(client.post("/scores/churn/predict", json={"rows": [{"customer_id": "1"}]}).json()["detail"])

    with monkeypatch.context() as for_a_moment:
        for_a_moment.setattr(Store, "attachment", away)
        with TestClient(create_app(tmp_path, look_every=0.02)) as client:
            time.sleep(0.2)
            assert "is being loaded" in detail()
            for_a_moment.undo()
            eventually(lambda: "its model can't be loaded" in detail(), 10)


def test_a_model_that_cannot_be_loaded_stops_no_lookup_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model.cbm"
    model.write_bytes(b"no model")
    generation = publish(tmp_path / "generations", attachments={"model.cbm": model})
    with TestClient(create_app(tmp_path, look_every=0.02)) as client:
        eventually(lambda: client.get("/health/ready").json()["status"] == "degraded", 20)
        answer = client.post("/scores/churn/predict", json={"rows": [{"customer_id": "1"}]})
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith(
            f"Generation {generation.name} of score 'churn' can't predict: its model"
        )
        assert client.get("/scores/churn/customers/1").status_code == 200
        (score,) = client.get("/health/ready").json()["scores"]
        assert "can't predict" in score["fault"]
        assert str(tmp_path) not in answer.text
    assert len([record for record in caplog.records if "its model can't be loaded" in record.message]) == 1


def test_a_new_generation_predicts_from_the_moment_it_is_served(tmp_path: Path) -> None:
    folder = a_shop(tmp_path, a_score())
    first = str(store.current(folder / "generations", "leaving"))
    with TestClient(create_app(folder, look_every=0.02)) as client:
        eventually(lambda: client.post(PREDICT, json={"rows": [{"customer_id": "7"}]}).status_code == 200, 20)
        again = msgspec.structs.replace(store.verify(folder / "generations" / "leaving" / first), generation="again")
        with store.open_store(folder / "generations" / "leaving" / first) as old:
            ids = [key for key, _ in old.sample(10**9)]
            scores = [(key, (old.get(key) or b"").replace(first.encode(), b"again")) for key in ids]
            features = [(key, old.features(key) or b"") for key in ids]
        home = folder / "generations" / "leaving" / first
        attached = {name: home / name for name in ("model.cbm", "card.json")}
        store.write(folder / "generations", again, scores, attached, features)
        store.flip(folder / "generations", "leaving", "again")
        answers = []
        while not answers or answers[-1]["generation"] != "again":
            answers.append(told(client, [{"customer_id": "7"}]))
            assert len(answers) < 10_000
        assert answers[0]["predictions"] == answers[-1]["predictions"]


# --- Percentiles


def test_a_percentile_is_the_percent_of_customers_that_score_no_higher() -> None:
    features = [Feature(name=name, data_type=kind, description="") for name, kind in TYPES.items()]
    rows = read_rows([FEATURES | {"days_away": days} for days in range(60)], features)
    model = a_model("amount", lowest=40.0)
    values = predict(make_scorer(model, features, {}), rows).column("value").to_numpy()
    assert (values == 40).sum() > 5, "customers of equal score are among them"
    quantiles = np.sort(values)[np.maximum(np.ceil(np.arange(101) * 60 / 100).astype(int) - 1, 0)]
    scorer = make_scorer(model, features, {}, {"": quantiles.tolist()})
    found = predict(scorer, rows).column("percentile").to_pylist()
    exact = [(values <= value).mean() * 100 for value in values]
    np.testing.assert_allclose(found, exact, atol=100 / 60)
    few = [
        predict_few(scorer, [row])[0]["percentile"] for row in [FEATURES | {"days_away": days} for days in range(60)]
    ]
    assert few == found
    assert max(found) == 100
    assert predict(make_scorer(model, features, {}), rows).column("percentile").null_count == 60
