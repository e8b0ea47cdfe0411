{#
    What a feature model declares, for `feature_metrics`: {as_of: <column>, columns: [{name, data_type}, …]}, of which
    the keys that its config.meta names are left out. dbt knows the columns of other models only once it executes.
#}
{% macro declared_features(model) -%}
    {%- if not execute -%} {{ return({'as_of': none, 'columns': []}) }} {%- endif -%}
    {%- if graph.nodes is not defined -%}
    {{ exceptions.raise_compiler_error(
        "declared_features: a unit test doesn't know other models' columns: name them in its overrides"
        ~ " (macros: {declared_features: {as_of: …, columns: [{name: …, data_type: …}]}})"
    ) }}
    {%- endif -%}
    {%- set models = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') -%}
    {%- set node = models | selectattr('name', 'equalto', model) | first -%}
    {%- if not node -%}
    {{ exceptions.raise_compiler_error("declared_features: '" ~ model ~ "' is no model of the project") }}
    {%- endif -%}
    {%- set meta = node.config.meta -%}
    {%- if not meta.entity or not meta.as_of -%}
    {{ exceptions.raise_compiler_error(
        node.original_file_path ~ ": model '" ~ model ~ "': config.meta lacks entity or as_of"
        ~ " (write meta: {entity: <column or list of columns>, as_of: <column>})"
    ) }}
    {%- endif -%}
    {%- set keys = ([meta.entity] if meta.entity is string else meta.entity) + [meta.as_of] -%}
    {{ return({
        'as_of': meta.as_of,
        'columns': node.columns.values() | rejectattr('name', 'in', keys) | list
    }) }}
{%- endmacro %}

{#
    Whether features are sound, as a subquery: one row per as-of date × feature of `of`, the feature model's table, or of
    its rows `where` something holds. `features` is what `declared_features` says of the model.

        select * from {{ feature_metrics(declared_features('household_features'), of=ref('household_features')) }}

    rows_count, null_count, null_share
    distinct_count          values that differ, null not counted
    most_frequent_share     share of the most frequent value among the rows that have one. Null where none has
    minimum, maximum, mean  of numbers; of booleans as 0 and 1; of dates and times as days from then to the as-of date.
                            Null of text, and where no row has a value

    Rows are counted per value first, and the rest is told from that: half the time of count(distinct), avg(), … each.
#}
{% macro feature_metrics(features, of, where='true') -%}
(
    with features as (
        select * from {{ of }}
        where {{ where }}
    ),

    counted as (
        {%- set as_of = 'features.' ~ features.as_of %}
        {%- for column in features.columns %}
        {%- set value = 'features.' ~ column.name %}
        select
            {{ as_of }} as as_of_date,
            '{{ column.name }}' as feature,
            cast({{ feature_as_number(value, column.data_type, as_of) or 'null' }} as double precision) as number_value,
            {{ value }} is not null as is_known,
            count(*) as rows_count
        from features
        group by {{ as_of }}, {{ value }}
        {{ 'union all' if not loop.last }}
        {%- endfor %}
    ),

    totals as (
        select
            as_of_date,
            feature,
            sum(rows_count) as rows_count,
            sum(case when is_known then rows_count else 0 end) as known_count,
            count(case when is_known then 1 end) as distinct_count,
            max(case when is_known then rows_count end) as most_frequent_count,
            min(number_value) as minimum,
            max(number_value) as maximum,
            sum(number_value * rows_count) as total
        from counted
        group by 1, 2
    )

    select
        cast(as_of_date as date) as as_of_date,
        feature,
        cast(rows_count as integer) as rows_count,
        cast(rows_count - known_count as integer) as null_count,
        cast(rows_count - known_count as double precision) / rows_count as null_share,
        cast(distinct_count as integer) as distinct_count,
        cast(most_frequent_count as double precision) / nullif(known_count, 0) as most_frequent_share,
        minimum,
        maximum,
        total / nullif(known_count, 0) as mean
    from totals
) as feature_metrics
{%- endmacro %}

{# A feature's value as a number; nothing where it is text, as every type is that is not known here. #}
{% macro feature_as_number(value, data_type, as_of) -%}
    {%- set type = data_type | lower -%}
    {%- set numbers = '(u?(tiny|small|medium|big|huge|byte)?int(?!erval)|decimal|(big)?numeric|number|float|double|real)' -%}
    {%- if modules.re.match('bool', type) -%}
    case when {{ value }} then 1 when not {{ value }} then 0 end
    {%- elif modules.re.match('date|timestamp', type) -%}
    {{ dbt.datediff(value, as_of, 'day') }}
    {%- elif modules.re.match(numbers, type) -%}
    {{ value }}
    {%- endif -%}
{%- endmacro %}
