with campaigns as (
    select * from {{ ref('stg_raw__campaigns') }}
),

campaign_households as (
    select * from {{ ref('stg_raw__campaign_households') }}
),

coupons as (
    select * from {{ ref('stg_raw__coupons') }}
),

redemptions as (
    select * from {{ ref('stg_raw__coupon_redemptions') }}
),

sent as (
    select
        campaign_id,
        count(*) as households_count
    from campaign_households
    group by 1
),

offered as (
    select
        campaign_id,
        count(distinct coupon_upc) as coupons_count,
        count(distinct product_id) as products_count
    from coupons
    group by 1
),

redeemed as (
    select
        campaign_id,
        count(*) as coupons_redeemed_count,
        count(distinct household_id) as households_redeemed_count
    from redemptions
    group by 1
),

campaigns_with_response as (
    select
        campaigns.campaign_id,
        campaigns.campaign_type,
        campaigns.starts_on,
        campaigns.ends_on,
        {{ count_or_zero('sent.households_count') }} as households_count,
        {{ count_or_zero('offered.coupons_count') }} as coupons_count,
        {{ count_or_zero('offered.products_count') }} as products_count,
        {{ count_or_zero('redeemed.coupons_redeemed_count') }} as coupons_redeemed_count,
        {{ count_or_zero('redeemed.households_redeemed_count') }} as households_redeemed_count,
        {{ share('coalesce(redeemed.households_redeemed_count, 0)', 'sent.households_count') }} as response_share
    from campaigns
    left join sent
        on campaigns.campaign_id = sent.campaign_id
    left join offered
        on campaigns.campaign_id = offered.campaign_id
    left join redeemed
        on campaigns.campaign_id = redeemed.campaign_id
)

select * from campaigns_with_response
