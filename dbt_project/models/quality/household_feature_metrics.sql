-- Whether each feature of households is sound on each as-of date. The dates that are built stay as they are.
{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='fail') }}

with new_features as (
    select * from {{ ref('household_features') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

metrics as (
    select * from {{ feature_metrics(declared_features('household_features'), of='new_features') }} as measured
)

select * from metrics
