-- Coupon campaigns a household had received before each as-of date, and what it made of them.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

with spine as (
    select * from {{ ref('int_household_as_of_dates') }}
    where {{ only_new_as_of_dates('as_of_date') }}
),

campaigns as (
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

offered as (
    select
        campaign_id,
        count(distinct coupon_upc) as coupons_count
    from coupons
    group by 1
),

received as (
    select
        campaign_households.household_id,
        campaigns.campaign_id,
        campaigns.campaign_type,
        campaigns.starts_on,
        campaigns.ends_on,
        campaigns.known_on,
        coalesce(offered.coupons_count, 0) as coupons_count
    from campaign_households
    inner join campaigns
        on campaign_households.campaign_id = campaigns.campaign_id
    left join offered
        on campaign_households.campaign_id = offered.campaign_id
),

exposure as (
    select
        spine.household_id,
        spine.as_of_date,
        count(*) as campaigns_received_count,
        sum(case when received.starts_on >= {{ dbt.dateadd('day', -84, 'spine.as_of_date') }} then 1 else 0 end)
            as campaigns_received_84d_count,
        -- Coupons are good on the last day too.
        sum(case when received.ends_on >= spine.as_of_date then 1 else 0 end) as campaigns_active_count,
        sum(case when received.ends_on >= spine.as_of_date and received.campaign_type = 'Type A' then 1 else 0 end)
            as campaigns_active_type_a_count,
        sum(case when received.ends_on >= spine.as_of_date then received.coupons_count else 0 end)
            as coupons_active_count,
        sum(case when received.campaign_type = 'Type A' then 1 else 0 end) as campaigns_received_type_a_count,
        max(received.starts_on) as last_started_on,
        max(received.ends_on) as last_ends_on
    from spine
    inner join received
        on
            spine.household_id = received.household_id
            and {{ as_of_window('spine.as_of_date', 'received.starts_on', 'received.known_on') }}
    group by 1, 2
),

use as (
    select
        spine.household_id,
        spine.as_of_date,
        count(*) as coupons_redeemed_count,
        sum(case when redemptions.redeemed_on >= {{ dbt.dateadd('day', -7, 'spine.as_of_date') }} then 1 else 0 end)
            as coupons_redeemed_7d_count,
        sum(case when redemptions.redeemed_on >= {{ dbt.dateadd('day', -28, 'spine.as_of_date') }} then 1 else 0 end)
            as coupons_redeemed_28d_count,
        sum(case when redemptions.redeemed_on >= {{ dbt.dateadd('day', -84, 'spine.as_of_date') }} then 1 else 0 end)
            as coupons_redeemed_84d_count,
        count(distinct redemptions.campaign_id) as campaigns_redeemed_count,
        count(distinct redemptions.redeemed_on) as redemption_days_count,
        max(redemptions.redeemed_on) as last_redeemed_on
    from spine
    inner join redemptions
        on
            spine.household_id = redemptions.household_id
            and {{ as_of_window('spine.as_of_date', 'redemptions.redeemed_on', 'redemptions.known_on') }}
    group by 1, 2
),

campaigning as (
    select
        spine.household_id,
        spine.as_of_date,
        coalesce(exposure.campaigns_received_count, 0) as campaigns_received_count,
        coalesce(exposure.campaigns_received_84d_count, 0) as campaigns_received_84d_count,
        coalesce(exposure.campaigns_received_type_a_count, 0) as campaigns_received_type_a_count,
        coalesce(exposure.campaigns_active_count, 0) as campaigns_active_count,
        coalesce(exposure.campaigns_active_type_a_count, 0) as campaigns_active_type_a_count,
        coalesce(exposure.coupons_active_count, 0) as coupons_active_count,
        {{ dbt.datediff('exposure.last_started_on', 'spine.as_of_date', 'day') }} as days_since_last_campaign,
        -- 0 when nothing is active; on its last day a campaign has 1 day left.
        greatest({{ dbt.datediff('spine.as_of_date', 'exposure.last_ends_on', 'day') }} + 1, 0)
            as campaign_days_left,
        coalesce(use.coupons_redeemed_count, 0) as coupons_redeemed_count,
        coalesce(use.coupons_redeemed_7d_count, 0) as coupons_redeemed_7d_count,
        coalesce(use.coupons_redeemed_28d_count, 0) as coupons_redeemed_28d_count,
        coalesce(use.coupons_redeemed_84d_count, 0) as coupons_redeemed_84d_count,
        coalesce(use.campaigns_redeemed_count, 0) as campaigns_redeemed_count,
        coalesce(use.redemption_days_count, 0) as redemption_days_count,
        {{ dbt.datediff('use.last_redeemed_on', 'spine.as_of_date', 'day') }} as days_since_last_redemption
    from spine
    left join exposure
        on
            spine.household_id = exposure.household_id
            and spine.as_of_date = exposure.as_of_date
    left join use
        on
            spine.household_id = use.household_id
            and spine.as_of_date = use.as_of_date
)

select * from campaigning
