"""Derives Dagster definitions from the dbt manifest: loading, transforming, scoring, publishing, drift, performance."""
