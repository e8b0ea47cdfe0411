"""What `make run` tells of a failure."""

import json
from pathlib import Path

from orchestration.project import Paths
from orchestration.run import reasons_of_dbt


def test_what_dbt_said_in_an_earlier_run_does_not_explain_this_one(tmp_path: Path) -> None:
    where = Paths(project=tmp_path / "project", data=tmp_path / "data")
    results = where.dbt_target / "dbt_build-1" / "run_results.json"
    results.parent.mkdir(parents=True)
    failed = {"status": "fail", "message": "Got 1 result", "unique_id": "test.shop.unique.1"}
    results.write_text(json.dumps({"results": [failed]}))
    written = results.stat().st_mtime
    assert [thing for thing, _ in reasons_of_dbt(where, since=written - 1)] == ["shop.unique.1"]
    assert reasons_of_dbt(where, since=written + 1) == []
