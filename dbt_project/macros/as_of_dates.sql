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

{#
    In an incremental build, only the as-of dates that the model does not have yet; else all of them.
    It asks the model for its newest date while compiling, so that the warehouse reads a constant: with no new date
    the filter folds to false and nothing is read at all.

    horizon_days: a date is due only when so many days have passed since (labels mature late).
    margin_days: for facts instead of as-of dates, how many days before the newest date are still needed.
#}
{% macro only_new_as_of_dates(column, horizon_days=0, margin_days=0) -%}
    {%- set as_of_dates = ref('int_as_of_dates') -%}
    {%- if not (execute and is_incremental()) -%}
    true
    {%- else -%}
    {%- set newest -%}
        select
            (select max(as_of_date) from {{ this }}) as built,
            (
                select max(as_of_date) from {{ as_of_dates }}
                where {{ dbt.dateadd('day', horizon_days, 'as_of_date') }} <= {{ today() }}
            ) as due
    {%- endset -%}
    {%- set built, due = run_query(newest).rows[0].values() -%}
    {%- if built is none -%}
    true
    {%- elif due is none or due <= built -%}
    false
    {%- else -%}
    {%- set newest_built = "cast('" ~ built ~ "' as date)" -%}
    {{ column }} > {{ dbt.dateadd('day', -margin_days, newest_built) if margin_days else newest_built }}
    {%- endif -%}
    {%- endif -%}
{%- endmacro %}
