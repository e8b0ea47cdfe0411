-- What was known about a household before a date. Each import speaks for the same households and dates, and keeps
-- to facts that happened and were known before the date; here they are put side by side, and counts become shares.
-- A new as-of date is added; dates that are built stay as they are, until a backfill asks for them.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='as_of_date',
        on_schema_change='fail'
    )
}}

-- Asked once and said to every import, so that each works on the new dates only.
{% set only_new = only_new_as_of_dates('as_of_date') %}
{% set windows = [7, 28, 84] %}
{% set departments = ['grocery', 'drugstore', 'produce', 'meat', 'deli', 'pastry', 'nutrition', 'fuel'] %}
{% set parts_of_day = ['morning', 'midday', 'afternoon', 'evening'] %}

with spine as (
    select
        household_id,
        as_of_date
    from {{ ref('int_household_as_of_dates') }}
    where {{ only_new }}
),

rhythm as (
    select * from {{ ref('int_household_rhythm') }}
    where {{ only_new }}
),

purchases as (
    select * from {{ ref('int_household_purchases') }}
    where {{ only_new }}
),

products as (
    select * from {{ ref('int_household_products') }}
    where {{ only_new }}
),

departments as (
    select * from {{ ref('int_household_departments') }}
    where {{ only_new }}
),

prices as (
    select * from {{ ref('int_household_prices') }}
    where {{ only_new }}
),

campaigns as (
    select * from {{ ref('int_household_campaigns') }}
    where {{ only_new }}
),

demographics as (
    select * from {{ ref('stg_raw__demographics') }}
),

features as (
    select
        spine.household_id,
        spine.as_of_date,

        -- recency, tenure and rhythm
        cast(rhythm.days_since_last_basket as integer) as days_since_last_basket,
        cast(rhythm.tenure_days as integer) as tenure_days,
        cast(rhythm.purchase_days_count_182d as integer) as purchase_days_182d_count,
        rhythm.gap_mean_182d_days,
        rhythm.gap_sd_182d_days,
        rhythm.gap_p90_182d_days,
        cast(rhythm.gap_max_182d_days as integer) as gap_max_182d_days,
        rhythm.days_since_last_basket / nullif(rhythm.gap_mean_182d_days, 0) as recency_to_gap_ratio,

        -- how much, over the last week, four weeks and twelve weeks
        {% for window in windows %}
        {{ count_or_zero('purchases.purchase_days_count_' ~ window ~ 'd') }} as purchase_days_{{ window }}d_count,
        {{ count_or_zero('purchases.baskets_count_' ~ window ~ 'd') }} as baskets_{{ window }}d_count,
        {{ usd('coalesce(purchases.spend_cents_' ~ window ~ 'd, 0)') }} as spend_{{ window }}d_usd,
        {{ usd('coalesce(purchases.discount_cents_' ~ window ~ 'd, 0)') }} as discount_{{ window }}d_usd,
        {{ usd('coalesce(purchases.coupon_discount_cents_' ~ window ~ 'd, 0)') }} as coupon_discount_{{ window }}d_usd,
        {{ count_or_zero('purchases.coupon_lines_count_' ~ window ~ 'd') }} as coupon_lines_{{ window }}d_count,
        {{ count_or_zero('campaigns.coupons_redeemed_' ~ window ~ 'd_count') }} as coupons_redeemed_{{ window }}d_count,
        {{ count_or_zero('products.products_count_' ~ window ~ 'd') }} as products_{{ window }}d_count,
        {{ count_or_zero('departments.departments_count_' ~ window ~ 'd') }} as departments_{{ window }}d_count,
        {% endfor %}
        {{ usd('purchases.spend_cents_84d') }} / nullif(purchases.baskets_count_84d, 0) as basket_mean_84d_usd,

        -- trends: the last four weeks against the four before, and against the twelve they are part of
        {{ usd('coalesce(purchases.spend_cents_28d - purchases.spend_cents_28d_before, 0)') }} as spend_28d_change_usd,
        {{ count_or_zero('purchases.baskets_count_28d - purchases.baskets_count_28d_before') }}
            as baskets_28d_change_count,
        3 * {{ share('purchases.spend_cents_28d', 'purchases.spend_cents_84d') }} as spend_28d_to_84d_ratio,
        3 * {{ share('purchases.baskets_count_28d', 'purchases.baskets_count_84d') }} as baskets_28d_to_84d_ratio,
        4 * {{ share('purchases.spend_cents_7d', 'purchases.spend_cents_28d') }} as spend_7d_to_28d_ratio,

        -- campaigns
        {{ count_or_zero('campaigns.campaigns_received_count') }} as campaigns_received_count,
        {{ count_or_zero('campaigns.campaigns_received_84d_count') }} as campaigns_received_84d_count,
        {{ count_or_zero('campaigns.campaigns_received_type_a_count') }} as campaigns_received_type_a_count,
        {{ count_or_zero('campaigns.campaigns_active_count') }} as campaigns_active_count,
        {{ count_or_zero('campaigns.campaigns_active_type_a_count') }} as campaigns_active_type_a_count,
        {{ count_or_zero('campaigns.coupons_active_count') }} as coupons_active_count,
        cast(campaigns.days_since_last_campaign as integer) as days_since_last_campaign,
        {{ count_or_zero('campaigns.campaign_days_left') }} as campaign_days_left,
        {{ count_or_zero('campaigns.coupons_redeemed_count') }} as coupons_redeemed_count,
        {{ count_or_zero('campaigns.redemption_days_count') }} as redemption_days_count,
        cast(campaigns.days_since_last_redemption as integer) as days_since_last_redemption,
        {{ share('campaigns.campaigns_redeemed_count', 'campaigns.campaigns_received_count') }}
            as campaigns_redeemed_share,

        -- habits
        {{ share('purchases.display_lines_count_84d', 'purchases.lines_count_84d') }} as display_84d_share,
        {{ share('purchases.mailer_lines_count_84d', 'purchases.lines_count_84d') }} as mailer_84d_share,
        {{ share('purchases.promoted_lines_count_84d', 'purchases.lines_count_84d') }} as promoted_84d_share,
        {{ share('purchases.private_label_spend_cents_84d', 'purchases.spend_cents_84d') }} as private_label_84d_share,
        departments.top_department_84d,
        {% for department in departments %}
        {{ share('departments.' ~ department ~ '_spend_cents_84d', 'purchases.spend_cents_84d') }}
            as {{ department }}_84d_share,
        {% endfor %}
        {% for part in parts_of_day %}
        {{ share('purchases.' ~ part ~ '_baskets_count_84d', 'purchases.baskets_count_84d') }} as {{ part }}_84d_share,
        {% endfor %}
        {{ share('purchases.weekend_baskets_count_84d', 'purchases.baskets_count_84d') }} as weekend_84d_share,
        purchases.top_weekday_84d,
        prices.unit_price_3m_real_usd,

        -- who they are, where they said so
        demographics.age_band,
        demographics.income_band,
        demographics.home_ownership,
        demographics.marital_status,
        demographics.household_size,
        demographics.household_composition,
        demographics.kids_band
    from spine
    left join rhythm
        on spine.household_id = rhythm.household_id and spine.as_of_date = rhythm.as_of_date
    left join purchases
        on spine.household_id = purchases.household_id and spine.as_of_date = purchases.as_of_date
    left join products
        on spine.household_id = products.household_id and spine.as_of_date = products.as_of_date
    left join departments
        on spine.household_id = departments.household_id and spine.as_of_date = departments.as_of_date
    left join prices
        on spine.household_id = prices.household_id and spine.as_of_date = prices.as_of_date
    left join campaigns
        on spine.household_id = campaigns.household_id and spine.as_of_date = campaigns.as_of_date
    left join demographics
        on spine.household_id = demographics.household_id
)

select * from features
