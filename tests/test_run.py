"""What `make run` tells of a failure."""

import json
import uuid
from pathlib import Path

from orchestration.project import Paths
from orchestration.run import reasons_of_dbt


def test_what_dbt_said_in_an_earlier_run_does_not_explain_this_one(tmp_path: Path) -> None:
    where = Paths(project=tmp_path / "project", data=tmp_path / "data")
    earlier, this = str(uuid.UUID(int=1 << 120)), str(uuid.UUID(int=2 << 120))
    results = where.dbt_target / f"dbt_build-{earlier[:7]}-1234567" / "run_results.json"
    results.parent.mkdir(parents=True)
    failed = {"status": "fail", "message": "Got 1 result", "unique_id": "test.shop.unique.1"}
    results.write_text(json.dumps({"results": [failed]}))
    assert [thing for thing, _ in reasons_of_dbt(where, earlier)] == ["shop.unique.1"]
    assert reasons_of_dbt(where, this) == []
