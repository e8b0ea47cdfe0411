"""Promised, estimated and realised: one page that draws each metric date by date, and tells slices and gains. No
scripts."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import msgspec
from markupsafe import Markup

from ml.estimation import EstimatedDate, EstimatedMetric
from ml.metrics import METRICS
from ml.realised import Line, Performance, RealisedDate, RealisedMetric
from reports.performance_parts import best_told, gain_rows, gains_picture, slice_rows
from reports.pictures import INK, QUIET, SERIES, as_svg
from reports.templating import template

Draw = Callable[[Any, Performance], None]  # on axes of matplotlib
Lines = dict[str, Callable[[RealisedDate], float | None]]

# Of the page's style: what is promised, what is worse or better, the room that chance leaves, and the naive forecast.
PROMISED, WORSE, BETTER, ROOM, NAIVE = SERIES[:5]
OF_VERDICT = {"worse": WORSE, "better": BETTER}
HEIGHT = 2.6  # inches


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the page, as SVG, with what it shows in words."""

    name: str
    told: str
    svg: Markup


def performance_page(performance: Performance, *, title: str) -> str:
    """The page of what has been estimated and measured: pictures by metric, slices and gains of the newest matured
    date, and a table of all dates, the newest first.

    It has all it needs, adapts to width and to dark screens, and is the same text for the same figures. Raises
    `ValueError` if nothing has been measured or estimated.
    """
    if not (performance.dates or performance.estimates):
        raise ValueError(f"'{title}': nothing has matured yet or is estimated, so there is nothing to draw")
    of_dates = [
        {"date": one, "metrics": {metric.metric: metric for metric in one.metrics}}
        for one in reversed(performance.dates)
    ]
    return template("performance.html", figure=figure, line=_line).render(
        title=title,
        performance=performance,
        pictures=_pictures(performance),
        metrics=METRICS[performance.kind],
        dates=of_dates,
        estimates=[
            {"date": one, "metrics": {metric.metric: metric for metric in one.metrics}}
            for one in reversed(performance.estimates)
        ],
        estimated=[name for name in METRICS[performance.kind] if name != "calibration_error"],
        slices=slice_rows(performance),
        gains=gain_rows(performance),
        gains_picture=Markup(gains_picture(performance)),
        best=best_told(performance),
        rows=sorted(one.rows for one in _all_dates(performance)),
        is_sampled=any(one.sampled < one.rows for one in _all_dates(performance)),
    )


def figure(number: float | None) -> str:
    """A figure of the page: 0.8812, 12.35, 1,234; a dash for none."""
    if number is None:
        return "–"
    return f"{number:.4f}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"


def _line(line: Line) -> str:
    """Where a metric would be worse than promised, in words."""
    told = [("below", line.below), ("above", line.above)]
    return f"{line.metric} {' or '.join(f'{side} {figure(value)}' for side, value in told if value is not None)}"


def _pictures(performance: Performance) -> list[Picture]:
    estimated = {metric.metric for one in performance.estimates for metric in one.metrics}
    found = [
        Picture(name=name, told=told, svg=_drawn(performance, name, _metric(name)))
        for name, told in METRICS[performance.kind].items()
        if performance.dates or name in estimated
    ]
    if not performance.dates:
        return found
    said: Lines = {"mean score": lambda one: one.mean_score}
    came: Lines = {"mean label": lambda one: one.label_rate}
    lines, name = (said, "mean score of the likeliest class") if performance.kind == "category" else (
        came | said, "mean score and label"
    )  # fmt: skip
    told = "What was said and what came true, in the mean of the customers."
    found.append(Picture(name=name, told=told, svg=_drawn(performance, name, _lines(lines))))
    if any(one.drifted is not None for one in performance.dates):
        share = _lines({"share of the importance": lambda one: one.drifted})
        told = "The share of the importance that features have which had drifted from the training set."
        found.append(Picture(name="drift", told=told, svg=_drawn(performance, "drift", share)))
    return found


def _drawn(performance: Performance, name: str, draw: Draw) -> Markup:
    """A picture over the dates, with a mark where another version began to serve."""
    days = _days(performance)

    def draw_all(axes: Any) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        axes.use_sticky_edges = False  # room beyond the bars, so that no dot is cut
        draw(axes, performance)
        axes.tick_params(length=0, labelsize=10)
        axes.xaxis.get_offset_text().set_fontsize(10)
        axes.grid(axis="y", linewidth=0.6)
        step = _step(performance)
        axes.set_xlim(days[0] - step, days[-1] + step)
        locator: Any = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        for day, version in _changes(performance):
            top, coordinates = (day - step / 2, 1), ("data", "axes fraction")
            axes.axvline(top[0], color=QUIET, linewidth=0.7, linestyle=":")
            axes.annotate(f" v{version}", top, xycoords=coordinates, va="top", color=QUIET, fontsize=10)

    return Markup(as_svg(name, HEIGHT, draw_all, f"{name} on each as-of date"))


def _changes(performance: Performance) -> list[tuple[date, int]]:
    """The first date of each version that served."""
    first: dict[int, date] = {}
    for one in _all_dates(performance):
        if one.model_version == one.served_version:
            first.setdefault(one.model_version, one.as_of_date)
    return [(day, version) for version, day in first.items()]


def _metric(name: str) -> Draw:
    def draw(axes: Any, performance: Performance) -> None:
        _draw_naive(axes, performance, name)
        for version in sorted({one.model_version for one in _all_dates(performance)}):
            _draw_estimates(axes, performance, name, version)
            _draw_realised(axes, performance, name, version)

    return draw


def _draw_realised(axes: Any, performance: Performance, name: str, version: int) -> None:
    step = _step(performance)
    found: list[tuple[RealisedDate, RealisedMetric]] = [
        (one, metric)
        for one in performance.dates
        if one.model_version == version
        for metric in one.metrics
        if metric.metric == name and metric.realised is not None
    ]
    if not found:
        return
    days: Any = [one.as_of_date for one, _ in found]
    has_room = [(one, metric) for one, metric in found if metric.low is not None and metric.high is not None]
    if has_room:
        axes.bar(
            [one.as_of_date for one, _ in has_room],
            [(metric.high or 0.0) - (metric.low or 0.0) for _, metric in has_room],
            bottom=[metric.low or 0.0 for _, metric in has_room],
            width=step,
            color=ROOM,
        )
    for one, metric in found:
        if metric.promised is not None:
            _draw_promise(axes, one.as_of_date, metric.promised, step)
        if metric.realised_low is not None and metric.realised_high is not None:
            ends: Any = (one.as_of_date, one.as_of_date)
            axes.plot(ends, (metric.realised_low, metric.realised_high), color=INK, linewidth=0.7, alpha=0.7)
    serves = [one.served_version in (None, version) for one, _ in found]
    axes.plot(days, [metric.realised for _, metric in found], color=INK, linewidth=0.9, alpha=0.6)
    axes.scatter(
        days,
        [metric.realised or 0.0 for _, metric in found],
        s=[22 if is_served else 12 for is_served in serves],
        c=[OF_VERDICT.get(metric.verdict, INK) for _, metric in found],
        zorder=3,
    )


def _draw_promise(axes: Any, day: date, value: float, step: timedelta) -> None:
    ends: Any = (day - step / 2, day + step / 2)
    axes.plot(ends, (value, value), color=PROMISED, linewidth=1.2, solid_capstyle="butt")


def _draw_estimates(axes: Any, performance: Performance, name: str, version: int) -> None:
    """Hollow dots, also of the dates that have matured since; a dashed line joins those that have not."""
    waiting: list[tuple[date, EstimatedMetric, bool]] = [
        (one.as_of_date, metric, one.served_version in (None, version))
        for one in performance.estimates
        if one.model_version == version
        for metric in one.metrics
        if metric.metric == name
    ]
    matured = [
        (one.as_of_date, metric.estimated, one.served_version in (None, version))
        for one in performance.dates
        if one.model_version == version
        for metric in one.metrics
        if metric.metric == name and metric.estimated is not None
    ]
    promised = performance.promised.get(name)
    for day, metric, _ in waiting:
        ends: Any = (day, day)
        axes.plot(ends, (metric.low, metric.high), color=INK, linewidth=0.7, dashes=(2, 2))
        if promised is not None and version == performance.model_version:
            _draw_promise(axes, day, promised, _step(performance))
    dots = [*matured, *((day, metric.estimated, serves) for day, metric, serves in waiting)]
    if not dots:
        return
    days: Any = [day for day, *_ in waiting]
    if waiting:
        axes.plot(
            days, [metric.estimated for _, metric, _ in waiting], color=INK, linewidth=0.9, dashes=(3, 2), alpha=0.6
        )
    axes.scatter(
        [day for day, *_ in dots],
        [value for _, value, _ in dots],
        s=[20 if serves else 10 for *_, serves in dots],
        facecolors="none",
        edgecolors=INK,
        linewidths=0.9,
        zorder=4,
    )


def _draw_naive(axes: Any, performance: Performance, name: str) -> None:
    """The naive forecast on each date of the versions that served, else as it was on the held-out dates."""
    found = [
        (one.as_of_date, metric.baseline_realised)
        for one in _served(performance)
        for metric in one.metrics
        if metric.metric == name and metric.baseline_realised is not None
    ]
    held_out = performance.baseline.get(name)
    if not found and held_out is not None:
        days = _days(performance)
        found = [(days[0] - _step(performance) / 2, held_out), (days[-1] + _step(performance) / 2, held_out)]
    if not found:
        return
    days_of: Any = [day for day, _ in found]
    marker = "_" if len(found) == 1 else None  # a line of one date is none
    axes.plot(days_of, [value for _, value in found], color=NAIVE, linewidth=1.1, dashes=(5, 3), marker=marker,
              markersize=12)  # fmt: skip


def _served(performance: Performance) -> list[RealisedDate]:
    """The matured dates of the versions that served; all, where that can't be told."""
    return [one for one in performance.dates if one.served_version in (None, one.model_version)] or performance.dates


def _all_dates(performance: Performance) -> list[RealisedDate | EstimatedDate]:
    return [*performance.dates, *performance.estimates]


def _days(performance: Performance) -> list[date]:
    return sorted({one.as_of_date for one in _all_dates(performance)})


def _step(performance: Performance) -> timedelta:
    """The usual distance of two dates, or a week."""
    days = _days(performance)
    return min((later - earlier for earlier, later in zip(days, days[1:], strict=False)), default=timedelta(days=7))


def _lines(lines: Lines) -> Draw:
    """A line for each of these figures, of the versions that served."""

    def draw(axes: Any, performance: Performance) -> None:
        served = _served(performance)
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
