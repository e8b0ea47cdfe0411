-- Purchases over the last 7, 28 and 84 days before each as-of date, as whole panes added up.
-- Asking for known_pane_number too keeps a late basket out of the dates on which nobody knew of it.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

{% set windows = [7, 28, 84] %}
{% set measures = [
    'purchase_days_count',
    'baskets_count',
    'spend_cents',
    'discount_cents',
    'coupon_discount_cents',
    'coupon_lines_count',
] %}
{% set measures_84d = [
    'display_lines_count',
    'mailer_lines_count',
    'promoted_lines_count',
    'private_label_spend_cents',
    'morning_baskets_count',
    'midday_baskets_count',
    'afternoon_baskets_count',
    'evening_baskets_count',
    'monday_baskets_count',
    'tuesday_baskets_count',
    'wednesday_baskets_count',
    'thursday_baskets_count',
    'friday_baskets_count',
    'saturday_baskets_count',
    'sunday_baskets_count',
] %}
{% set weekdays = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'] %}
{% set most = '_baskets_count_84d, ' %}

with spine as (
    select * from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

panes as (
    select * from {{ ref('int_household_panes') }}
    where {{ panes_of_new_as_of_dates('pane_number', 84) }}
),

windows as (
    select
        spine.household_id,
        spine.as_of_date,
        {% for measure in measures %}
        {% for window in windows %}
        sum(
            case when panes.pane_number > spine.as_of_number - {{ panes(window) }} then panes.{{ measure }} else 0 end
        ) as {{ measure }}_{{ window }}d,
        {% endfor %}
        sum(
            case
                when
                    panes.pane_number > spine.as_of_number - {{ panes(56) }}
                    and panes.pane_number <= spine.as_of_number - {{ panes(28) }}
                    then panes.{{ measure }}
                else 0
            end
        ) as {{ measure }}_28d_before,
        {% endfor %}
        {% for measure in measures_84d %}
        sum(panes.{{ measure }}) as {{ measure }}_84d,
        {% endfor %}
        sum(panes.lines_count) as lines_count_84d
    from spine
    inner join panes
        on
            spine.household_id = panes.household_id
            and spine.as_of_number >= panes.pane_number
            and spine.as_of_number < panes.pane_number + {{ panes(84) }}
            and spine.as_of_number >= panes.known_pane_number
    group by 1, 2
),

windows_and_weekdays as (
    select
        *,
        saturday_baskets_count_84d + sunday_baskets_count_84d as weekend_baskets_count_84d,
        -- The earlier weekday where two are equal.
        case greatest({{ weekdays | join(most) }}_baskets_count_84d)
            {% for weekday in weekdays %}
            when {{ weekday }}_baskets_count_84d then '{{ weekday }}'
            {% endfor %}
        end as top_weekday_84d
    from windows
)

select * from windows_and_weekdays
