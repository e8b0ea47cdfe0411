-- The first of each month, up to the bank's clock.
with digits as (
    {% for digit in range(10) %}
    select {{ digit }} as digit{{ ' union all' if not loop.last }}
    {% endfor %}
),

months as (
    select cast({{ dbt.dateadd('month', 'tens.digit * 10 + ones.digit', first_scored_on()) }} as date) as scored_on
    from digits as ones
    cross join digits as tens
),

scoring_days as (
    select scored_on
    from months
    where scored_on <= {{ today() }}
)

select * from scoring_days
