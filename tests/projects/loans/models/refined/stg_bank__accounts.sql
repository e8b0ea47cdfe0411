with source as (
    select * from {{ source('bank', 'accounts') }}
),

renamed as (
    select
        account_no,
        canton,
        segment,
        cast(customer_since as date) as customer_since,
        cast(monthly_income_chf as decimal(12, 2)) as declared_income_chf,
        cast(is_joint as boolean) as is_joint_account
    from source
)

select * from renamed
