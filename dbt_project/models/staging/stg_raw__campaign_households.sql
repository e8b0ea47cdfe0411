with source as (
    select * from {{ source('raw', 'campaigns') }}
),

renamed as (
    select
        campaign_id,
        household_id
    from source
)

select * from renamed
