with source as (
    select * from {{ source('raw', 'campaign_descriptions') }}
),

renamed as (
    select
        campaign_id,
        campaign_type,
        cast(start_date as date) as starts_on,
        cast(end_date as date) as ends_on,
        -- Nobody wrote down when a campaign was planned: the households learn of it when it starts,
        -- so its end is also known from then on.
        cast(start_date as date) as known_on
    from source
)

select * from renamed
