{# None of these columns is ever null. One scan for all of them. #}
{% test none_missing(model, columns) %}
select *
from {{ model }}
where {% for column in columns %}{{ column }} is null{{ ' or ' if not loop.last }}{% endfor %}
{% endtest %}
