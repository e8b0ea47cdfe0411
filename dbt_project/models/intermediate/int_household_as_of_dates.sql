-- Who there is to speak of, and when: a household is one from the day after its first basket is known.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with baskets as (
    select * from {{ ref('int_baskets') }}
),

as_of_dates as (
    select * from {{ ref('int_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

first_known as (
    select
        household_id,
        min(greatest(occurred_on, known_on)) as first_known_on
    from baskets
    group by 1
),

spine as (
    select
        first_known.household_id,
        as_of_dates.as_of_date,
        as_of_dates.as_of_number,
        as_of_dates.three_months_before
    from first_known
    inner join as_of_dates
        on first_known.first_known_on < as_of_dates.as_of_date
)

select * from spine
