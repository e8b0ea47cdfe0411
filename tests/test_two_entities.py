"""A bank scores its loans, keyed by branch and number, and its accounts, keyed by their number, in one project."""

from datetime import date
from urllib.parse import quote

import pytest
from litestar.testing import TestClient

from serving.app import create_app
from serving.generations import store
from tests.conftest import Run, query

# Score -> the columns of its entity, and the feature model that has them.
ENTITIES = {
    "default_risk": (["branch_code", "loan_no"], "loan_features"),
    "expected_card_spend": (["account_no"], "account_features"),
}


@pytest.mark.parametrize("score", ENTITIES)
def test_each_table_of_predictions_has_the_keys_of_its_own_entity(loans_run: Run, score: str) -> None:
    entity, features = ENTITIES[score]
    columns = [name for name, *_ in query(loans_run, f"describe predictions.{score}")]
    assert columns == [*entity, "as_of_date", "score", "band", "reasons", "model_version", "scored_at"]
    keys = ", ".join(entity)
    predicted = query(loans_run, f"select {keys} from predictions.{score} where as_of_date = '2024-07-01' order by all")
    assert predicted == query(
        loans_run, f"select {keys} from risk_features.{features} where scored_on = '2024-07-01' order by all"
    )
    assert len(predicted) == len(set(predicted)) > 700


@pytest.mark.parametrize("score", ENTITIES)
def test_each_id_is_looked_up_percent_encoded_whatever_signs_are_in_it(loans_run: Run, score: str) -> None:
    entity, _ = ENTITIES[score]
    rows = query(
        loans_run,
        f"select ({', '.join(entity)}, score, band) from predictions.{score} where as_of_date = '2024-07-01'",
    )
    unusual = 0
    with TestClient(create_app(loans_run.data)) as client:
        for ((*key, value, band),) in rows:
            customer_id = store.customer_key(key)
            answer = client.get(f"/scores/{score}/customers/{quote(customer_id, safe='')}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert (found["customer_id"], found["value"], found["band"]) == (customer_id, value, band)
            unusual += not customer_id.replace("-", "").replace(",", "", len(key) - 1).isalnum()
    assert unusual >= 3, "the project has no unusual keys, so this would check nothing"


def test_an_account_is_looked_up_by_what_it_is_called_and_a_loan_by_its_parts(loans_run: Run) -> None:
    with TestClient(create_app(loans_run.data)) as client:
        for written, means in (("A73227%2CEUR", "A73227,EUR"), ("A73227,EUR", "A73227,EUR"), ("A73360~2", "A73360~2")):
            answer = client.get(f"/scores/expected_card_spend/customers/{written}").json()
            assert answer["customer_id"] == means
        branch, loan = query(
            loans_run,
            """
            select branch_code, loan_no from predictions.default_risk
            where as_of_date = '2024-07-01' and loan_no like '%, Tranche B' limit 1
            """,
        )[0]
        sent = f"{quote(branch.replace(',', '~1'))},{quote(loan.replace(',', '~1'))}"
        answer = client.get(f"/scores/default_risk/customers/{sent}").json()
        assert answer["customer_id"] == f"{branch.replace(',', '~1')},{loan.replace(',', '~1')}"


def test_an_id_of_the_other_entity_is_unknown_and_what_an_id_is_made_of_is_told(loans_run: Run) -> None:
    with TestClient(create_app(loans_run.data)) as client:
        account = client.get("/scores/default_risk/customers/A73360~2")
        assert account.status_code == 404
        assert account.json()["detail"].endswith("An id is branch_code,loan_no.")
        loan = client.get("/scores/expected_card_spend/customers/BE-01,K23-0001")
        assert loan.json()["detail"].endswith("An id is account_no.")


def test_each_score_is_published_and_listed_with_its_entity(loans_run: Run) -> None:
    with TestClient(create_app(loans_run.data)) as client:
        listed = {score["name"]: score for score in client.get("/scores").json()["scores"]}
        assert {name: score["entity"] for name, score in listed.items()} == {
            name: entity for name, (entity, _) in ENTITIES.items()
        }
        assert {score["as_of_date"] for score in listed.values()} == {str(date(2024, 7, 1))}
        for name, (entity, features) in ENTITIES.items():
            served = store.current(loans_run.data / "generations", name)
            generation = store.verify(loans_run.data / "generations" / name / str(served))
            assert generation.entity == tuple(entity)
            ((rows,),) = query(
                loans_run, f"select count(*) from risk_features.{features} where scored_on = '2024-07-01'"
            )
            assert generation.rows == listed[name]["customers"] == rows


def test_the_pages_ask_for_the_id_of_the_score_they_show(loans_run: Run) -> None:
    with TestClient(create_app(loans_run.data)) as client:
        overview = client.get("/").text
        for name, (entity, _) in ENTITIES.items():
            page = client.get(f"/pages/{name}").text
            assert f'placeholder="{",".join(entity)}"' in overview
            assert f'placeholder="{",".join(entity)}"' in page
        account = client.get("/pages/expected_card_spend", params={"customer_id": "A73227,EUR"})
        assert account.status_code == 200
        assert "Customer A73227,EUR" in account.text
        assert "/scores/expected_card_spend/customers/A73227,EUR</pre>" in account.text
        lost = client.get("/pages/default_risk", params={"customer_id": "A73227,EUR"})
        assert lost.status_code == 404
        assert "An id is branch_code,loan_no." in lost.text
