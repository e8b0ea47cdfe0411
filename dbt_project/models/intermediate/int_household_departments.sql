-- The departments a household bought in: how many, where most of its money went, and the mix.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

{% set windows = [7, 28, 84] %}
{% set groups = ['grocery', 'drugstore', 'produce', 'meat', 'deli', 'pastry', 'nutrition', 'fuel'] %}

with lines as (
    select * from {{ ref('int_basket_lines') }}
    where {{ near_new_as_of_dates('occurred_on', days_before=84) }}
),

spine as (
    select * from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

department_panes as (
    select
        household_id,
        department,
        {{ pane_of('occurred_on') }} as pane_number,
        {{ pane_of('known_on') }} as known_pane_number,
        sum(spend_cents) as spend_cents
    from lines
    group by 1, 2, 3, 4
),

department_spending as (
    select
        spine.household_id,
        spine.as_of_date,
        spine.as_of_number,
        department_panes.department,
        max(department_panes.pane_number) as last_pane_number,
        sum(department_panes.spend_cents) as spend_cents
    from spine
    inner join department_panes
        on
            spine.household_id = department_panes.household_id
            and spine.as_of_number >= department_panes.pane_number
            and spine.as_of_number < department_panes.pane_number + {{ panes(84) }}
            and spine.as_of_number >= department_panes.known_pane_number
    group by 1, 2, 3, 4
),

ranked as (
    select
        *,
        case
            when department in ('GROCERY', 'FROZEN GROCERY') then 'grocery'
            when department in ('DRUG GM', 'COSMETICS') then 'drugstore'
            when department in ('PRODUCE', 'SALAD BAR') then 'produce'
            when department in ('MEAT', 'MEAT-PCKGD', 'SEAFOOD', 'SEAFOOD-PCKGD') then 'meat'
            when department in ('DELI', 'CHEF SHOPPE', 'RESTAURANT') then 'deli'
            when department = 'PASTRY' then 'pastry'
            when department = 'NUTRITION' then 'nutrition'
            when department = 'FUEL' then 'fuel'
        end as department_group,
        -- The name breaks ties, so that a rebuild tells the same.
        row_number() over (
            partition by household_id, as_of_date
            order by spend_cents desc, department asc
        ) as place
    from department_spending
),

mix as (
    select
        household_id,
        as_of_date,
        {% for window in windows %}
        sum(case when last_pane_number > as_of_number - {{ panes(window) }} then 1 else 0 end)
            as departments_count_{{ window }}d,
        {% endfor %}
        {% for group in groups %}
        sum(case when department_group = '{{ group }}' then spend_cents else 0 end) as {{ group }}_spend_cents_84d,
        {% endfor %}
        max(case when place = 1 then department end) as top_department_84d
    from ranked
    group by 1, 2
)

select * from mix
