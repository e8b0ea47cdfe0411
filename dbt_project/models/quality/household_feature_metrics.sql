-- Whether each feature of households is sound on each as-of date.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with new_features as (
    select * from {{ ref('household_features') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

metrics as (
    select * from {{ feature_metrics(declared_features('household_features'), of='new_features') }} as measured
)

select * from metrics
