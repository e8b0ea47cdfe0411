"""A score of kind category, from its declaration to the page: the bank's accounts and the cards that suit them."""

import json
import shutil
from pathlib import Path

from litestar.testing import TestClient

from serving.app import create_app
from tests.conftest import REPOSITORY, Run, copy_of, query, served_rows


def test_a_category_is_trained_scored_served_and_watched_by_class(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    for file in (REPOSITORY / "tests" / "projects" / "card_tier").iterdir():
        shutil.copy(file, run.project / "models" / "risk_labels" / file.name)
    run = run.again()
    assert run.code == 0, run.printed
    assert "balanced_accuracy >= 0.6" in run.printed

    generation, customers = served_rows(run, "card_tier")
    assert {band for _, band, _ in customers} == {"basic", "classic", "gold"}
    assert generation.band_counts.keys() == {"basic", "classic", "gold"}
    wrong = query(
        run,
        """
        select count(*) from predictions.card_tier
        where abs(list_sum(map_values(probabilities)) - 1) > 1e-9 or score <> list_max(map_values(probabilities))
            or probabilities[band] <> score
        """,
    )
    assert wrong == [(0,)]
    with TestClient(create_app(run.data)) as client:
        customer, band, value = customers[0]
        answer = client.get(f"/scores/card_tier/customers/{customer}").json()
        assert (answer["band"], answer["value"], answer["probabilities"][band]) == (band, value, value)
        assert answer["reasons"][0]["text"].endswith((f"speaks for {band}.", f"speaks against {band}."))
        card = client.get("/scores/card_tier/versions/1").json()
        assert card["classes"] == ["basic", "classic", "gold"]
        page = client.get(f"/pages/card_tier?customer_id={customer}").text
        assert f">{band}<" in page or f"{band}</span>" in page
        assert client.get("/models/card_tier/1").status_code == 200
    reports = run.data / "reports" / "card_tier" / "2024-07-01"
    drift = json.loads((reports / "drift.json").read_bytes())["metrics"]
    assert drift["column.the band.verdict"] in ("stable", "drifted")
    assert not (reports / "drift.html").exists(), "its owner wants no page"
