"""The registry's tables in the warehouse: training sets, versions, gate results, promotions, what has been scored.

`ml.model_versions`, `ml.gate_results` and `ml.promotions` are for people too: join them with `predictions.*` in SQL.
The models themselves are files, see `ml.registry`.
"""

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

from ml.declarations import Score
from ml.gate import GateResult
from ml.registry import Card
from orchestration import warehouse
from orchestration.warehouse import Connection

TABLES = """
    create schema if not exists ml;
    create table if not exists ml.training_sets (
        score varchar, training_set varchar, rows bigint, first_as_of date, last_as_of date, known_until date,
        query varchar, frozen_at timestamptz, file_sha256 varchar
    );
    alter table ml.training_sets add column if not exists file_sha256 varchar;
    create table if not exists ml.model_versions (
        score varchar, version integer, kind varchar, training_set varchar, engine varchar,
        train_from date, train_to date, holdout_from date, holdout_to date, train_rows bigint, holdout_rows bigint,
        metrics json, baseline_metrics json, baseline varchar, champion_metrics json, champion_version integer,
        trees integer, booster_sha256 varchar, trained_at timestamptz, promoted_at timestamptz,
        contract varchar, trigger varchar, trained_on date
    );
    alter table ml.model_versions add column if not exists contract varchar;
    alter table ml.model_versions add column if not exists trigger varchar;
    alter table ml.model_versions add column if not exists trained_on date;
    -- Of a version that is older than this column, the day until which its labels were known.
    update ml.model_versions as versions set trained_on = coalesce(
        (
            select min(known_until) from ml.training_sets as sets
            where sets.score = versions.score and sets.training_set = versions.training_set
        ),
        holdout_to
    ) where trained_on is null;
    create table if not exists ml.gate_results (
        score varchar, version integer, condition varchar, figures json, passed boolean, note varchar,
        evaluated_at timestamptz
    );
    create table if not exists ml.scored_dates (
        score varchar, model_version integer, as_of_date date, rows bigint, made_from varchar, scored_at timestamptz
    );
    create table if not exists ml.promotions (
        score varchar, version integer, how varchar, reason varchar, promoted_by varchar, replaced_version integer,
        promoted_at timestamptz
    );
    -- Of a score that was promoted before promotions were logged, the last one of each version is known.
    insert into ml.promotions
    select
        score, version, 'gate', 'told before reasons were kept', null,
        lag(version) over (partition by score, kind order by promoted_at), promoted_at
    from ml.model_versions
    where promoted_at is not null and score not in (select score from ml.promotions)
    order by promoted_at;
"""

How = Literal["gate", "force", "rollback"]


def create_tables(connection: Connection) -> None:
    connection.execute(TABLES)


def _latest(connection: Connection, query: str, values: Sequence[Any]) -> dict[str, Any] | None:
    found = warehouse.rows(connection, query, values)
    return found[0] if found else None


def current_training_set(connection: Connection, score: Score) -> dict[str, Any] | None:
    return _latest(
        connection, "select * from ml.training_sets where score = ? order by frozen_at desc limit 1", [score.name]
    )


def training_set(connection: Connection, score: Score, checksum: str) -> dict[str, Any] | None:
    """What is known of a training set, by its checksum."""
    query = "select * from ml.training_sets where score = ? and training_set = ? order by frozen_at desc limit 1"
    return _latest(connection, query, [score.name, checksum])


def record_file_of_training_set(connection: Connection, score: Score, checksum: str, file_sha256: str | None) -> None:
    """That the file of a training set was written anew."""
    connection.execute(
        "update ml.training_sets set file_sha256 = ? where score = ? and training_set = ?",
        [file_sha256, score.name, checksum],
    )


def training_sets_in_use(connection: Connection, score: Score, newest: int) -> set[str]:
    """Checksums of the training sets of the `newest` versions, of the champion, and of the next candidate."""
    found = [version["training_set"] for version in all_versions(connection, score)[:newest]]
    others = [champion(connection, score), current_training_set(connection, score)]
    return {*found, *(row["training_set"] for row in others if row is not None)}


def all_versions(connection: Connection, score: Score) -> list[dict[str, Any]]:
    """Every version of a score, the newest first."""
    return warehouse.rows(
        connection, "select * from ml.model_versions where score = ? order by version desc", [score.name]
    )


def record_training_set(connection: Connection, score: Score, row: Mapping[str, Any]) -> None:
    connection.execute(
        "insert into ml.training_sets by name select unnest(?)",
        [{"score": score.name, "frozen_at": datetime.now(UTC), **row}],
    )


def champion(connection: Connection, score: Score) -> dict[str, Any] | None:
    """The version that scores customers: the one promoted last; None before any was promoted.

    A version of another kind is no champion: where the score was a probability and is an amount now, it starts anew.
    """
    query = """
        select versions.* from ml.promotions as promotions
        inner join ml.model_versions as versions using (score, version)
        where score = ? and versions.kind = ? order by promotions.promoted_at desc limit 1
    """
    return _latest(connection, query, [score.name, score.kind])


def challenger(connection: Connection, score: Score, champion: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest version that could score in the champion's place; None if there is no other of its kind."""
    query = """
        select * from ml.model_versions where score = ? and kind = ? and version <> ? order by version desc limit 1
    """
    return _latest(connection, query, [score.name, score.kind, champion["version"]])


def promotions(connection: Connection, score: Score) -> list[dict[str, Any]]:
    """Every promotion of a score, the first one first."""
    return warehouse.rows(connection, "select * from ml.promotions where score = ? order by promoted_at", [score.name])


def taken_back(connection: Connection, score: Score, version: int) -> dict[str, Any] | None:
    """The promotion by which a person put another version in the place of this one; None if that was not its end.

    No gate promotes such a version again: a condition that has changed is no reason to undo what a person decided.
    """
    of_version = [row for row in promotions(connection, score) if version in (row["version"], row["replaced_version"])]
    last = of_version[-1] if of_version else None
    return last if last and last["version"] != version and last["how"] != "gate" else None


def champions_before(connection: Connection, score: Score) -> list[int]:
    """The versions that a rollback leads to, the latest champion first; what was rolled back from is none of them."""
    reigned: list[int] = []
    for row in promotions(connection, score):
        if row["how"] == "rollback" and row["version"] in reigned:
            while reigned[-1] != row["version"]:
                reigned.pop()
        else:
            reigned.append(row["version"])
    known = {version["version"] for version in all_versions(connection, score) if version["kind"] == score.kind}
    present = champion(connection, score)
    others = known - {present["version"]} if present else known
    return list(dict.fromkeys(version for version in reversed(reigned) if version in others))


def promote(connection: Connection, score: Score, version: int, how: How, reason: str) -> dict[str, Any]:
    """Makes a version the champion, within a transaction of the caller's; gives the row of `ml.promotions`."""
    before = champion(connection, score)
    told = [score.name, version, how, reason, user(), before["version"] if before else None]
    # Never before the last one, also where the clock was set back: the newest is the champion.
    ((at,),) = connection.execute(
        """
        select greatest(?::timestamptz, max(promoted_at) + interval 1 microsecond) from ml.promotions where score = ?
        """,
        [datetime.now(UTC), score.name],
    ).fetchall()
    connection.execute("insert into ml.promotions values (?, ?, ?, ?, ?, ?, ?)", [*told, at])
    connection.execute(
        "update ml.model_versions set promoted_at = ? where score = ? and version = ?", [at, score.name, version]
    )
    return promotions(connection, score)[-1]


def user() -> str:
    """Who this process works for, as the system calls them; of a user without a name the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may be in no list
        return str(os.getuid())


def newest_version(connection: Connection, score: Score) -> dict[str, Any] | None:
    """The version trained last, whatever its gate said."""
    return _latest(
        connection, "select * from ml.model_versions where score = ? order by version desc limit 1", [score.name]
    )


def trained_since(connection: Connection, score: Score, day: date) -> int:
    """How many versions were trained after a day of the project's clock."""
    query = "select count(*) from ml.model_versions where score = ? and trained_on > ?"
    return int(warehouse.one(connection, query, [score.name, day])[0])


def record_version(connection: Connection, card: Card, engine: str) -> None:
    """Adds a version that nobody has judged or promoted yet; `engine` is what trained it, besides its rows."""
    connection.execute(
        "insert into ml.model_versions by name select unnest(?)",
        [
            {
                "score": card.score,
                "version": card.version,
                "kind": card.kind,
                "training_set": card.training_set,
                "contract": card.contract,
                "trigger": card.trigger,
                "trained_on": card.trained_on,
                "engine": engine,
                **card.dates,
                "train_rows": card.rows["train"],
                "holdout_rows": card.rows["holdout"],
                "metrics": json.dumps(card.metrics),
                "baseline_metrics": json.dumps(card.baseline),
                "baseline": card.baseline_name,
                "champion_metrics": json.dumps(card.champion) if card.champion_version is not None else None,
                "champion_version": card.champion_version,
                "trees": card.trees,
                "booster_sha256": card.booster_sha256,
                "trained_at": card.trained_at,
                "promoted_at": None,
            }
        ],
    )


def gate_of(connection: Connection, score: Score, version: int) -> list[GateResult]:
    """The version's last verdict, a result per condition, in the order of the declaration; empty if it has none."""
    found = warehouse.rows(
        connection,
        """
        select condition, figures, passed, note from ml.gate_results where score = ? and version = ?
        and evaluated_at = (select max(evaluated_at) from ml.gate_results where score = ? and version = ?)
        order by rowid
        """,
        [score.name, version, score.name, version],
    )
    return [
        GateResult(
            condition=row["condition"], values=json.loads(row["figures"]), passed=row["passed"], note=row["note"]
        )
        for row in found
    ]


def record_gate(connection: Connection, score: Score, version: int, results: Sequence[GateResult]) -> None:
    """Writes the verdict on a version, and promotes it if every condition holds: both or neither.

    The champion stays what it is, and a version that a person took back is not promoted again.
    """
    now = datetime.now(UTC)
    reigning = champion(connection, score)
    is_champion = reigning is not None and reigning["version"] == version
    with warehouse.transaction(connection):
        for result in results:
            connection.execute(
                "insert into ml.gate_results values (?, ?, ?, ?, ?, ?, ?)",
                [score.name, version, result.condition, json.dumps(result.values), result.passed, result.note, now],
            )
        passed = all(result.passed for result in results)
        if passed and not is_champion and not taken_back(connection, score, version):
            promote(connection, score, version, "gate", "every condition holds")


def scored_dates(connection: Connection, score: Score, version: int) -> dict[date, str]:
    """As-of date -> hash of what a version's predictions of that date were made from."""
    query = "select as_of_date, made_from from ml.scored_dates where score = ? and model_version = ?"
    return dict(connection.execute(query, [score.name, version]).fetchall())


def forget_scored_dates(connection: Connection, score: Score, version: int, dates: Sequence[date]) -> None:
    for day in dates:
        connection.execute(
            "delete from ml.scored_dates where score = ? and model_version = ? and as_of_date = ?",
            [score.name, version, day],
        )


def mark_unscored(connection: Connection, score: Score, version: int) -> int:
    """Has the next scoring make all predictions of a version anew; gives the number of its dates.

    The dates stay: those that the features no longer have are to be withdrawn.
    """
    of_version = [score.name, version]
    connection.execute(
        "update ml.scored_dates set made_from = 'to be made anew' where score = ? and model_version = ?", of_version
    )
    return len(scored_dates(connection, score, version))


def record_scored_dates(
    connection: Connection, score: Score, version: int, dates: Sequence[Mapping[str, Any]], scored_at: datetime
) -> None:
    """Records dates, each with as_of_date, rows, made_from, in the place of what was recorded of them.

    `scored_at` stays that of the first time: it tells who was champion when the date was scored first. Each row of the
    predictions has the time of the last.
    """
    for row in dates:
        of_date = [score.name, version, row["as_of_date"]]
        (first,) = warehouse.one(
            connection,
            "select min(scored_at) from ml.scored_dates where score = ? and model_version = ? and as_of_date = ?",
            of_date,
        )
        forget_scored_dates(connection, score, version, [row["as_of_date"]])
        connection.execute(
            "insert into ml.scored_dates values (?, ?, ?, ?, ?, ?)",
            [*of_date, row["rows"], row["made_from"], first or scored_at],
        )
