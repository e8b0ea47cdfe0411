"""A company that lives day by day ends where one ends that is built at once from the clean facts."""

from datetime import date
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from orchestration.definitions import define
from orchestration.project import Paths
from tests.daily_life import begin, differences, live

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.nats]


def test_days_that_arrive_late_doubled_and_broken_end_as_a_warehouse_built_at_once(tmp_path: Path) -> None:
    life = begin(tmp_path, days=2, households=60, first=date(2017, 12, 17))  # the last is a Monday
    told: list[str] = []
    live(life, told.append)
    assert len([line for line in told if "scores after" in line]) == 3
    found = differences(life, is_small=True)
    assert found == dict.fromkeys(found, 0)
    assert len(found) == 17

    # Its streams start runs by themselves.
    where = Paths(project=life.project, data=life.data)
    definitions = define(where)
    dg.Definitions.validate_loadable(definitions)
    sensors = {sensor.name for sensor in definitions.sensors or ()}
    assert sensors == {"jobs_waiting", "lapse_risk_retraining", "raw_campaigns_stream", "raw_coupon_redemptions_stream"}

    # What was broken on the way is set aside with the reason, and what came twice was counted.
    with duckdb.connect(str(life.data / "warehouse.duckdb"), read_only=True) as connection:
        rules = "select rule, count(*) from {} group by 1 order by 1"
        assert connection.execute(rules.format("quarantine.transactions")).fetchall() == [
            ("quantity fails quantity >= 0", 6)
        ]
        assert connection.execute(rules.format("quarantine.coupon_redemptions")).fetchall() == [
            ("is neither a JSON object nor an array of them", 1)  # twice the same
        ]
        repeated = "select table_name from quality.source_metrics group by 1 having sum(repeated) > 0 order by 1"
        assert connection.execute(repeated).fetchall() == [("campaigns",), ("coupon_redemptions",), ("transactions",)]
