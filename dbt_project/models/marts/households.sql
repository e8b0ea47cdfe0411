-- Every household that ever bought, was sent a campaign or answered the survey.
with baskets as (
    select * from {{ ref('int_baskets') }}
),

campaign_households as (
    select * from {{ ref('stg_raw__campaign_households') }}
),

redemptions as (
    select * from {{ ref('stg_raw__coupon_redemptions') }}
),

demographics as (
    select * from {{ ref('stg_raw__demographics') }}
),

everybody as (
    select household_id from baskets
    union
    select household_id from campaign_households
    union
    select household_id from demographics
),

bought as (
    select
        household_id,
        min(occurred_at) as first_basket_at,
        max(occurred_at) as last_basket_at,
        count(distinct basket_id) as baskets_count,
        sum(spend_cents) as spend_cents,
        sum(discount_cents) as discount_cents,
        sum(coupon_discount_cents) as coupon_discount_cents
    from baskets
    group by 1
),

campaigned as (
    select
        household_id,
        count(*) as campaigns_received_count
    from campaign_households
    group by 1
),

redeemed as (
    select
        household_id,
        count(*) as coupons_redeemed_count
    from redemptions
    group by 1
),

households as (
    select
        everybody.household_id,
        demographics.age_band,
        demographics.income_band,
        demographics.home_ownership,
        demographics.marital_status,
        demographics.household_size,
        demographics.household_composition,
        demographics.kids_band,
        bought.first_basket_at,
        bought.last_basket_at,
        {{ count_or_zero('bought.baskets_count') }} as baskets_count,
        {{ usd('coalesce(bought.spend_cents, 0)') }} as spend_usd,
        {{ usd('coalesce(bought.discount_cents, 0)') }} as discount_usd,
        {{ usd('coalesce(bought.coupon_discount_cents, 0)') }} as coupon_discount_usd,
        {{ count_or_zero('campaigned.campaigns_received_count') }} as campaigns_received_count,
        {{ count_or_zero('redeemed.coupons_redeemed_count') }} as coupons_redeemed_count
    from everybody
    left join bought
        on everybody.household_id = bought.household_id
    left join campaigned
        on everybody.household_id = campaigned.household_id
    left join redeemed
        on everybody.household_id = redeemed.household_id
    left join demographics
        on everybody.household_id = demographics.household_id
)

select * from households
