{% macro first_scored_on() -%}
    cast('{{ var("first_scored_on") }}' as date)
{%- endmacro %}
