"""Whether drift is told when it is there, and only then: false alarms and caught faults, beside Evidently's default.

A made-up company of 2,500 customers has 40 features: amounts, counts, gaps, shares, categories, some of them often
null, some with a season, one that rises with the calendar. A champion has learned from 26 weeks of it. False alarms
are counted in weeks that were drawn anew from those (so nothing has drifted), and in weeks in which the same customers
and the season simply go on; in both every alert is false. Then each of five faults is put into such weeks, into one
feature after the other of those that weigh 4 % or more: other units, a renamed category, a feature stuck at null, a
shift that grows to half a standard deviation over four weeks, a raw table from which nothing comes any more. Caught is
what is alerted within two as-of dates, the gradual one of its whole size, and named right. Beside it Evidently's
default preset on 2,000 rows of the same weeks. `--quick` takes fewer weeks.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import form
from drift_company import FAULTS, GROWS, VISITS, Company, Table, arrow, broken, cases, drawn_again, weights

if TYPE_CHECKING:
    from ml.encoding import Column
    from orchestration.distributions import Counted
    from reports.comparing import Reference
    from reports.incidents import Incident, Lost

TRAINED_WEEKS, WEEKS = 26, 13
FIRST = date(2024, 1, 1)
BROKEN_FROM = 4  # of the weeks
RUNS = {False: 8, True: 80}  # of 13 weeks each
EVIDENTLY_WEEKS = {False: 6, True: 20}
EVIDENTLY_ROWS = 2_000
MOST_FALSE, ALL = 1.0, 1.0  # alerts in 100 score-weeks; the share of the faults that is caught


def counted(connection: Any, weeks: Sequence[Table], bins: Any) -> "list[Counted]":
    from orchestration.distributions import count

    connection.register("weeks", arrow(weeks))
    found = count(connection, "select * from weeks", "week", bins)
    connection.unregister("weeks")
    return found


class Watch:
    """A champion's reference, and what is alerted of weeks that follow."""

    def __init__(self, connection: Any, weeks: Sequence[Table], seed: int) -> None:
        from ml.encoding import learn_encoder
        from orchestration.distributions import learn_bins
        from reports.comparing import reference_of

        self.connection = connection
        table = arrow(weeks)
        names = list(weeks[0])
        self.columns: tuple[Column, ...] = learn_encoder(table, names).columns
        connection.register("learned", table)
        self.bins = learn_bins(connection, "select * from learned", self.columns, "week, spend_0_usd")
        connection.unregister("learned")
        self.importance = weights(names, seed)
        self.made_of = {name: ["raw.visits.visited_at"] if name in VISITS else [f"raw.orders.{name}"] for name in names}
        dates: dict[str, Any] = {}
        for one in counted(connection, weeks, self.bins):
            dates.setdefault(one.column, {})[FIRST + timedelta(weeks=one.key)] = one.distribution
        self.reference: Reference = reference_of(self.bins, dates)

    def alerts(
        self, weeks: Sequence[Table], lost: "dict[int, dict[str, Lost]] | None" = None
    ) -> "list[list[Incident]]":
        """The incidents of each week that are worth an alert."""
        from ml.alerts import Alerts
        from reports.comparing import State, compare_date
        from reports.incidents import Drifted, alerts_of

        states: dict[str, State] = {}
        by_week: dict[int, dict[str, Any]] = {}
        for one in counted(self.connection, weeks, self.bins):
            by_week.setdefault(one.key, {})[one.column] = one.distribution
        found, dates = [], []
        for number in range(len(weeks)):
            day = FIRST + timedelta(weeks=TRAINED_WEEKS + number)
            dates.append(day)
            drifted = [
                Drifted(
                    column=column.name,
                    effect=column.effect,
                    importance=self.importance[column.name],
                    began=column.since,
                    fault=column.fault,
                    roots=tuple(self.made_of[column.name]),
                )
                for column in compare_date(self.reference, states, day, by_week[number], {}, Alerts())
                if column.since is not None and column.fault is not None
            ]
            gone = (lost or {}).get(number, {})
            found.append(alerts_of(drifted, [], dates, self.made_of, gone, self.importance, Alerts()))
        return found


def lost_as_of(connection: Any, broken_from: int) -> "dict[int, dict[str, Lost]]":
    """Of each week which raw tables are lost, by the rows of raw.visits, of which the last came when it broke."""
    from ml.declarations import Project, Source
    from orchestration.tracing import lost_tables

    last = FIRST + timedelta(weeks=TRAINED_WEEKS + broken_from - 1)
    connection.execute("create schema if not exists raw")
    connection.execute(
        "create or replace table raw.visits as select unnest(generate_series("
        f"timestamp '2023-06-01', timestamp '{last}', interval 3 hour)) as visited_at"
    )
    source = Source(
        id="", schema="raw", table="visits", description="", uri="visits.csv", cursor="visited_at", file="sources.yml"
    )
    project = Project(name="", today=None, sources=(source,), scores=())
    learned, days = (
        [FIRST + timedelta(weeks=number) for number in range(*ends)]
        for ends in ((0, TRAINED_WEEKS), (TRAINED_WEEKS, TRAINED_WEEKS + WEEKS))
    )
    found = lost_tables(connection, project, ["raw.visits.visited_at"], learned, days)
    return {number: found[day] for number, day in enumerate(days)}


def is_named(incident: "Incident", fault: str, feature: str) -> bool:
    if fault == "lost source":
        return incident.kind == fault and incident.cause == "raw.visits"
    kind = "shift" if fault == "gradual shift" else fault
    return incident.kind == kind and any(one.column == feature for one in incident.columns)


def rates(full: str) -> dict[str, float]:
    """False alarms and caught faults."""
    import duckdb
    import numpy as np

    runs = RUNS[full == "True"]
    false = {"drawn anew": 0, "going on": 0}
    weeks_seen = 0
    tried, caught, seen = (dict.fromkeys(FAULTS, 0) for _ in range(3))
    delays: dict[str, list[int]] = {fault: [] for fault in FAULTS}
    with duckdb.connect() as connection:
        connection.execute("set threads = 2")
        lost = lost_as_of(connection, BROKEN_FROM)
        for run in range(runs):
            company = Company(run)
            learned = [company.week(number) for number in range(TRAINED_WEEKS)]
            going_on = [company.week(TRAINED_WEEKS + number) for number in range(WEEKS)]
            watch = Watch(connection, learned, run)
            random = np.random.default_rng(1000 + run)
            # A numpy draw for each week; the season of 26 weeks is in what is drawn from.
            anew = [drawn_again(learned, random) for _ in range(WEEKS)]
            for name, weeks in (("drawn anew", anew), ("going on", going_on)):
                false[name] += sum(_is_new(before, now) for before, now in _pairs(watch.alerts(weeks)))
            weeks_seen += WEEKS
            for fault, feature in cases(watch.importance, run):
                tried[fault] += 1
                weeks = [
                    week if number < BROKEN_FROM else broken(week, fault, feature, number - BROKEN_FROM, going_on[0])
                    for number, week in enumerate(going_on)
                ]
                found = watch.alerts(weeks, lost if fault == "lost source" else None)
                due = BROKEN_FROM + (GROWS - 1 if fault == "gradual shift" else 0) + 1
                first = next((n for n in range(BROKEN_FROM, WEEKS) if found[n]), WEEKS)
                named = any(is_named(one, fault, feature) for one in (found[min(due, WEEKS - 1)] or []))
                seen[fault] += first <= due
                caught[fault] += first <= due and named
                if first < WEEKS:
                    delays[fault].append(first - BROKEN_FROM + 1)
    measured: dict[str, float] = {f"false {name}": count for name, count in false.items()}
    measured["weeks"] = weeks_seen
    for fault in FAULTS:
        measured |= {f"tried {fault}": tried[fault], f"caught {fault}": caught[fault], f"seen {fault}": seen[fault]}
        measured[f"dates {fault}"] = float(np.mean(delays[fault] or [0]))
    return measured


def _pairs(alerts: "list[list[Incident]]") -> "Iterator[tuple[list[Incident], list[Incident]]]":
    yield [], alerts[0]
    yield from zip(alerts, alerts[1:], strict=False)


def _is_new(before: "list[Incident]", now: "list[Incident]") -> bool:
    """Whether an incident has begun: one that goes on is told once."""
    known = {one.column for incident in before for one in incident.columns}
    return any(not known & {one.column for one in incident.columns} for incident in now)


def evidently(full: str) -> dict[str, float]:
    """The same weeks by Evidently's default preset: any column, or half of them, on one date."""
    import pandas as pd

    weeks_seen, any_column, half, seconds = EVIDENTLY_WEEKS[full == "True"], 0, 0, 0.0
    company = Company(0)
    learned = arrow([company.week(number) for number in range(TRAINED_WEEKS)]).drop_columns(["week"]).to_pandas()
    going_on = [company.week(TRAINED_WEEKS + number) for number in range(WEEKS)]
    before = learned.sample(EVIDENTLY_ROWS, random_state=0)
    columns = 0
    for number in range(weeks_seen):
        after = learned.sample(EVIDENTLY_ROWS, random_state=number + 1)
        started = time.monotonic()
        drifted = preset(before, after)
        seconds += time.monotonic() - started
        any_column, half, columns = (
            any_column + bool(drifted),
            half + (len(drifted) * 2 >= learned.shape[1]),
            columns + len(drifted),
        )
    gone_on = 0
    for week in going_on[:weeks_seen]:
        gone_on += bool(preset(before, pd.DataFrame(week).sample(EVIDENTLY_ROWS, random_state=0)))
    seen = {}
    for fault, feature in cases(weights(list(going_on[0]), 0), 0):
        age = GROWS - 1 if fault == "gradual shift" else 1
        week = broken(going_on[BROKEN_FROM + age], fault, feature, age, going_on[0])
        sample = pd.DataFrame(week).sample(EVIDENTLY_ROWS, random_state=0)
        # It raises an error of a column without any value, so such a column is taken out for it.
        empty = [name for name in sample if sample[name].isna().all()]
        drifted = preset(before.drop(columns=empty), sample.drop(columns=empty))
        seen[f"seen {fault}"] = float(len(drifted) * 2 >= learned.shape[1])
        seen[f"columns {fault}"] = float(len(drifted))
        seen[f"refused {fault}"] = float(len(empty))
    return {
        "weeks": weeks_seen,
        "any": any_column,
        "half": half,
        "columns": columns / weeks_seen,
        "gone on": gone_on,
        "gone on weeks": len(going_on[:weeks_seen]),
        "seconds": seconds / weeks_seen,
        **seen,
    }


def preset(before: Any, after: Any) -> list[str]:
    """The columns that Evidently's default preset calls drifted."""
    import warnings

    import numpy as np
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    texts = [name for name in before if before[name].dtype.kind in "OUb"]
    numbers = [name for name in before if name not in texts]
    before, after = (
        side.assign(
            **{name: side[name].astype(float) for name in numbers}, **{name: side[name].astype(str) for name in texts}
        )
        for side in (before, after)
    )
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sides = [Dataset.from_pandas(side, data_definition=definition) for side in (after, before)]
        found = Report([DataDriftPreset()]).run(*sides).dict()["metrics"]
    drifted = []
    for metric in found:
        config = metric["config"]
        if "column" in config and "threshold" in config:
            is_p = "p_value" in config["method"]
            if metric["value"] < config["threshold"] if is_p else metric["value"] >= config["threshold"]:
                drifted.append(config["column"])
    return drifted


def main() -> None:
    full = form.is_full(__doc__ or "")
    ours = form.alone(__file__, "rates", full)
    theirs = form.alone(__file__, "evidently", full)
    rows, notes = [], {}
    hundreds = ours["weeks"] / 100
    for name in ("drawn anew", "going on"):
        told = f"false alarms in 100 score-weeks, {name}; at most one"
        rows.append(form.figure(told, ours[f"false {name}"] / hundreds, MOST_FALSE, 1.0, unit="alerts"))
    for fault in FAULTS:
        share = ours[f"caught {fault}"] / max(ours[f"tried {fault}"], 1)
        told = f"{fault}: caught within two as-of dates, and named"
        rows.append(form.figure(told, share, ALL, 1.0, unit="share", more_is_better=True))
        notes[f"{fault}: cases"] = ours[f"tried {fault}"]
        notes[f"{fault}: as-of dates until the alert, the mean"] = ours[f"dates {fault}"]
        notes[f"{fault}: Evidently says that the table has drifted"] = theirs.get(f"seen {fault}", 0)
        notes[f"{fault}: columns that Evidently calls drifted, of 40"] = theirs.get(f"columns {fault}", 0)
        if theirs.get(f"refused {fault}"):
            notes[f"{fault}: columns that Evidently ends with an error of"] = theirs[f"refused {fault}"]
    notes |= {
        "score-weeks of either kind": ours["weeks"],
        "Evidently: weeks drawn anew": theirs["weeks"],
        "Evidently: of these with a drifted column, in 100": 100 * theirs["any"] / theirs["weeks"],
        "Evidently: of these called a drifted table, in 100": 100 * theirs["half"] / theirs["weeks"],
        "Evidently: weeks going on, with a drifted column, in 100": 100 * theirs["gone on"] / theirs["gone on weeks"],
        "Evidently: seconds for a week": theirs["seconds"],
    }
    form.report("drift", rows, notes)


if __name__ == "__main__":
    works: dict[str, Callable[..., dict[str, float]]] = {"rates": rates, "evidently": evidently}
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(works[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
