{#
    A UTC timestamp on the clock of the stores.
    Warehouses differ here: add <warehouse>__store_time where this one fails.
#}
{% macro store_time(utc) -%}
    {{ adapter.dispatch('store_time')(utc) }}
{%- endmacro %}

{% macro default__store_time(utc) -%}
    ({{ utc }} at time zone 'UTC' at time zone '{{ var("store_time_zone") }}')
{%- endmacro %}
