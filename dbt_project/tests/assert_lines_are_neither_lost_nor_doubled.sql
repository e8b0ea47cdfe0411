-- The join with 20.9 million promotions, some of them repeated, must not change how many lines there are or what
-- they cost, and neither must loading in batches.
with loaded as (
    select
        count(*) as lines_count,
        sum(spend_cents) as spend_cents
    from {{ ref('stg_raw__transactions') }}
),

enriched as (
    select
        count(*) as lines_count,
        sum(spend_cents) as spend_cents
    from {{ ref('int_basket_lines') }}
),

summed_up as (
    select
        sum(lines_count) as lines_count,
        sum(spend_cents) as spend_cents
    from {{ ref('int_baskets') }}
)

select
    loaded.lines_count as loaded_count,
    enriched.lines_count as enriched_count,
    summed_up.lines_count as summed_up_count
from loaded
cross join enriched
cross join summed_up
where
    loaded.lines_count <> enriched.lines_count
    or loaded.spend_cents <> enriched.spend_cents
    or loaded.lines_count <> summed_up.lines_count
    or loaded.spend_cents <> summed_up.spend_cents
