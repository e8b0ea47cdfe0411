-- The windows are made of panes, and distinct products are counted by when they enter and leave. That is fast and
-- easy to get wrong by one, so the newest date is counted again here, the plain way, from the lines themselves.
with features as (
    select * from {{ ref('household_features') }}
),

newest_date as (
    select max(as_of_date) as as_of_date
    from features
),

newest as (
    select features.*
    from features
    inner join newest_date
        on features.as_of_date = newest_date.as_of_date
),

lines as (
    select * from {{ ref('int_basket_lines') }}
),

counted as (
    select
        newest.household_id,
        count(distinct lines.basket_id) as baskets_count,
        count(distinct lines.product_id) as products_count,
        count(distinct lines.department) as departments_count,
        count(distinct lines.occurred_on) as purchase_days_count,
        coalesce(sum(lines.spend_cents), 0) as spend_cents
    from newest
    left join lines
        on
            newest.household_id = lines.household_id
            and {{ as_of_window('newest.as_of_date', 'lines.occurred_at', 'lines.known_at', days=84) }}
    group by 1
)

select
    newest.household_id,
    newest.as_of_date
from newest
inner join counted
    on newest.household_id = counted.household_id
where
    newest.baskets_84d_count <> counted.baskets_count
    or newest.products_84d_count <> counted.products_count
    or newest.departments_84d_count <> counted.departments_count
    or newest.purchase_days_84d_count <> counted.purchase_days_count
    or round(newest.spend_84d_usd * 100) <> counted.spend_cents
