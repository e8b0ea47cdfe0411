-- What a unit cost a household over the last three months, in dollars of one fixed month.
-- On an as-of date only the CPI published *before* it is known. Purchases of a month that has none yet are
-- corrected with the newest one known.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with spine as (
    select * from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

as_of_dates as (
    select * from {{ ref('int_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

days as (
    select * from {{ ref('int_household_days') }}
    -- three months are 92 days at the most
    where {{ near_new_as_of_dates('occurred_on', days_before=92) }}
),

calendar as (
    select * from {{ ref('int_calendar') }}
),

cpi as (
    select * from {{ ref('us_cpi') }}
),

months as (
    select distinct month_starts_on
    from calendar
),

-- The newest month that was both published before the as-of date and not after the month of purchase.
months_to_use as (
    select
        as_of_dates.as_of_date,
        months.month_starts_on,
        max(cpi.month_starts_on) as cpi_month_starts_on
    from as_of_dates
    inner join months
        on as_of_dates.as_of_date > months.month_starts_on
    inner join cpi
        on
            as_of_dates.as_of_date > cpi.published_on
            and months.month_starts_on >= cpi.month_starts_on
    group by 1, 2
),

deflators as (
    select
        months_to_use.as_of_date,
        months_to_use.month_starts_on,
        base.cpi_index / used.cpi_index as deflator
    from months_to_use
    inner join cpi as used
        on months_to_use.cpi_month_starts_on = used.month_starts_on
    -- A unit of measure, not a fact about the household: it was published before the first as-of date.
    inner join cpi as base
        on base.month_starts_on = cast('{{ var("price_base_month") }}' as date)
),

monthly as (
    select
        spine.household_id,
        spine.as_of_date,
        calendar.month_starts_on,
        sum(days.priced_units_spend_cents) as spend_cents,
        sum(days.priced_units_count) as units_count
    from spine
    inner join days
        on
            spine.household_id = days.household_id
            and {{ as_of_window('spine.as_of_date', 'days.occurred_on', 'days.known_on') }}
            and spine.three_months_before <= days.occurred_on
    inner join calendar
        on days.occurred_on = calendar.date_day
    group by 1, 2, 3
),

deflated as (
    select
        monthly.household_id,
        monthly.as_of_date,
        monthly.units_count,
        -- Whole cents per month: a sum of them does not depend on its order.
        cast(round(monthly.spend_cents * deflators.deflator) as bigint) as real_spend_cents
    from monthly
    inner join deflators
        on
            monthly.as_of_date = deflators.as_of_date
            and monthly.month_starts_on = deflators.month_starts_on
),

prices as (
    select
        spine.household_id,
        spine.as_of_date,
        {{ usd('sum(deflated.real_spend_cents)') }} / nullif(sum(deflated.units_count), 0) as unit_price_3m_real_usd
    from spine
    left join deflated
        on
            spine.household_id = deflated.household_id
            and spine.as_of_date = deflated.as_of_date
    group by 1, 2
)

select * from prices
