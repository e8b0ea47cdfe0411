-- Lines as the till recorded them, with the company's names. Money stays exact as whole cents,
-- so that sums do not depend on the order in which they are added.
with source as (
    select * from {{ source('raw', 'transactions') }}
),

renamed as (
    select
        basket_id,
        product_id,
        household_id,
        store_id,
        week as promotion_week,
        quantity,
        transaction_timestamp as occurred_at,
        -- A line that comes late is known late.
        greatest(transaction_timestamp, cast(_known_at as timestamp)) as known_at,
        cast(round(sales_value * 100) as integer) as spend_cents,
        cast(round(retail_disc * 100) as integer) as retail_discount_cents,
        cast(round(coupon_disc * 100) as integer) as coupon_discount_cents,
        cast(round(coupon_match_disc * 100) as integer) as coupon_match_discount_cents,
        _batch_id as batch_id
    from source
)

select * from renamed
