-- What a household did in a pane, as soon as it was known. A window of features adds up whole panes, so each
-- basket is read once, not once per as-of date. All is kept apart by pane_number, so that who asks for some panes
-- makes the warehouse read the baskets of these alone.
{% set parts_of_day = [('morning', 5, 10), ('midday', 11, 14), ('afternoon', 15, 18), ('evening', 19, 22)] %}
{% set weekdays = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'] %}

with baskets as (
    select * from {{ ref('int_baskets') }}
),

-- A basket of which lines come late is one visit, known with the first of them; the late ones add to its sums.
arrivals as (
    select
        *,
        case
            when row_number() over (partition by basket_id, pane_number order by known_at, batch_id) = 1 then 1
            else 0
        end as visits_count
    from baskets
),

-- A day that becomes known in two pieces is one day of purchase, known with the first of them.
purchase_days as (
    select
        household_id,
        occurred_on,
        pane_number,
        min(known_pane_number) as known_pane_number
    from baskets
    group by 1, 2, 3
),

facts as (
    select
        household_id,
        pane_number,
        known_pane_number,
        0 as purchase_days_count,
        visits_count as baskets_count,
        lines_count,
        coupon_lines_count,
        display_lines_count,
        mailer_lines_count,
        promoted_lines_count,
        spend_cents,
        private_label_spend_cents,
        discount_cents,
        coupon_discount_cents,
        store_hour,
        store_weekday
    from arrivals
    union all
    select
        household_id,
        pane_number,
        known_pane_number,
        1 as purchase_days_count,
        0 as baskets_count,
        0 as lines_count,
        0 as coupon_lines_count,
        0 as display_lines_count,
        0 as mailer_lines_count,
        0 as promoted_lines_count,
        0 as spend_cents,
        0 as private_label_spend_cents,
        0 as discount_cents,
        0 as coupon_discount_cents,
        null as store_hour,
        null as store_weekday
    from purchase_days
),

panes as (
    select
        household_id,
        pane_number,
        known_pane_number,
        sum(purchase_days_count) as purchase_days_count,
        sum(lines_count) as lines_count,
        sum(coupon_lines_count) as coupon_lines_count,
        sum(display_lines_count) as display_lines_count,
        sum(mailer_lines_count) as mailer_lines_count,
        sum(promoted_lines_count) as promoted_lines_count,
        sum(spend_cents) as spend_cents,
        sum(private_label_spend_cents) as private_label_spend_cents,
        sum(discount_cents) as discount_cents,
        sum(coupon_discount_cents) as coupon_discount_cents,
        {% for part, first_hour, last_hour in parts_of_day %}
        sum(case when store_hour between {{ first_hour }} and {{ last_hour }} then baskets_count else 0 end)
            as {{ part }}_baskets_count,
        {% endfor %}
        {% for weekday in weekdays %}
        sum(case when store_weekday = {{ loop.index }} then baskets_count else 0 end)
            as {{ weekday }}_baskets_count,
        {% endfor %}
        sum(baskets_count) as baskets_count
    from facts
    group by 1, 2, 3
)

select * from panes
