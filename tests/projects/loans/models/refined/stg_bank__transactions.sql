with source as (
    select * from {{ source('bank', 'transactions') }}
),

renamed as (
    select
        account_no,
        kind,
        cast(amount_chf as decimal(12, 2)) as amount_chf,
        cast(occurred_at as timestamp) as occurred_at,
        -- what the bank delivers after the first load was known when it came, whatever it says itself
        greatest(cast(recorded_on as date), cast(_known_at as date)) as recorded_on
    from source
)

select * from renamed
