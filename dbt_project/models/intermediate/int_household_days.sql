-- The days on which a household bought. Baskets of one day that became known on different days stay apart.
with baskets as (
    select * from {{ ref('int_baskets') }}
),

household_days as (
    select
        household_id,
        occurred_on,
        known_on,
        sum(spend_cents) as spend_cents,
        sum(priced_units_count) as priced_units_count,
        sum(priced_units_spend_cents) as priced_units_spend_cents
    from baskets
    group by 1, 2, 3
)

select * from household_days
