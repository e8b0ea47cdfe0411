-- Days with whole numbers, so that models compare numbers and only this one reckons with dates.
-- A pane is the stretch from one as-of date to the next, and has the number of the as-of date that ends it:
-- a day in pane n is before as-of date n, and so known to it. A window of 84 days is 12 weekly panes.
{{ config(materialized='table') }}

with digits as (
    {% for digit in range(10) %}
    select {{ digit }} as digit{{ ' union all' if not loop.last }}
    {% endfor %}
),

numbers as (
    select ones.digit + 10 * tens.digit + 100 * hundreds.digit + 1000 * thousands.digit as number
    from digits as ones
    cross join digits as tens
    cross join digits as hundreds
    cross join digits as thousands
),

days as (
    -- 1,000 days before the first as-of date are as much history as any feature asks for.
    select
        number - 1000 as day_number,
        cast({{ dbt.dateadd('day', 'number - 1000', first_as_of_date()) }} as date) as date_day
    from numbers
),

calendar as (
    select
        date_day,
        day_number,
        {{ pane_of('date_day') }} as pane_number,
        cast({{ dbt.date_trunc('month', 'date_day') }} as date) as month_starts_on,
        day_number >= 0 and mod(day_number, {{ var('as_of_every_days') }}) = 0 as is_as_of_date
    from days
    where date_day <= {{ today() }}
)

select * from calendar
