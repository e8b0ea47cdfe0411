{{ config(materialized='view') }}

with baskets as (
    select * from {{ ref('int_baskets') }}
),

in_dollars as (
    select
        basket_id,
        household_id,
        store_id,
        occurred_at,
        store_hour,
        store_weekday,
        cast(lines_count as integer) as lines_count,
        cast(coupon_lines_count as integer) as coupon_lines_count,
        cast(display_lines_count as integer) as display_lines_count,
        cast(mailer_lines_count as integer) as mailer_lines_count,
        {{ usd('spend_cents') }} as spend_usd,
        {{ usd('private_label_spend_cents') }} as private_label_spend_usd,
        {{ usd('discount_cents') }} as discount_usd,
        {{ usd('coupon_discount_cents') }} as coupon_discount_usd
    from baskets
)

select * from in_dollars
