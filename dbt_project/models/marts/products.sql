-- What the stores sell, with what came of it.
with products as (
    select * from {{ ref('stg_raw__products') }}
),

lines as (
    select * from {{ ref('int_basket_lines') }}
),

sold as (
    select
        product_id,
        count(*) as lines_count,
        sum(units) as units_count,
        sum(spend_cents) as spend_cents,
        sum(discount_cents) as discount_cents,
        min(occurred_at) as first_sold_at,
        max(occurred_at) as last_sold_at
    from lines
    group by 1
),

products_with_sales as (
    select
        products.product_id,
        products.manufacturer_id,
        products.department,
        products.brand,
        products.category,
        products.product_type,
        products.package_size,
        products.is_private_label,
        sold.first_sold_at,
        sold.last_sold_at,
        {{ count_or_zero('sold.lines_count') }} as lines_count,
        cast(coalesce(sold.units_count, 0) as bigint) as units_count,
        {{ usd('coalesce(sold.spend_cents, 0)') }} as spend_usd,
        {{ usd('coalesce(sold.discount_cents, 0)') }} as discount_usd
    from products
    left join sold
        on products.product_id = sold.product_id
)

select * from products_with_sales
