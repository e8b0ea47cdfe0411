{#
    Point in time: a row that speaks for an as-of date uses only facts that happened before it and were known before it.
    What happens, or becomes known, on the date itself is not known on its morning: both comparisons are strict.
    The two macros make the right way the short way. They are portable SQL and need nothing else of this project: copy
    this file into another one. tests/projects/loans does, and its unit tests put a fact on each boundary.
#}

{#
    A condition: the fact may be used on the as-of date, and lies in the window of `days` before it, if one is given.
    The window's first day counts: with days=7 and an as-of date of the 8th the window is the 1st to the 7th.

    as_of, occurred, known: SQL of the as-of date, of when the fact happened, and of when the business could know it.
    Dates or timestamps; of a timestamp on the as-of date nothing counts, not even midnight.
#}
{% macro as_of_window(as_of, occurred, known, days=none) -%}
    (
        {{ as_of }} > {{ occurred }}
        and {{ as_of }} > {{ known }}
        {%- if days is not none %}
        and {{ occurred }} >= {{ dbt.dateadd('day', -days, as_of) }}
        {%- endif %}
    )
{%- endmacro %}

{#
    A subquery: for each row of `spine` the newest row of `facts` that may be used on its as-of date: the spine's as_of and
    all columns of `facts`, which may have a valid_from and a valid_to of their own.

        select * from {{ latest_as_of('spine', 'prices', key='product_id', as_of='as_of_date', …) }} as latest

    A spine row of which nothing is known yet is not in it, so left join it. A fact that becomes
    known late counts from then on, or never where a newer one was known before it; one without occurred or known never.

    spine, facts: names of relations or CTEs. key: the columns (one, or a list) that both have.
    as_of: the spine's column, which the facts must not have. occurred, known: columns of the facts.
    then_by: a column that tells apart what happened and was known at the same time; its greatest counts.

    The facts become intervals (pit_valid_from, pit_valid_to] once, by their own keys, and are then joined: no row of the
    spine is multiplied by the history of its key, so that many dates cost little more than one.
#}
{% macro latest_as_of(spine, facts, key, as_of, occurred, known, then_by=none) -%}
    {%- set keys = [key] if key is string else key -%}
(
    select
        pit_spine.{{ as_of }},
        pit_valid.*
    from {{ spine }} as pit_spine
    inner join (
        select
            pit_known.*,
            -- The first moment at which one that happened later was known.
            min(pit_known.pit_valid_from) over (
                partition by {{ keys | join(', ') }}
                order by {{ occurred }} desc, {{ known }} desc{{ ', ' ~ then_by ~ ' desc' if then_by }}
                rows between unbounded preceding and 1 preceding
            ) as pit_valid_to
        from (
            select
                pit_facts.*,
                case
                    when {{ known }} > {{ occurred }} then cast({{ known }} as timestamp)
                    when {{ known }} is not null then cast({{ occurred }} as timestamp)
                end as pit_valid_from
            from {{ facts }} as pit_facts
        ) as pit_known
    ) as pit_valid
        on
            {% for column in keys -%}
            pit_spine.{{ column }} = pit_valid.{{ column }}
            and {% endfor -%}
            cast(pit_spine.{{ as_of }} as timestamp) > pit_valid.pit_valid_from
            and (pit_valid.pit_valid_to is null or cast(pit_spine.{{ as_of }} as timestamp) <= pit_valid.pit_valid_to)
)
{%- endmacro %}
