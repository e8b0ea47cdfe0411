{% macro first_as_of_date() -%}
    cast('{{ var("first_as_of_date") }}' as date)
{%- endmacro %}

{# A window of days as a number of panes. Windows are whole weeks, so as-of dates come every day or every week. #}
{% macro panes(days) -%}
    {%- if days % var('as_of_every_days') -%}
    {{ exceptions.raise_compiler_error(
        "dbt_project.yml: vars: as_of_every_days: a window of " ~ days ~ " days is no whole number of "
        ~ var('as_of_every_days') ~ "-day panes (known to work: 1, 7)"
    ) }}
    {%- endif -%}
    {{ days // var('as_of_every_days') }}
{%- endmacro %}

{# The number of the pane that a day falls in: that of the first as-of date after it. #}
{% macro pane_of(day) -%}
    cast(
        floor({{ dbt.datediff(first_as_of_date(), day, 'day') }} * 1.0 / {{ var('as_of_every_days') }}) as integer
    ) + 1
{%- endmacro %}

{#
    A new as-of date costs that date. An incremental model of as-of dates builds those that it does not have yet, and
    those from var `as_of_from` to var `as_of_to`, which make backfill sets. The macros below say so to all that it
    reads: which dates are to be built, and which facts lie near enough to them to count. A date is there when it has a
    row: a model that finds nothing on many dates has to begin with the spine, or would build them in every run.

    They ask the model for its dates while it is compiled, so that the warehouse reads constants: with nothing to build
    the filters fold to false and no table is read at all. Otherwise, and outside of an incremental build, they are true.
#}

{# The rows of int_as_of_dates that are to be built, the oldest first; none (not an empty list) where all of them are.
   horizon_days: a date is due only when so many days have passed since (labels mature late). #}
{% macro as_of_dates_to_build(horizon_days=0) -%}
    {%- set as_of_dates = ref('int_as_of_dates') -%}
    {%- if not (execute and is_incremental()) -%}
    {{ return(none) }}
    {%- endif -%}
    {%- set to_build -%}
        select as_of_date, as_of_number
        from {{ as_of_dates }} as due
        where
            {{ dbt.dateadd('day', horizon_days, 'as_of_date') }} <= {{ today() }}
            and (
                not exists (select 1 from {{ this }} as built where built.as_of_date = due.as_of_date)
                {% if var('as_of_from', none) or var('as_of_to', none) -%}
                or (
                    as_of_date >= cast('{{ var("as_of_from", "0001-01-01") or "0001-01-01" }}' as date)
                    and as_of_date <= cast('{{ var("as_of_to", "9999-12-31") or "9999-12-31" }}' as date)
                )
                {%- endif %}
            )
        order by as_of_date
    {%- endset -%}
    {{ return(run_query(to_build).rows) }}
{%- endmacro %}

{# Rows of an as-of date that is to be built. #}
{% macro only_new_as_of_dates(column, horizon_days=0) -%}
    {%- set dates = as_of_dates_to_build(horizon_days) -%}
    {%- if dates is none -%}
    true
    {%- elif not dates | length -%}
    false
    {%- else -%}
    {{ column }} in (
        {%- for date in dates %}cast('{{ date[0] }}' as date){{ ', ' if not loop.last }}{% endfor -%}
    )
    {%- endif -%}
{%- endmacro %}

{# Facts of the days from days_before the first date that is to be built up to, but without, days_after the last. #}
{% macro near_new_as_of_dates(column, days_before=0, days_after=0, horizon_days=0) -%}
    {%- set dates = as_of_dates_to_build(horizon_days) -%}
    {%- if dates is none -%}
    true
    {%- elif not dates | length -%}
    false
    {%- else -%}
    {%- set first = "cast('" ~ dates[0][0] ~ "' as date)" -%}
    {%- set last = "cast('" ~ dates[-1][0] ~ "' as date)" -%}
    {{ column }} >= {{ dbt.dateadd('day', -days_before, first) }}
    and {{ column }} < {{ dbt.dateadd('day', days_after, last) }}
    {%- endif -%}
{%- endmacro %}

{# Panes of the windows of so many days before the dates that are to be built. #}
{% macro panes_of_new_as_of_dates(column, days) -%}
    {%- set dates = as_of_dates_to_build() -%}
    {%- if dates is none -%}
    true
    {%- elif not dates | length -%}
    false
    {%- else -%}
    {{ column }} between {{ dates[0][1] - panes(days) | int + 1 }} and {{ dates[-1][1] }}
    {%- endif -%}
{%- endmacro %}
