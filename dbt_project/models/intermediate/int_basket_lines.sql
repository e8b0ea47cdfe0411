-- What was bought, with what the shop knows about it: the product, and whether it was on display or in the mailer.
-- A week's promotions and the products are taken as they are when the line arrives; build in full to look again.
{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        pre_hook="{{ forget_withdrawn_batches(source('raw', 'transactions')) }}"
    )
}}

with lines as (
    select *
    from {{ ref('stg_raw__transactions') }}
    where {{ only_new_batches(source('raw', 'transactions')) }}
),

products as (
    select * from {{ ref('stg_raw__products') }}
),

promotions as (
    select * from {{ ref('stg_raw__promotions') }}
),

-- A product may stand in two places of a store: it is still one offer. Most offers never sold, and are left out first.
promoted as (
    select
        promotions.product_id,
        promotions.store_id,
        promotions.promotion_week,
        max(case when promotions.is_on_display then 1 else 0 end) as on_display,
        max(case when promotions.is_in_mailer then 1 else 0 end) as in_mailer
    from promotions
    where
        exists (
            select 1
            from lines
            where
                lines.product_id = promotions.product_id
                and lines.store_id = promotions.store_id
                and lines.promotion_week = promotions.promotion_week
        )
    group by 1, 2, 3
),

enriched as (
    select
        lines.basket_id,
        lines.product_id,
        lines.household_id,
        lines.store_id,
        lines.occurred_at,
        lines.known_at,
        cast(lines.occurred_at as date) as occurred_on,
        cast(lines.known_at as date) as known_on,
        coalesce(products.department, 'UNKNOWN') as department,
        coalesce(products.is_private_label, false) as is_private_label,
        coalesce(promoted.on_display, 0) = 1 as was_on_display,
        coalesce(promoted.in_mailer, 0) = 1 as was_in_mailer,
        lines.coupon_discount_cents > 0 as has_coupon,
        -- Fuel is counted in thousandths and returns as 0: neither is a number of units with a price each.
        case when lines.quantity between 1 and 100 then lines.quantity end as units,
        lines.quantity,
        lines.spend_cents,
        lines.retail_discount_cents + lines.coupon_match_discount_cents as discount_cents,
        lines.coupon_discount_cents,
        lines.batch_id
    from lines
    left join products
        on lines.product_id = products.product_id
    left join promoted
        on
            lines.product_id = promoted.product_id
            and lines.store_id = promoted.store_id
            and lines.promotion_week = promoted.promotion_week
)

select * from enriched
