{# Whole cents as dollars. #}
{% macro usd(cents) -%}
    cast({{ cents }} as double precision) / 100
{%- endmacro %}

{# A part of a whole, null where there is no whole. #}
{% macro share(part, whole) -%}
    cast({{ part }} as double precision) / nullif({{ whole }}, 0)
{%- endmacro %}

{# A count that is 0, not unknown, where nothing was found. #}
{% macro count_or_zero(number) -%}
    cast(coalesce({{ number }}, 0) as integer)
{%- endmacro %}
