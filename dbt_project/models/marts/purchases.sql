{{ config(materialized='view') }}

with lines as (
    select * from {{ ref('int_basket_lines') }}
),

in_dollars as (
    select
        basket_id,
        product_id,
        household_id,
        store_id,
        occurred_at,
        department,
        is_private_label,
        was_on_display,
        was_in_mailer,
        has_coupon,
        quantity,
        {{ usd('spend_cents') }} as spend_usd,
        {{ usd('discount_cents') }} as discount_usd,
        {{ usd('coupon_discount_cents') }} as coupon_discount_usd
    from lines
)

select * from in_dollars
