-- How regularly a household comes: the gaps between its days of purchase in the last half year, and since the last.
-- Whole days and their squares are added up, so that the spread does not depend on the order of rows.
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

days as (
    select * from {{ ref('int_household_days') }}
),

purchase_days as (
    select
        household_id,
        occurred_on,
        min(known_on) as known_on
    from days
    group by 1, 2
),

-- Of the gaps, only the days near enough; first and last purchase may be any time ago.
recent_purchase_days as (
    select * from purchase_days
    where {{ near_new_as_of_dates('occurred_on', days_before=182) }}
),

history as (
    select
        spine.household_id,
        spine.as_of_date,
        min(purchase_days.occurred_on) as first_purchased_on,
        max(purchase_days.occurred_on) as last_purchased_on
    from spine
    inner join purchase_days
        on
            spine.household_id = purchase_days.household_id
            and {{ as_of_window('spine.as_of_date', 'purchase_days.occurred_on', 'purchase_days.known_on') }}
    group by 1, 2
),

known_days as (
    select
        spine.household_id,
        spine.as_of_date,
        days.occurred_on,
        lag(days.occurred_on) over (
            partition by spine.household_id, spine.as_of_date
            order by days.occurred_on
        ) as previously_occurred_on
    from spine
    inner join recent_purchase_days as days
        on
            spine.household_id = days.household_id
            and {{ as_of_window('spine.as_of_date', 'days.occurred_on', 'days.known_on', days=182) }}
),

stretches as (
    select
        household_id,
        as_of_date,
        {{ dbt.datediff('previously_occurred_on', 'occurred_on', 'day') }} as gap_days
    from known_days
),

gaps as (
    select
        household_id,
        as_of_date,
        count(*) as purchase_days_count,
        count(gap_days) as gaps_count,
        sum(gap_days) as gap_days,
        sum(gap_days * gap_days) as squared_gap_days,
        max(gap_days) as gap_max_days,
        percentile_cont(0.9) within group (order by gap_days) as gap_p90_days
    from stretches
    group by 1, 2
),

rhythm as (
    select
        history.household_id,
        history.as_of_date,
        {{ dbt.datediff('history.last_purchased_on', 'history.as_of_date', 'day') }} as days_since_last_basket,
        {{ dbt.datediff('history.first_purchased_on', 'history.as_of_date', 'day') }} as tenure_days,
        coalesce(gaps.purchase_days_count, 0) as purchase_days_count_182d,
        {{ share('gaps.gap_days', 'gaps.gaps_count') }} as gap_mean_182d_days,
        sqrt({{ share(
            'gaps.squared_gap_days * gaps.gaps_count - gaps.gap_days * gaps.gap_days',
            'gaps.gaps_count * (gaps.gaps_count - 1)'
        ) }}) as gap_sd_182d_days,
        cast(gaps.gap_p90_days as double precision) as gap_p90_182d_days,
        gaps.gap_max_days as gap_max_182d_days
    from history
    left join gaps
        on
            history.household_id = gaps.household_id
            and history.as_of_date = gaps.as_of_date
)

select * from rhythm
