"""Batch jobs that users trigger: taken in and told of here, done by a Dagster run."""
