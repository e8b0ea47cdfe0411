"""Drift: do the rows scored now still look like those the model learnt from? One page of Evidently, and its figures."""

import html
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.encoding import LARGEST
from ml.explanation import as_text

if TYPE_CHECKING:
    import pandas as pd

NULL, OTHER = "(null)", "(other)"
# A character that no text holds. Categories have it for <, which Evidently does not escape, until the page is written:
# a customer's "</script>" would end the script that holds the figures.
LESS_THAN = "\ufdd0"
CHARTED_CATEGORIES = 50
LARGEST_ALONE = 2.0**48  # of a column with one number, in a chart
SHARE_OF_A_DRIFTED_TABLE = 0.5

Verdict = Literal["drifted", "stable", "not compared"]

HEAD = """<title>{title}</title>
<style>
  .report-head {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; }}
  .report-head {{ margin: 2rem auto 1rem; padding: 0 1.5rem; }}
  .report-head h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
  .report-head dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }}
  .report-head dt {{ color: #52606d; }}
  .report-head dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>"""


class DriftReport(msgspec.Struct):
    """A page that works without a network, and its figures.

    `metrics` is flat: columns, reference, current, reference_rows, current_rows, reference_sample, current_sample,
    seed, compared_columns, drifted_columns, share_of_drifted_columns, and for each column
    column.<name>.score, .method and .verdict ("drifted", "stable" or "not compared"; the score is left out then).
    A score of a method named "... p_value" is low where there is drift, any other is high.
    """

    html: str
    metrics: dict[str, float | str]


class _Drift(msgspec.Struct):
    """The drift of one column."""

    method: str
    verdict: Verdict
    score: float | None = None


def drift_report(
    reference: pa.Table,
    current: pa.Table,
    *,
    title: str,
    columns: Mapping[str, Literal["number", "category"]],
    prediction: str | None = None,
    columns_name: str = "all columns given",
    reference_name: str = "the reference rows",
    current_name: str = "the current rows",
    drawn_from: tuple[int, int] | None = None,
    charted: int | None = None,
    sample: int = 2000,
    seed: int = 0,
) -> DriftReport:
    """Compare `current` with `reference`, column by column, on a seeded sample of at most `sample` rows of each.

    Who draws the samples beforehand says how many rows of reference and current they were `drawn_from`.

    `columns` says how each is compared; booleans go as categories, dates as either. A null category counts as a
    category of its own, a null number is left out, and so is a column without any value on both sides; one with
    values on one side only has drifted. Of many categories the 50 most frequent are told apart. `prediction` names
    the score's column in both tables, which is compared first. The first `charted` columns are on the page with charts
    (all of them if it is None), the others are measured in the same way: charts take most of the time and nearly all
    of the page. `reference_name` and `current_name` say on the page what is compared. Evidently chooses the method by
    type and size (docs.evidentlyai.com/metrics/customize_data_drift). Raises `ValueError` naming what is missing if a
    side has no rows or lacks a column.
    """
    kinds = {**({prediction: "number"} if prediction else {}), **columns}
    for table, name in ((reference, reference_name), (current, current_name)):
        missing = [column for column in kinds if column not in table.column_names]
        if missing or not table.num_rows:
            raise ValueError(
                f"drift report '{title}': {name} lack " + (f"columns {', '.join(missing)}" if missing else "rows")
            )
    before = _frame(_sample(reference, sample, seed), kinds)
    after = _frame(_sample(current, sample, seed + 1), kinds)
    _merge_rare(before, after, kinds)
    found = {name: _measure(before[name], after[name], kind) for name, kind in kinds.items()}
    most = None if charted is None else charted + bool(prediction)
    compared = [name for name in list(kinds)[:most] if found[name].score is not None]
    on_page = [name for name in compared if _has_room(before[name], after[name])]
    page = _charts(before[on_page], after[on_page], kinds) if on_page else "<html><head></head><body></body></html>"
    metrics = _metrics(found)
    facts: dict[str, float | str] = {
        "columns": columns_name,
        "reference": reference_name,
        "current": current_name,
        "reference_rows": drawn_from[0] if drawn_from else reference.num_rows,
        "current_rows": drawn_from[1] if drawn_from else current.num_rows,
        "reference_sample": len(before),
        "current_sample": len(after),
        "seed": seed,
    }
    return DriftReport(_with_header(page, title, facts | metrics, found), facts | metrics)


def _sample(table: pa.Table, most: int, seed: int) -> pa.Table:
    if table.num_rows <= most:
        return table
    chosen = np.random.default_rng(seed).choice(table.num_rows, size=most, replace=False)
    return table.take(pa.array(np.sort(chosen)))


def _frame(table: pa.Table, kinds: Mapping[str, str]) -> "pd.DataFrame":
    """Numbers as models read them, NaN where null or infinite; categories as text, `(null)` where null.

    Models read float32, so that numbers which differ by rounding alone do not differ, and none is too large to square.
    """
    import pandas as pd

    def values(name: str) -> Any:
        column = table.column(name)
        if kinds[name] == "category":
            texts = pc.replace_substring(as_text(column), "<", LESS_THAN)
            return texts.fill_null(NULL).to_numpy(zero_copy_only=False)
        if pa.types.is_date(column.type):
            column = column.cast(pa.date32()).cast(pa.int32())
        elif pa.types.is_timestamp(column.type):
            column = pc.divide(
                column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False), 86_400.0
            )
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        read = np.clip(numbers, -LARGEST, LARGEST).astype(np.float32).astype(np.float64)
        return np.where(np.isfinite(numbers), read, np.nan)

    return pd.DataFrame({name: values(name) for name in kinds})


def _merge_rare(before: "pd.DataFrame", after: "pd.DataFrame", kinds: Mapping[str, str]) -> None:
    """Leave the most frequent categories of both sides, in place."""
    for name in (name for name, kind in kinds.items() if kind == "category"):
        counts = before[name].value_counts().add(after[name].value_counts(), fill_value=0)
        if len(counts) > CHARTED_CATEGORIES:
            kept = sorted(counts.index, key=lambda value: (-counts[value], value))[:CHARTED_CATEGORIES]
            for frame in (before, after):
                frame[name] = frame[name].where(frame[name].isin(kept), OTHER)


def _measure(before: "pd.Series[Any]", after: "pd.Series[Any]", kind: str) -> _Drift:
    """Evidently's choice of a method, what it gives, and the verdict. A category always has values: null is one."""
    from evidently.legacy.calculations.stattests.registry import get_stattest  # what its metrics of today rest on
    from evidently.legacy.core import ColumnType

    before, after = before.dropna(), after.dropna()
    if before.empty and after.empty:
        return _Drift("no values", "not compared")
    if before.empty or after.empty:
        return _Drift(f"values in the {'current' if before.empty else 'reference'} rows only", "drifted")
    of_type = ColumnType.Numerical if kind == "number" else ColumnType.Categorical
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of its statistics on constant columns
        method = get_stattest(before, after, of_type, None)
        result = method(before, after, of_type, None)
    score, threshold, name = float(result.drift_score), float(result.actual_threshold), method.display_name
    if not np.isfinite(score):
        return _Drift(name, "not compared")
    return _Drift(
        name, "drifted" if (score < threshold if "p_value" in name else score >= threshold) else "stable", score
    )


def _has_room(*sides: "pd.Series[Any]") -> bool:
    """Whether Evidently can chart a column: around a single number it needs ten edges within one, so not too large."""
    ends = [(side.min(), side.max()) for side in sides if side.dtype.kind == "f"]
    return all(lowest < highest or abs(lowest) < LARGEST_ALONE for lowest, highest in ends)


def _charts(before: "pd.DataFrame", after: "pd.DataFrame", kinds: Mapping[str, str]) -> str:
    """Evidently's page of these columns."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    class Table(DataDriftPreset):  # type: ignore[misc]  # Evidently has no types
        """Without a metric and its chart per column, which the preset's page does not show and which take half."""

        def generate_metrics(self, context: Any) -> Any:
            return super().generate_metrics(context)[:1]

    definition = DataDefinition(
        numerical_columns=[str(name) for name in before if kinds[str(name)] == "number"],
        categorical_columns=[str(name) for name in before if kinds[str(name)] == "category"],
    )
    datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in (after, before)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        snapshot = Report([Table(drift_share=SHARE_OF_A_DRIFTED_TABLE)]).run(*datasets)
        page: str = snapshot.get_html_str(as_iframe=False)
    return page.replace(json.dumps(LESS_THAN)[1:-1], r"\u003c")


def _metrics(drifts: Mapping[str, _Drift]) -> dict[str, float | str]:
    compared = [drift for drift in drifts.values() if drift.verdict != "not compared"]
    drifted = [drift for drift in compared if drift.verdict == "drifted"]
    metrics: dict[str, float | str] = {
        "compared_columns": len(compared),
        "drifted_columns": len(drifted),
        "share_of_drifted_columns": len(drifted) / len(compared) if compared else 0.0,
    }
    for name, drift in drifts.items():
        if drift.score is not None:
            metrics[f"column.{name}.score"] = drift.score
        metrics[f"column.{name}.method"] = drift.method
        metrics[f"column.{name}.verdict"] = drift.verdict
    return metrics


def _with_header(page: str, title: str, metrics: Mapping[str, float | str], drifts: Mapping[str, _Drift]) -> str:
    """The page with a head that says what it compares, and which columns drifted."""

    def side(name: str) -> str:
        rows, sampled = int(metrics[f"{name}_rows"]), int(metrics[f"{name}_sample"])
        return f"{metrics[name]}: {rows:,} rows" + (
            f", of which a sample of {sampled:,}" if sampled < rows else ", all of them"
        )

    drifted = [name for name, drift in drifts.items() if drift.verdict == "drifted"]
    left_out = [f"{name} ({drift.method})" for name, drift in drifts.items() if drift.score is None]
    lines = {
        "Reference": side("reference"),
        "Current": side("current"),
        "Compared": str(metrics["columns"]),
        "Sample": f"drawn with seed {metrics['seed']}",
        "Drifted": f"{len(drifted)} of {metrics['compared_columns']} columns"
        + (f": {', '.join(drifted)}" if drifted else "")
        + f" (Evidently counts those with charts, and calls all drifted from {SHARE_OF_A_DRIFTED_TABLE:.0%} on)",
        **({"Not in the charts": ", ".join(left_out)} if left_out else {}),
    }
    items = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items())
    header = f'<body><header class="report-head"><h1>{html.escape(title)}</h1><dl>{items}</dl></header>'
    page = page.strip().replace("</head>", HEAD.format(title=html.escape(title)), 1)
    return page.replace("<body>", header, 1)
