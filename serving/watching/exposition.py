"""The metrics in the form that Prometheus reads: what the workers counted, and the state of the scores."""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from serving.catalogue import Catalogue
from serving.watching.counting import BUCKETS, Counts

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class ScoreState(msgspec.Struct, frozen=True, kw_only=True):
    """How a score is at this moment. All but the name and `refused` are None of one that is not served."""

    score: str
    refused: bool
    generation: str | None = None
    model_version: int | None = None
    age_seconds: float | None = None
    as_of_age_days: float | None = None
    stale: bool | None = None
    customers: int | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is at this moment."""

    ready: bool
    scores: list[ScoreState]


def state_of(catalogue: Catalogue) -> State:
    """The state of a catalogue; to be asked for on the event loop."""
    scores = []
    for score in sorted({*catalogue.scores, *catalogue.faults}):
        refused, served = score in catalogue.faults, catalogue.scores.get(score)
        if served is None:
            scores.append(ScoreState(score=score, refused=refused))
            continue
        summary = served.summary()
        age_seconds, as_of_age_days = served.ages()
        scores.append(
            ScoreState(
                score=score,
                refused=refused,
                generation=summary.generation,
                model_version=summary.model_version,
                age_seconds=age_seconds,
                as_of_age_days=as_of_age_days,
                stale=summary.freshness == "stale",
                customers=summary.customers,
            )
        )
    return State(ready=catalogue.readiness().status != "unavailable", scores=scores)


def exposition(counts: Counts, state: State) -> bytes:
    """The text that Prometheus reads."""
    from prometheus_client import generate_latest  # here, as its import would delay the start
    from prometheus_client.registry import Collector

    class Told(Collector):
        def collect(self) -> "Iterator[Metric]":
            yield from _counted(counts, [one.score for one in state.scores])
            yield from _as_they_are(state)

    return generate_latest(Told())


def _counted(counts: Counts, scores: list[str]) -> "Iterator[Metric]":
    """Of each of the `scores` there is a value from the start: from none to one Prometheus sees no increase."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    requests = CounterMetricFamily("scorehouse_requests", "Requests answered.", labels=["route", "method", "status"])
    seconds: dict[str, list[float]] = {}
    for (route, *others), counted in sorted(counts.get("requests", {}).items(), key=str):
        requests.add_metric([str(route), *map(str, others)], sum(counted[1:]))
        before = seconds.get(str(route), [0.0] * len(counted))
        seconds[str(route)] = [a + b for a, b in zip(before, counted, strict=True)]
    yield requests
    duration = HistogramMetricFamily(
        "scorehouse_request_duration_seconds", "Seconds from a request to the end of its answer.", labels=["route"]
    )
    limits = [*map(str, BUCKETS), "+Inf"]
    for route, (total, *buckets) in seconds.items():
        duration.add_metric([route], list(zip(limits, accumulate(buckets), strict=True)), total)
    yield duration
    lookups = CounterMetricFamily(
        "scorehouse_store_lookups", "Customers looked up in a score's store.", labels=["score", "result"]
    )
    none: Counts = {name: {(score,): [0] for score in scores} for name in ("predictions", "refusals")}
    none["lookups"] = {(score,): [0, 0] for score in scores}
    for (score,), (hits, misses) in {**none["lookups"], **counts.get("lookups", {})}.items():
        lookups.add_metric([str(score), "hit"], hits)
        lookups.add_metric([str(score), "miss"], misses)
    yield lookups
    for name, family, text in (
        ("predictions", "scorehouse_predictions", "Rows predicted on demand."),
        ("refusals", "scorehouse_generation_refusals", "Generations that were refused, once by each worker."),
    ):
        counter = CounterMetricFamily(family, text, labels=["score"])
        for (score,), (count,) in {**none[name], **counts.get(name, {})}.items():
            counter.add_metric([str(score)], count)
        yield counter


def _as_they_are(state: State) -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily

    info = GaugeMetricFamily(
        "scorehouse_generation_info",
        "The generation that is served, and the version of its model.",
        labels=["score", "generation", "model_version"],
    )
    for one in state.scores:
        if one.generation is not None:
            info.add_metric([one.score, one.generation, str(one.model_version)], 1)
    yield info
    for field, name, text in (
        ("age_seconds", "scorehouse_generation_age_seconds", "Seconds since the served generation was made."),
        ("as_of_age_days", "scorehouse_as_of_age_days", "Days since the as-of date that is served."),
        ("stale", "scorehouse_stale", "1 if a score is older than its owner allows."),
        ("customers", "scorehouse_customers", "Customers that the served generation has."),
        ("refused", "scorehouse_generation_refused", "1 while the newest generation of a score is refused."),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["score"])
        for one in state.scores:
            value: Any = getattr(one, field)
            if value is not None:
                gauge.add_metric([one.score], float(value))
        yield gauge
    yield GaugeMetricFamily("scorehouse_ready", "1 if /health/ready answers 200.", value=float(state.ready))
    build = GaugeMetricFamily("scorehouse_build_info", "The version of Scorehouse.", labels=["version"])
    build.add_metric([version("scorehouse")], 1)
    yield build
