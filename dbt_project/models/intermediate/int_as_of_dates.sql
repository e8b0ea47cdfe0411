-- The moments that features and labels speak for, up to the project's clock.
with calendar as (
    select * from {{ ref('int_calendar') }}
),

as_of_dates as (
    select
        date_day as as_of_date,
        -- The day itself already belongs to the next pane: it is not known on its morning.
        pane_number - 1 as as_of_number,
        cast({{ dbt.dateadd('month', -3, 'date_day') }} as date) as three_months_before
    from calendar
    where is_as_of_date
)

select * from as_of_dates
