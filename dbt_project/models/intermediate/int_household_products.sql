-- Distinct products over the last 7, 28 and 84 days, counted without DISTINCT. In each window a product is counted
-- by its latest known pane of purchase only: it enters the count when that purchase is known, and leaves it when
-- the window has passed, or when a later purchase of the same product takes its place.
--
-- It is the costliest of the features' inputs, so it is kept: a new as-of date reads the last 84 days only.
{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='fail') }}

{% set only_new = only_new_as_of_dates('as_of_date') %}
{% set only_recent = only_new_as_of_dates('occurred_on', margin_days=84) %}
{% set windows = [7, 28, 84] %}

with lines as (
    select *
    from {{ ref('int_basket_lines') }}
    where {{ only_recent }}
),

calendar as (
    select * from {{ ref('int_calendar') }}
),

spine as (
    select *
    from {{ ref('int_household_as_of_dates') }}
    where {{ only_new }}
),

bought as (
    select
        lines.household_id,
        lines.product_id,
        happened.pane_number,
        min(greatest(happened.pane_number, known.pane_number)) as enters
    from lines
    inner join calendar as happened
        on lines.occurred_on = happened.date_day
    inner join calendar as known
        on lines.known_on = known.date_day
    group by 1, 2, 3
),

replaced as (
    select
        household_id,
        pane_number,
        enters,
        coalesce(
            min(enters) over (
                partition by household_id, product_id
                order by pane_number
                rows between 1 following and unbounded following
            ),
            pane_number + {{ panes(84) }}
        ) as replaced_in
    from bought
),

stays as (
    select
        household_id,
        {% for window in windows %}
        -- A purchase that is known only after its window has passed is never counted in it.
        greatest(enters, least(pane_number + {{ panes(window) }}, replaced_in)) as leaves_{{ window }}d,
        {% endfor %}
        enters
    from replaced
),

changes as (
    {% for window in windows %}
    select
        household_id,
        {% for other in windows %}
        {{ '-count(*)' if other == window else '0' }} as change_{{ other }}d,
        {% endfor %}
        leaves_{{ window }}d as pane_number
    from stays
    group by 1, {{ windows | length + 2 }}
    union all
    {% endfor %}
    select
        household_id,
        {% for window in windows %}
        count(*) as change_{{ window }}d,
        {% endfor %}
        enters as pane_number
    from stays
    group by 1, {{ windows | length + 2 }}
),

changes_and_dates as (
    select
        household_id,
        pane_number,
        {% for window in windows %}
        change_{{ window }}d,
        {% endfor %}
        cast(null as date) as as_of_date
    from changes
    union all
    select
        household_id,
        as_of_number as pane_number,
        {% for window in windows %}
        0 as change_{{ window }}d,
        {% endfor %}
        as_of_date
    from spine
),

running as (
    select
        household_id,
        {% for window in windows %}
        sum(change_{{ window }}d) over (
            partition by household_id
            order by pane_number
            range between unbounded preceding and current row
        ) as products_count_{{ window }}d,
        {% endfor %}
        as_of_date
    from changes_and_dates
),

counts as (
    select *
    from running
    where as_of_date is not null
)

select * from counts
