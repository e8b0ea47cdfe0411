-- A location of '0' means: not promoted there.
with source as (
    select * from {{ source('raw', 'promotions') }}
),

renamed as (
    select
        product_id,
        store_id,
        week as promotion_week,
        display_location,
        mailer_location,
        display_location <> '0' as is_on_display,
        mailer_location <> '0' as is_in_mailer
    from source
)

select * from renamed
