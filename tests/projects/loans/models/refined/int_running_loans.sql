-- Whose risk there is to tell, and when: paid out before the day and, as far as is known on its morning, not over.
with loans as (
    select * from {{ ref('stg_bank__loans') }}
),

scoring_days as (
    select * from {{ ref('int_scoring_days') }}
),

running_loans as (
    select
        loans.branch_code,
        loans.loan_no,
        loans.account_no,
        scoring_days.scored_on
    from loans
    inner join scoring_days
        on
            loans.opened_on < scoring_days.scored_on
            and (loans.closed_on is null or loans.closed_on >= scoring_days.scored_on)
            and (loans.defaulted_on is null or loans.defaulted_on >= scoring_days.scored_on)
)

select * from running_loans
