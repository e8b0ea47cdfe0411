-- Two labels tell the same 28 days. If they disagree, one of them looks at other days.
with lapse as (
    select * from {{ ref('household_lapse_28d') }}
),

spend as (
    select * from {{ ref('household_spend_28d') }}
)

select
    lapse.household_id,
    lapse.as_of_date
from lapse
inner join spend
    on
        lapse.household_id = spend.household_id
        and lapse.as_of_date = spend.as_of_date
where lapse.label = 1 and spend.label <> 0
