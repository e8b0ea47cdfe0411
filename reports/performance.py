"""Promised and realised: one page that draws each metric date by date beside what was promised of it. No scripts."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ml.metrics import METRICS
from ml.realised import Performance, RealisedDate, RealisedMetric
from reports.pictures import INK, QUIET, SERIES, as_svg

Draw = Callable[[Any, Sequence[RealisedDate]], None]  # on axes of matplotlib
Lines = dict[str, Callable[[RealisedDate], float | None]]

# Of the page's style: what is promised, the room that chance leaves, and what is worse or better than either.
PROMISED, WORSE, BETTER, ROOM = SERIES[:4]
OF_VERDICT = {"worse": WORSE, "better": BETTER}
HEIGHT = 2.6  # inches


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the page, as SVG, with what it shows in words."""

    name: str
    told: str
    svg: Markup


def performance_page(performance: Performance, *, title: str) -> str:
    """The page of what has been measured: pictures by metric, and a table of all dates, the newest first.

    It has all it needs, adapts to width and to dark screens, and is the same text for the same figures. Raises
    `ValueError` if nothing has been measured.
    """
    if not performance.dates:
        raise ValueError(f"'{title}': nothing has matured yet, so there is nothing to draw")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    of_dates = [
        {"date": one, "metrics": {metric.metric: metric for metric in one.metrics}}
        for one in reversed(performance.dates)
    ]
    return environment.get_template("performance.html").render(
        title=title,
        performance=performance,
        pictures=_pictures(performance),
        metrics=METRICS[performance.kind],
        dates=of_dates,
        least=min(one.rows for one in performance.dates),
        most=max(one.rows for one in performance.dates),
    )


def figure(number: float | None) -> str:
    """A figure of the page: 0.8812, 12.35, 1,234; a dash for none."""
    if number is None:
        return "–"
    return f"{number:.4f}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"


def _pictures(performance: Performance) -> list[Picture]:
    found = [
        Picture(name=name, told=told, svg=_drawn(performance.dates, name, _metric(name)))
        for name, told in METRICS[performance.kind].items()
    ]
    said: Lines = {"mean score": lambda one: one.mean_score}
    came: Lines = {"mean label": lambda one: one.label_rate}
    lines, name = (said, "mean score of the likeliest class") if performance.kind == "category" else (
        came | said, "mean score and label"
    )  # fmt: skip
    told = "What was said and what came true, in the mean of the customers."
    found.append(Picture(name=name, told=told, svg=_drawn(performance.dates, name, _lines(lines))))
    if any(one.drifted is not None for one in performance.dates):
        share = _lines({"share of the importance": lambda one: one.drifted})
        told = "The share of the importance that features have which had drifted from the training set."
        found.append(Picture(name="drift", told=told, svg=_drawn(performance.dates, "drift", share)))
    return found


def _drawn(dates: Sequence[RealisedDate], name: str, draw: Draw) -> Markup:
    """A picture over the dates, with a mark where another version began to serve."""

    def draw_all(axes: Any) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        axes.use_sticky_edges = False  # room beyond the bars, so that no dot is cut
        draw(axes, dates)
        axes.tick_params(length=0, labelsize=10)
        axes.xaxis.get_offset_text().set_fontsize(10)
        axes.grid(axis="y", linewidth=0.6)
        step = _step(dates)
        axes.set_xlim(dates[0].as_of_date - step, dates[-1].as_of_date + step)
        locator: Any = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        for day, version in _changes(dates):
            top, coordinates = (day - step / 2, 1), ("data", "axes fraction")
            axes.axvline(top[0], color=QUIET, linewidth=0.7, linestyle=":")
            axes.annotate(f" v{version}", top, xycoords=coordinates, va="top", color=QUIET, fontsize=10)

    return Markup(as_svg(name, HEIGHT, draw_all, f"{name} on each as-of date"))


def _changes(dates: Sequence[RealisedDate]) -> list[tuple[date, int]]:
    """The first date of each version that served."""
    first: dict[int, date] = {}
    for one in dates:
        if one.model_version == one.served_version:
            first.setdefault(one.model_version, one.as_of_date)
    return [(day, version) for version, day in first.items()]


def _metric(name: str) -> Draw:
    def draw(axes: Any, dates: Sequence[RealisedDate]) -> None:
        step = _step(dates)
        for version in sorted({one.model_version for one in dates}):
            found: list[tuple[RealisedDate, RealisedMetric]] = [
                (one, metric)
                for one in dates
                if one.model_version == version
                for metric in one.metrics
                if metric.metric == name and metric.realised is not None
            ]
            days: Any = [one.as_of_date for one, _ in found]
            has_room = [(one, metric) for one, metric in found if metric.low is not None and metric.high is not None]
            axes.bar(
                [one.as_of_date for one, _ in has_room],
                [(metric.high or 0.0) - (metric.low or 0.0) for _, metric in has_room],
                bottom=[metric.low or 0.0 for _, metric in has_room],
                width=step,
                color=ROOM,
            )
            promised = [(one.as_of_date, metric.promised) for one, metric in found if metric.promised is not None]
            for day, value in promised:
                ends: Any = (day - step / 2, day + step / 2)
                axes.plot(ends, (value, value), color=PROMISED, linewidth=1.2, solid_capstyle="butt")
            serves = [one.served_version in (None, version) for one, _ in found]
            axes.plot(days, [metric.realised for _, metric in found], color=INK, linewidth=0.9, alpha=0.6)
            axes.scatter(
                days,
                [metric.realised or 0.0 for _, metric in found],
                s=[22 if is_served else 12 for is_served in serves],
                c=[OF_VERDICT.get(metric.verdict, INK) for _, metric in found],
                zorder=3,
            )

    return draw


def _step(dates: Sequence[RealisedDate]) -> timedelta:
    """The usual distance of two dates, or a week."""
    days = sorted({one.as_of_date for one in dates})
    return min((later - earlier for earlier, later in zip(days, days[1:], strict=False)), default=timedelta(days=7))


def _lines(lines: Lines) -> Draw:
    """A line for each of these figures, of the versions that served."""

    def draw(axes: Any, dates: Sequence[RealisedDate]) -> None:
        served = [one for one in dates if one.served_version in (None, one.model_version)] or list(dates)
        for (name, of), colour in zip(lines.items(), (INK, PROMISED), strict=False):
            found = [(one.as_of_date, value) for one in served if (value := of(one)) is not None]
            days: Any = [day for day, _ in found]
            axes.plot(days, [value for _, value in found], color=colour, marker="o", markersize=3, linewidth=1.2,
                      label=name)  # fmt: skip
        if len(lines) > 1:
            axes.legend(loc="best", fontsize=10)
        else:  # a share
            axes.set_ylim(0, 1)

    return draw
