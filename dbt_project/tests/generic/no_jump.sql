{#
    No feature has jumped: on the newest as-of date each is about what it was on the dates before it.

    metrics     ref() of the table that feature_metrics makes of this model
    metric      its column to look at: null_share, distinct_count, mean, …
    times       it may be so many times the highest of before, or the lowest divided by it; signs are left out. What was
                0 on all dates is not judged, as any number is many times that
    by          it may lie so much above the highest of before, or below the lowest
    dates       how many dates before the newest it is compared with; with fewer than least_dates nothing is told
    least_rows  a date with fewer rows tells nothing, as a few of them move a mean
    apart_from  features that may jump

    It hangs on the feature model, not on the table of metrics: a failure stops what is made of the features.
#}
{% test no_jump(
    model, metrics, metric, times=none, by=none, dates=8, least_dates=4, least_rows=100, apart_from=[]
) %}
{%- if times is none and by is none -%}
{{ exceptions.raise_compiler_error("test no_jump on " ~ model ~ ": " ~ metric ~ " needs times or by") }}
{%- endif %}
with numbered as (
    select
        as_of_date,
        feature,
        abs({{ metric }}) as measured,
        dense_rank() over (order by as_of_date desc) as nth_newest
    from {{ metrics }}
    where
        rows_count >= {{ least_rows }}
        {% if apart_from %}and feature not in ('{{ apart_from | join("', '") }}'){% endif %}
),

before as (
    select
        feature,
        min(measured) as lowest_before,
        max(measured) as highest_before
    from numbered
    where nth_newest between 2 and {{ dates + 1 }}
    group by 1
    having count(measured) >= {{ least_dates }}
)

select
    newest.feature,
    newest.as_of_date,
    '{{ metric }}' as metric,
    before.lowest_before,
    before.highest_before,
    newest.measured as measured_now
from numbered as newest
inner join before
    on newest.feature = before.feature
where
    newest.nth_newest = 1
    {% if times is not none %}
    and before.highest_before > 0
    and (
        newest.measured > {{ times }} * before.highest_before
        or newest.measured * {{ times }} < before.lowest_before
    )
    {% endif %}
    {% if by is not none %}
    and (
        newest.measured > before.highest_before + {{ by }}
        or newest.measured < before.lowest_before - {{ by }}
    )
    {% endif %}
{% endtest %}
