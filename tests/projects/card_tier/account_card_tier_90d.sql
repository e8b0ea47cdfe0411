-- Which card would have suited an account in the 90 days from the scoring day on, by what it spent with the one it has.
with card_spend as (
    select * from {{ ref('account_card_spend_90d') }}
),

account_card_tier_90d as (
    select
        account_no,
        scored_on,
        case
            when label < 5000 then 'basic'
            when label < 15000 then 'classic'
            else 'gold'
        end as label,
        matures_on
    from card_spend
)

select * from account_card_tier_90d
