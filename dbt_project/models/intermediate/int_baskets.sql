-- Visits to the till. A basket has one timestamp, and nearly always arrives whole. Lines that come in a later batch
-- make a row of their own, so that what was known stays as it was known: sums add up, visits are distinct baskets.
{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        pre_hook="{{ forget_withdrawn_batches(ref('int_basket_lines'), 'batch_id') }}"
    )
}}

with lines as (
    select *
    from {{ ref('int_basket_lines') }}
    where {{ only_new_batches(ref('int_basket_lines'), 'batch_id') }}
),

baskets as (
    select
        basket_id,
        batch_id,
        min(household_id) as household_id,
        min(store_id) as store_id,
        min(occurred_at) as occurred_at,
        max(known_at) as known_at,
        count(*) as lines_count,
        sum(case when has_coupon then 1 else 0 end) as coupon_lines_count,
        sum(case when was_on_display then 1 else 0 end) as display_lines_count,
        sum(case when was_in_mailer then 1 else 0 end) as mailer_lines_count,
        sum(case when was_on_display or was_in_mailer then 1 else 0 end) as promoted_lines_count,
        sum(spend_cents) as spend_cents,
        sum(case when is_private_label then spend_cents else 0 end) as private_label_spend_cents,
        sum(discount_cents) as discount_cents,
        sum(coupon_discount_cents) as coupon_discount_cents,
        sum(coalesce(units, 0)) as priced_units_count,
        sum(case when units is not null then spend_cents else 0 end) as priced_units_spend_cents
    from lines
    group by 1, 2
),

on_the_clock_of_the_stores as (
    select
        *,
        {{ store_time('occurred_at') }} as occurred_at_store_time
    from baskets
),

timed as (
    select
        basket_id,
        household_id,
        store_id,
        occurred_at,
        known_at,
        cast(occurred_at as date) as occurred_on,
        cast(known_at as date) as known_on,
        {{ pane_of('occurred_at') }} as pane_number,
        {{ pane_of('known_at') }} as known_pane_number,
        cast(extract(hour from occurred_at_store_time) as integer) as store_hour,
        -- 1 is Monday.
        cast(
            {{ dbt.datediff(dbt.date_trunc('week', 'occurred_at_store_time'), 'occurred_at_store_time', 'day') }} + 1
            as integer
        ) as store_weekday,
        lines_count,
        coupon_lines_count,
        display_lines_count,
        mailer_lines_count,
        promoted_lines_count,
        spend_cents,
        private_label_spend_cents,
        discount_cents,
        coupon_discount_cents,
        priced_units_count,
        priced_units_spend_cents,
        batch_id
    from on_the_clock_of_the_stores
)

select * from timed
