{# Where they are known, these columns lie between at_least and at_most, both included. One scan for all of them. #}
{% test within(model, columns, at_least=none, at_most=none) %}
select *
from {{ model }}
where
    {% for column in columns %}
    {% if at_least is not none %}{{ column }} < {{ at_least }}{{ ' or ' if at_most is not none }}{% endif %}
    {% if at_most is not none %}{{ column }} > {{ at_most }}{% endif %}
    {{ ' or ' if not loop.last }}
    {% endfor %}
{% endtest %}
