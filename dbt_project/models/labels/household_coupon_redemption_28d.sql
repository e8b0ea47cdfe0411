-- Whether a household redeems a coupon in the 28 days from the as-of date on, its own day included.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with spine as (
    select
        household_id,
        as_of_date,
        cast({{ dbt.dateadd('day', 28, 'as_of_date') }} as date) as matures_on
    from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date', horizon_days=28) }}
),

redemptions as (
    select * from {{ ref('stg_raw__coupon_redemptions') }}
),

matured as (
    select * from spine
    where matures_on <= {{ today() }}
),

redeemed as (
    select distinct
        matured.household_id,
        matured.as_of_date
    from matured
    inner join redemptions
        on
            matured.household_id = redemptions.household_id
            and matured.as_of_date <= redemptions.redeemed_on
            and matured.matures_on > redemptions.redeemed_on
            -- What becomes known after the label has matured does not rewrite it.
            and matured.matures_on > redemptions.known_on
),

labels as (
    select
        matured.household_id,
        matured.as_of_date,
        case when redeemed.household_id is null then 0 else 1 end as label,
        matured.matures_on
    from matured
    left join redeemed
        on
            matured.household_id = redeemed.household_id
            and matured.as_of_date = redeemed.as_of_date
)

select * from labels
