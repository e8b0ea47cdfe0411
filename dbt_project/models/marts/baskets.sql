{{ config(materialized='view') }}

with arrivals as (
    select * from {{ ref('int_baskets') }}
),

-- Lines that came late belong to their basket like all others.
baskets as (
    select
        basket_id,
        household_id,
        store_id,
        occurred_at,
        store_hour,
        store_weekday,
        cast(sum(lines_count) as integer) as lines_count,
        cast(sum(coupon_lines_count) as integer) as coupon_lines_count,
        cast(sum(display_lines_count) as integer) as display_lines_count,
        cast(sum(mailer_lines_count) as integer) as mailer_lines_count,
        {{ usd('sum(spend_cents)') }} as spend_usd,
        {{ usd('sum(private_label_spend_cents)') }} as private_label_spend_usd,
        {{ usd('sum(discount_cents)') }} as discount_usd,
        {{ usd('sum(coupon_discount_cents)') }} as coupon_discount_usd
    from arrivals
    group by 1, 2, 3, 4, 5, 6
)

select * from baskets
