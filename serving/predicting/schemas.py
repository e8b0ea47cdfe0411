"""The feature contract of a score as JSON Schema, and the OpenAPI document with the operations of the scores served."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from ml.declarations import Feature
from serving.generations.generation import Generation
from serving.predicting.answers import MOST_ROWS

Schema = dict[str, Any]

PREDICT = "/scores/{score}/predict"

_NOT_FINITE = {"type": "string", "pattern": "^(NaN|-?Infinity)$"}  # no enum: clients would have one for each feature
_DAY = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"


def features_schema(features: Iterable[Feature]) -> Schema:
    """JSON Schema (2020-12) of a row's features. All are required, each may be null, and there are no others."""
    told = {
        feature.name: {
            "description": feature.description,
            "anyOf": [*value_schemas(feature.data_type), {"type": "null"}],
        }
        for feature in features
    }
    return {"type": "object", "properties": told, "required": list(told), "additionalProperties": False}


def value_schemas(data_type: str) -> list[Schema]:
    """What JSON a feature of this type is, as `ml.values` reads it: one of these. What is rare is not told, such as the
    ends of time and years of five digits, so that clients have a type for a date."""
    import pyarrow as pa

    from ml import values

    kind = values.arrow_type(data_type)
    if pa.types.is_boolean(kind):
        return [{"type": "boolean"}]
    if pa.types.is_floating(kind):
        most = values.LARGEST_FLOAT if data_type == "FLOAT" else values.LARGEST_DOUBLE
        return [{"type": "number", "minimum": -most, "maximum": most}, _NOT_FINITE]
    if data_type == "DATE":
        return [{"type": "string", "format": "date"}]
    if pa.types.is_timestamp(kind):
        if kind.tz is not None:
            return [{"type": "string", "format": "date-time"}]
        places = values.DECIMALS[kind.unit]
        fraction = f"(\\.[0-9]{{1,{places}}})?" if places else ""
        return [{"type": "string", "pattern": f"^{_DAY}T{_TIME}{fraction}$"}]
    if data_type == "VARCHAR":
        return [{"type": "string"}]
    if data_type.startswith("DECIMAL"):
        whole = kind.precision - kind.scale
        fraction = f"(\\.[0-9]{{1,{kind.scale}}})?" if kind.scale else ""
        return [{"type": "string", "pattern": f"^-?{f'[0-9]{{1,{whole}}}' if whole else '0'}{fraction}$"}]
    least, most = values.integer_range(data_type)
    if most < 2**64:
        return [{"type": "integer", "minimum": least, "maximum": most}]
    # Few writers of JSON have integers of 128 bits, but 2^127 is exact as a double too.
    return [{"type": "integer", "minimum": float(least), "exclusiveMaximum": float(2**127)}]


def with_contracts(document: Schema, served: Mapping[str, Generation]) -> Schema:
    """The OpenAPI document with an operation of its own for each score that predicts, under a path that names it.

    So `/scores/churn/predict` has the features of churn, by type, where the general path has any. OpenAPI has paths
    without parameters matched first.
    """
    paths, schemas = dict(document["paths"]), dict(document["components"]["schemas"])
    for score, generation in served.items():
        features, request = f"Features_{score}", f"PredictRequest_{score}"
        schemas[features] = {
            **features_schema(generation.features),
            "title": features,
            "description": f"The features of score '{score}', as model version {generation.model_version} reads them.",
        }
        schemas[request] = request_schema(schemas[features]["properties"], features) | {"title": request}
        operation = deepcopy(document["paths"][PREDICT]["post"])
        operation["operationId"] = f"predict_{score}"
        operation["summary"] = f"Predict: {generation.title}"
        operation["parameters"] = [one for one in operation.get("parameters", ()) if one["in"] != "path"]
        if not operation["parameters"]:
            del operation["parameters"]
        schema = {"$ref": f"#/components/schemas/{request}"}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
        paths[PREDICT.replace("{score}", score)] = {"post": operation}
    return {**document, "paths": paths, "components": {**document["components"], "schemas": schemas}}


def request_schema(properties: Schema | None = None, features: str = "") -> Schema:
    """The body of a prediction: of a score whose features have these schemas, and are a component of this name; else of
    any score."""
    values: Schema = {"$ref": f"#/components/schemas/{features}"}
    overrides: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if properties is None:
        anything = {"anyOf": [{"type": kind} for kind in ("boolean", "number", "string", "null")]}
        values = overrides = {"type": "object", "additionalProperties": anything}
    whole = {
        "type": "object",
        "title": f"FeaturesRow_{features}" if features else "FeaturesRow",
        "description": "Somebody of whom all features are given, as GET /scores/{score}/contract lists them.",
        "properties": {
            "features": values,
            "id": {"type": "string", "description": "Given back with the prediction, else of no matter."},
        },
        "required": ["features"],
        "additionalProperties": False,
    }
    what_if = {
        "type": "object",
        "title": f"WhatIfRow_{features}" if features else "WhatIfRow",
        "description": "A customer of the score: the published features, except for those that are overridden.",
        "properties": {
            "customer_id": {
                "anyOf": [{"type": "string"}, {"type": "integer"}],
                "description": "Parts of a composite key are joined by commas.",
            },
            "overrides": {**overrides, "description": "Feature -> value; none leaves the customer as published."},
        },
        "required": ["customer_id"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "items": {"anyOf": [whole, what_if]}, "minItems": 1, "maxItems": MOST_ROWS},
            "reasons": {
                "type": "boolean",
                "default": False,
                "description": "Whether each prediction comes with its reasons, which take longer.",
            },
        },
        "required": ["rows"],
        "additionalProperties": False,
    }
