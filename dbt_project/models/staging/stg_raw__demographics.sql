-- The survey is undated: it has no occurred_at or known_at, and features take it as known from the start.
with source as (
    select * from {{ source('raw', 'demographics') }}
),

renamed as (
    select
        household_id,
        age as age_band,
        income as income_band,
        home_ownership,
        marital_status,
        household_size,
        household_comp as household_composition,
        kids_count as kids_band
    from source
)

select * from renamed
