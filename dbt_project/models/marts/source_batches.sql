-- What each load brought, for people who ask whether today's numbers are whole.
{{ config(materialized='view') }}

with metrics as (
    select * from {{ source('quality', 'source_metrics') }}
),

numbered as (
    select
        schema_name,
        table_name,
        batch_id,
        source as source_name,
        loaded_at,
        status,
        fault,
        rows as rows_count,
        rejected as rejected_rows_count,
        cast(rejected as double precision) / nullif(rows, 0) as rejected_share,
        volume_ratio,
        -- By the clock of now: of a source that has gone silent no batch comes that would tell.
        case
            when freshness_lag_seconds is not null
                then cast({{ dbt.datediff('cast(cursor_max as timestamp)', today(), 'day') }} as double precision)
        end as freshness_lag_days,
        row_number() over (
            partition by schema_name, table_name, status
            order by loaded_at desc, batch_id asc
        ) as nth_newest
    from metrics
),

batches as (
    select
        schema_name,
        table_name,
        batch_id,
        source_name,
        loaded_at,
        status,
        fault,
        rows_count,
        rejected_rows_count,
        rejected_share,
        volume_ratio,
        freshness_lag_days,
        nth_newest = 1 as is_newest
    from numbered
)

select * from batches
