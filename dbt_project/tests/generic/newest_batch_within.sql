{# In the newest batch of each raw table this column, where it is known, lies between at_least and at_most. #}
{% test newest_batch_within(model, column_name, at_least=none, at_most=none) %}
select *
from {{ model }}
where
    is_newest
    and status = 'landed'
    and not (
        {{ column_name }} >= {{ at_least if at_least is not none else column_name }}
        and {{ column_name }} <= {{ at_most if at_most is not none else column_name }}
    )
{% endtest %}
