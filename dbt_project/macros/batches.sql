{#
    Raw tables arrive in batches, and a batch is either in a model or not. These two keep an incremental model equal
    to what raw holds, however often it is built, without comparing rows:
    `forget_withdrawn_batches` (a pre-hook) deletes what raw no longer holds, `only_new_batches` selects what is new.
    With nothing new the filter is a constant the warehouse folds away, so that a build costs no scan.
#}
{% macro only_new_batches(source_relation, raw_column='_batch_id', column='batch_id') -%}
    {%- if not (execute and is_incremental()) -%}
    true
    {%- else -%}
    {%- set batches -%}
        select distinct {{ raw_column }} from {{ source_relation }}
        except
        select distinct {{ column }} from {{ this }}
    {%- endset -%}
    {%- set found = run_query(batches).columns[0].values() -%}
    {%- if found | length -%}
    {{ column }} in ({% for batch in found %}'{{ batch }}'{{ ', ' if not loop.last }}{% endfor %})
    {%- else -%}
    false
    {%- endif -%}
    {%- endif -%}
{%- endmacro %}

{% macro forget_withdrawn_batches(source_relation, raw_column='_batch_id', column='batch_id') -%}
    {%- if is_incremental() -%}
    delete from {{ this }} where {{ column }} not in (select distinct {{ raw_column }} from {{ source_relation }})
    {%- endif -%}
{%- endmacro %}
