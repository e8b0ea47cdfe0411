{# The clock: the day the project lives on, or the real one. Every "now" in the project asks here. #}
{% macro today() -%}
    {%- if var('today', none) -%} cast('{{ var("today") }}' as date) {%- else -%} current_date {%- endif -%}
{%- endmacro %}
