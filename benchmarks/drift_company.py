"""The made-up company of `drift.py`, its weeks, and the faults that are put into them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CUSTOMERS = 2_500
GROWS = 4  # weeks in which a gradual shift comes to its size
SIGMAS = 0.5
LEAST_IMPORTANCE = 0.04
FAULTS = ("unit change", "renamed", "stuck at null", "gradual shift", "lost source")
VISITS = ("visits_7d_count", "visits_28d_count", "days_since_last_visit")

Table = dict[str, Any]  # column -> values of all customers


class Company:
    """The made-up company: each customer has a level of everything, around which the weeks move."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self.random = np.random.default_rng(seed)
        self.levels = {place: self.random.normal(size=CUSTOMERS) for place in range(40)}
        self.texts = {place: self.random.integers(0, 100, CUSTOMERS) for place in range(6)}

    def week(self, number: int) -> Table:
        import numpy as np

        season = np.sin(2 * np.pi * number / 26)
        week: Table = {}
        for place in range(12):
            wave = 0.15 * season if place % 3 == 0 else 0.0
            week[f"spend_{place}_usd"] = np.exp(3 + wave + 0.8 * self._moved(place))
        for place in range(10):
            rate = np.exp(0.2 * place + 0.5 * self._moved(12 + place))
            week[f"baskets_{place}_count"] = self.random.poisson(rate) * (self.random.random(CUSTOMERS) < 0.8)
        for place in range(5):
            week[f"gap_{place}_days"] = np.ceil(7 * np.exp(0.7 * self._moved(22 + place)))
        for place in range(3):
            week[f"mix_{place}_share"] = 1 / (1 + np.exp(-self._moved(27 + place)))
        week["visits_7d_count"] = self.random.poisson(np.exp(0.6 * self._moved(30)))
        week["visits_28d_count"] = self.random.poisson(4 * np.exp(0.6 * self._moved(30)))
        week["days_since_last_visit"] = np.ceil(self.random.exponential(5 * np.exp(-0.5 * self._moved(30))))
        week["tenure_days"] = 7.0 * number + np.round(30 * (3 + self.levels[31]))
        for place, values in enumerate((3, 5, 8, 12)):
            names = np.array([f"kind {value}" for value in range(values)])
            week[f"text_{place}"] = names[np.minimum(self.texts[place] * values // 100, values - 1)]
        for place in range(2):
            week[f"is_{place}"] = self.levels[32 + place] > 0.5
        for name in ("spend_11_usd", "gap_4_days"):
            week[name] = np.where(self.random.random(CUSTOMERS) < 0.2, np.nan, week[name])
        return week

    def _moved(self, place: int) -> "NDArray[np.float64]":
        return self.levels[place] * 0.9 + 0.44 * self.random.normal(size=CUSTOMERS)


def weights(names: Sequence[str], seed: int) -> dict[str, float]:
    """The share of the importance of each feature: a few have most of it, as in a real model."""
    import numpy as np

    ranks = np.random.default_rng(seed).permutation(len(names))
    total = sum(0.93**rank for rank in range(len(names)))
    return {name: float(0.93**rank / total) for name, rank in zip(names, ranks, strict=True)}


def drawn_again(weeks: Sequence[Table], random: "np.random.Generator") -> Table:
    """A week of customers drawn from the given ones, each row whole."""
    which, who = random.integers(0, len(weeks), CUSTOMERS), random.integers(0, CUSTOMERS, CUSTOMERS)
    import numpy as np

    return {name: np.stack([week[name] for week in weeks])[which, who] for name in weeks[0]}


def broken(week: Table, fault: str, feature: str, age: int, usual: Table) -> Table:
    """A week with a fault that is so many weeks old; `usual` is a week before it."""
    import numpy as np

    changed = dict(week)
    values = week.get(feature)
    if fault == "unit change":
        changed[feature] = values * 100
    elif fault == "renamed":
        names, counts = np.unique(week[feature], return_counts=True)
        changed[feature] = np.where(values == names[counts.argmax()], "KIND", values)
    elif fault == "stuck at null":
        changed[feature] = np.full(CUSTOMERS, np.nan)
    elif fault == "gradual shift":
        changed[feature] = values + SIGMAS * min(1.0, (age + 1) / GROWS) * np.nanstd(usual[feature])
    else:
        changed["visits_7d_count"] = np.zeros(CUSTOMERS, dtype=np.int64)
        changed["visits_28d_count"] = np.random.default_rng(age).binomial(
            week["visits_28d_count"], max(0.0, 1 - (age + 1) / 4)
        )
        changed["days_since_last_visit"] = week["days_since_last_visit"] + 7 * (age + 1)
    return changed


def arrow(weeks: Sequence[Table]) -> Any:
    import numpy as np
    import pyarrow as pa

    columns = {name: np.concatenate([week[name] for week in weeks]) for name in weeks[0]}
    return pa.table({"week": np.repeat(np.arange(len(weeks)), CUSTOMERS), **columns})


def cases(importance: dict[str, float], run: int) -> Iterator[tuple[str, str]]:
    """For each fault a feature that weighs enough, another in each run; none where no such feature can have it."""
    weighty = [name for name, share in importance.items() if share >= LEAST_IMPORTANCE]
    numbers = [name for name in weighty if not name.startswith(("text_", "is_", "tenure")) and name not in VISITS]
    of = {
        "unit change": [name for name in numbers if not name.endswith("_share")],
        "renamed": [name for name in weighty if name.startswith("text_")],
        "stuck at null": numbers,
        "gradual shift": numbers,
        "lost source": [name for name in weighty if name in VISITS],
    }
    for fault in FAULTS:
        if of[fault]:
            yield fault, of[fault][run % len(of[fault])]
