with source as (
    select * from {{ source('raw', 'coupon_redemptions') }}
),

renamed as (
    select
        household_id,
        campaign_id,
        coupon_upc,
        cast(redemption_date as date) as redeemed_on,
        -- Recorded at the till: known on the day, as the lines of stg_raw__transactions are, or when it comes late.
        greatest(cast(redemption_date as date), cast(_known_at as date)) as known_on
    from source
)

select * from renamed
