-- An incremental build that stops half way, or a date left out, would show here: features and labels must cover the
-- spine, the labels as far as it has matured.
with spine as (
    select
        as_of_date,
        count(*) as households_count
    from {{ ref('int_household_as_of_dates') }}
    group by 1
),

features as (
    select
        as_of_date,
        count(*) as households_count
    from {{ ref('household_features') }}
    group by 1
),

labels as (
    select
        as_of_date,
        count(*) as households_count
    from {{ ref('household_lapse_28d') }}
    group by 1
)

select
    spine.as_of_date,
    spine.households_count,
    features.households_count as with_features_count,
    labels.households_count as with_label_count
from spine
left join features
    on spine.as_of_date = features.as_of_date
left join labels
    on spine.as_of_date = labels.as_of_date
where
    spine.households_count <> coalesce(features.households_count, 0)
    or (
        {{ dbt.dateadd('day', 28, 'spine.as_of_date') }} <= {{ today() }}
        and spine.households_count <> coalesce(labels.households_count, 0)
    )
