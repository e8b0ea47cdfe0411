-- The file repeats 4,872 of its rows: a coupon is good for a product once.
with source as (
    select * from {{ source('raw', 'coupons') }}
),

deduplicated as (
    select distinct
        campaign_id,
        coupon_upc,
        product_id
    from source
)

select * from deduplicated
