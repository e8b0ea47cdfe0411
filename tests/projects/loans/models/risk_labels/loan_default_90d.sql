-- Whether a running loan is written off within 90 days, the scoring day being the first of them.
-- Only once all of them are over.
with running_loans as (
    select * from {{ ref('int_running_loans') }}
),

loans as (
    select * from {{ ref('stg_bank__loans') }}
),

outcomes as (
    select
        running_loans.branch_code,
        running_loans.loan_no,
        running_loans.scored_on,
        loans.defaulted_on,
        cast({{ dbt.dateadd('day', 90, 'running_loans.scored_on') }} as date) as matures_on
    from running_loans
    inner join loans
        on
            running_loans.branch_code = loans.branch_code
            and running_loans.loan_no = loans.loan_no
),

loan_default_90d as (
    select
        branch_code,
        loan_no,
        scored_on,
        case when defaulted_on >= scored_on and defaulted_on < matures_on then 1 else 0 end as label,
        matures_on
    from outcomes
    where matures_on <= {{ today() }}
)

select * from loan_default_90d
