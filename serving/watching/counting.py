"""What the API counts of its answers, in plain dicts: a tenth of what prometheus_client's own counters cost, which live
in files that are mapped into memory where a server has several workers.

The functions that count are to be called on the event loop. Labels are bounded: routes, not paths; known methods;
scores that are served.
"""

from bisect import bisect_left
from http import HTTPMethod

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # s
METHODS = {method.value for method in HTTPMethod}

Key = tuple[str | int, ...]  # values of labels
Counts = dict[str, dict[Key, list[float]]]

counts: Counts = {
    "requests": {},  # route, method, status -> the sum of seconds, then requests by bucket
    "lookups": {},  # score -> hits, misses
    "predictions": {},  # score -> rows
}
_requests, _lookups, _predictions = counts.values()


def answered(route: str | None, method: str, status: int, seconds: float) -> None:
    """Counts a request that was answered; its `route` is the scope's `path_template`, None where there is none."""
    key = (route or "unknown", method, status)
    counted = _requests.get(key)
    if counted is None:
        key = (route or "unknown", method if method in METHODS else "other", status)
        counted = _requests.setdefault(key, [0.0] * (len(BUCKETS) + 2))
    counted[0] += seconds
    counted[bisect_left(BUCKETS, seconds) + 1] += 1


def looked_up(score: str, hits: int, misses: int) -> None:
    """Counts customers that were looked up in the store of a score, those that it has and those that it has not."""
    counted = _lookups.get((score,))
    if counted is None:
        counted = _lookups[(score,)] = [0.0, 0.0]
    counted[0] += hits
    counted[1] += misses


def predicted(score: str, rows: int) -> None:
    """Counts rows that were predicted on demand."""
    counted = _predictions.setdefault((score,), [0.0])
    counted[0] += rows
