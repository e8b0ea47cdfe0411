-- Whether each feature of households is sound on each as-of date. Dates are built when those of the features are.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with metrics as (
    select *
    from {{ feature_metrics(
        declared_features('household_features'),
        of=ref('household_features'),
        where=only_new_as_of_dates('as_of_date')
    ) }}
)

select * from metrics
