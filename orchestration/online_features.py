"""The features that applications are served: of which rows they are, and the SQL that writes each row as JSON.

What a value is in JSON, `ml.values` says, which also reads it back.
"""

from collections.abc import Collection, Generator, Sequence
from datetime import date, datetime

from ml.declarations import Feature, Score
from orchestration import versions, warehouse
from orchestration.published_rows import columns
from orchestration.scoring import feature_rows, made_from
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection


def online_features(connection: Connection, score: Score, read: Collection[str]) -> tuple[Feature, ...]:
    """The features of a score, and others that its model reads, with the types that they are published with.

    Raises `ScoringError` if one can't be.
    """
    from ml import values

    types = warehouse.columns(connection, score.features_schema, score.features)
    features = []
    for column in score.model_columns:
        if column not in score.columns and column.name not in read:
            continue
        kind = types.get(column.name, "missing")
        data_type = values.read_as(kind)
        try:
            values.arrow_type(data_type)
        except values.UnknownType as fault:
            raise ScoringError(f"score '{score.name}': feature '{column.name}' of {score.features}: {fault}") from None
        features.append(Feature(name=column.name, data_type=data_type, description=column.description))
    return tuple(features)


def scored_features(connection: Connection, score: Score, version: int, newest: date) -> str:
    """A hash of the features of an as-of date, all that its predictions were made from.

    Raises `ScoringError` if they are others now.
    """
    day = newest.date() if isinstance(newest, datetime) else newest
    as_of = warehouse.name(score.as_of)
    found = made_from(connection, score, f"{feature_rows(score)} where {as_of}::date = date '{day}'")
    scored = versions.scored_dates(connection, score, version).get(day)
    if scored is None or [row["made_from"] for row in found] != [scored]:
        raise ScoringError(
            f"score '{score.name}': the rows of {score.features} at {day} are not those that were scored;"
            f" materialize predictions/{score.name} first"
        )
    return scored


def json_features(
    connection: Connection, features: Sequence[Feature], key: str, of_rows: str
) -> Generator[tuple[str, bytes], None, None]:
    """The (id, JSON array of the features' values) of each customer, sorted by id, streamed from the warehouse."""
    # By place, since a feature may be called as the key here is. Sorted before it becomes JSON, which is larger.
    selected = ", ".join(f"{warehouse.name(feature.name)} as _{place}" for place, feature in enumerate(features))
    array = ", ".join(json_value(f"_{place}", feature.data_type) for place, feature in enumerate(features))
    query = f"""
        select customer_key, encode(json_array({array})::varchar)
        from (select {key} as customer_key, {selected} {of_rows} order by 1)
    """
    for ids, contents in columns(connection, query):
        yield from zip(ids, contents, strict=True)


def json_value(column: str, data_type: str) -> str:
    """SQL of an argument of `json_array` that writes a column of this type as `ml.values` says."""
    text = f"{column}::varchar"
    if data_type in ("FLOAT", "DOUBLE"):
        return _finite(column, column, "0")
    if data_type == "DATE":
        return _finite(column, _day(text), "'1970-01-01'")
    if data_type == "TIMESTAMP WITH TIME ZONE":
        in_utc = _day(f"timezone('UTC', {column})::varchar")
        return _finite(column, f"replace({in_utc}, ' ', 'T') || 'Z'", "'1970-01-01'")
    if data_type.startswith("TIMESTAMP"):
        return _finite(column, f"replace({_day(text)}, ' ', 'T')", "'1970-01-01'")
    # Of a decimal the text, as most readers take a number for a double; what models read as text may be JSON itself.
    return text if data_type == "VARCHAR" or data_type.startswith("DECIMAL") else column


def _day(text: str) -> str:
    """SQL of a date without a space in it: the warehouse writes a year before 1 as '0044-03-15 (BC)'."""
    return f"replace({text}, ' (BC)', '(BC)')"


def _finite(column: str, written: str, middle: str) -> str:
    """SQL of a value as JSON where it is finite, else of the text that tells it. NaN is more than anything."""
    more = f"case when {column} = 'nan' then 'NaN' else 'Infinity' end" if middle == "0" else "'Infinity'"
    return (
        f"case when isfinite({column}) then to_json({written})"
        f" when {column} > {middle} then to_json({more}) when {column} < {middle} then to_json('-Infinity') end"
    )
