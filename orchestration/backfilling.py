"""As-of dates that are built again: a range of them, in every incremental model of as-of dates, and what comes of them.

The project's macros do the work: its models build the dates that they lack and those from var `as_of_from` to var
`as_of_to`, and each replaces its rows of these dates in one transaction. So a backfill that is killed has built a
model's dates or not, and the same command again ends with the same rows.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

import msgspec

from orchestration import warehouse
from orchestration.project import ProjectError
from orchestration.warehouse import Connection

FIRST, LAST = "as_of_from", "as_of_to"  # vars of the dbt project


class BackfillError(ProjectError):
    """As-of dates can't be built again: which were asked for, why not, and what to do."""


class Backfill(msgspec.Struct, frozen=True):
    """The as-of dates that are asked for, both ends included."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first} to {self.last}" if self.first < self.last else f"{self.first}"

    @property
    def dbt_variables(self) -> dict[str, str]:
        return {FIRST: str(self.first), LAST: str(self.last)}


def backfill_of(manifest: Mapping[str, Any], first: str | None, last: str | None) -> Backfill | None:
    """The backfill from `first` to `last`, each YYYY-MM-DD; None if neither is given, and one date if only one is.

    Raises `BackfillError` if one is no date, they are in the wrong order, or no macro or model of the project asks for
    the vars, so that nothing would be built again.
    """
    given = [text for text in (first, last) if text]
    if not given:
        return None
    days = []
    for text in given:
        try:
            days.append(date.fromisoformat(text))
        except ValueError:
            raise BackfillError(f"backfill: '{text}' is no date (write YYYY-MM-DD)") from None
    found = Backfill(days[0], days[-1])
    if found.first > found.last:
        raise BackfillError(f"backfill: from {found.first} to {found.last} is the wrong way round")
    own = manifest["metadata"]["project_name"]
    macros = [macro["macro_sql"] for macro in manifest["macros"].values() if macro["package_name"] == own]
    models = [node["raw_code"] for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    if not any(FIRST in text and LAST in text for text in (*macros, *models)):
        raise BackfillError(
            f"backfill: no macro or model of '{own}' reads the vars {FIRST} and {LAST}; its models are built whole in"
            " each run, or with make run FULL_REFRESH=1 (macros/as_of_dates.sql of the sample shows how to read them)"
        )
    return found


def built_again(connection: Connection, node: Mapping[str, Any], backfill: Backfill) -> str | None:
    """What a backfill has built of a model, as people are told it; None if the model has no as-of dates of its own.

    Models of as-of dates are those that name theirs in config.meta, as feature and label models do.
    """
    as_of = node["config"]["meta"].get("as_of")
    if not as_of or node["config"]["materialized"] != "incremental":
        return None
    query = f"""
        select count(distinct {warehouse.name(as_of)}), count(*)
        from {warehouse.name(node["schema"], node["alias"])}
        where {warehouse.name(as_of)}::date between ? and ?
    """
    dates, rows = warehouse.one(connection, query, [backfill.first, backfill.last])
    if not dates:
        return f"no as-of date at {backfill}"
    return f"{dates} as-of date{'s' if dates > 1 else ''} built again, {rows:,} rows"
