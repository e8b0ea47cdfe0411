-- What a household spends in the 28 days from the as-of date on, its own day included.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with spine as (
    select
        household_id,
        as_of_date,
        cast({{ dbt.dateadd('day', 28, 'as_of_date') }} as date) as matures_on
    from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date', horizon_days=28) }}
),

days as (
    select * from {{ ref('int_household_days') }}
    where {{ near_new_as_of_dates('occurred_on', days_after=28, horizon_days=28) }}
),

matured as (
    select * from spine
    where matures_on <= {{ today() }}
),

labels as (
    select
        matured.household_id,
        matured.as_of_date,
        {{ usd('coalesce(sum(days.spend_cents), 0)') }} as label,
        matured.matures_on
    from matured
    left join days
        on
            matured.household_id = days.household_id
            and matured.as_of_date <= days.occurred_on
            and matured.matures_on > days.occurred_on
            -- What becomes known after the label has matured does not rewrite it.
            and matured.matures_on > days.known_on
    group by 1, 2, 4
)

select * from labels
