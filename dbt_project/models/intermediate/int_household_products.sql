-- Distinct products over the last 7, 28 and 84 days, counted without DISTINCT. In each window a product is counted
-- by its latest known pane of purchase only: it enters the count when that purchase is known, and leaves it when
-- the window has passed, or when a later purchase of the same product takes its place.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}


{% set windows = [7, 28, 84] %}

with lines as (
    select *
    from {{ ref('int_basket_lines') }}
    where {{ near_new_as_of_dates('occurred_on', days_before=84) }}
),

spine as (
    select *
    from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

bought as (
    select
        household_id,
        product_id,
        {{ pane_of('occurred_on') }} as pane_number,
        min(greatest({{ pane_of('occurred_on') }}, {{ pane_of('known_on') }})) as enters
    from lines
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
