with source as (
    select * from {{ source('bank', 'loans') }}
),

renamed as (
    select
        branch_code,
        loan_no,
        account_no,
        purpose,
        cast(amount as decimal(12, 2)) as amount_chf,
        cast(rate_pct as decimal(5, 2)) as annual_rate_pct,
        cast(months as integer) as term_months_count,
        cast(instalment as decimal(12, 2)) as instalment_chf,
        cast(guarantor as boolean) as has_guarantor,
        cast(collateral as decimal(12, 2)) as collateral_chf,
        cast(approved_at as timestamp) as approved_at,
        cast(opened_on as date) as opened_on,
        cast(closed_on as date) as closed_on,
        cast(defaulted_on as date) as defaulted_on
    from source
)

select * from renamed
