with source as (
    select * from {{ source('raw', 'products') }}
),

renamed as (
    select
        product_id,
        manufacturer_id,
        department,
        brand,
        product_category as category,
        product_type,
        package_size,
        brand = 'Private' as is_private_label
    from source
)

select * from renamed
