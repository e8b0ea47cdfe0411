-- One row per loan × scoring day, of what was known before the day: a transaction counts if it happened before it
-- and was recorded before it. How a loan ends is no part of it.
with running_loans as (
    select * from {{ ref('int_running_loans') }}
),

loans as (
    select * from {{ ref('stg_bank__loans') }}
),

accounts as (
    select * from {{ ref('stg_bank__accounts') }}
),

transactions as (
    select * from {{ ref('stg_bank__transactions') }}
),

account_days as (
    select distinct
        account_no,
        scored_on
    from running_loans
),

known_transactions as (
    select
        account_days.account_no,
        account_days.scored_on,
        transactions.kind,
        transactions.amount_chf,
        transactions.occurred_at,
        transactions.occurred_at >= {{ dbt.dateadd('day', -90, 'account_days.scored_on') }} as is_within_90d
    from account_days
    inner join transactions
        on
            account_days.account_no = transactions.account_no
            and {{ as_of_window(
                'account_days.scored_on', 'transactions.occurred_at', 'transactions.recorded_on', days=365
            ) }}
),

behaviour as (
    select
        account_no,
        scored_on,
        count(case when kind = 'instalment returned' and is_within_90d then 1 end) as returned_90d_count,
        count(case when kind = 'instalment returned' then 1 end) as returned_365d_count,
        count(case when kind = 'salary' and is_within_90d then 1 end) as salaries_90d_count,
        sum(case when kind = 'salary' and is_within_90d then amount_chf end) as salary_90d_chf,
        sum(case when kind = 'card bill' and is_within_90d then -amount_chf end) as card_90d_chf,
        avg(case when kind = 'salary' then amount_chf end) as mean_salary_chf,
        max(case when kind = 'salary' then occurred_at end) as last_salary_at,
        max(case when kind = 'instalment returned' then occurred_at end) as last_returned_at
    from known_transactions
    group by 1, 2
),

loan_features as (
    select
        running_loans.branch_code,
        running_loans.loan_no,
        running_loans.scored_on,
        loans.purpose,
        loans.amount_chf,
        loans.annual_rate_pct,
        loans.term_months_count,
        loans.has_guarantor,
        loans.collateral_chf,
        loans.approved_at,
        loans.opened_on,
        cast({{ dbt.datediff('loans.opened_on', 'running_loans.scored_on', 'month') }} as integer)
            as months_on_book_count,
        accounts.canton,
        accounts.segment,
        accounts.customer_since,
        accounts.is_joint_account,
        accounts.declared_income_chf,
        cast(loans.instalment_chf / nullif(behaviour.mean_salary_chf, 0) as double) as instalment_to_salary_ratio,
        cast(coalesce(behaviour.salaries_90d_count, 0) as integer) as salaries_90d_count,
        cast(behaviour.salary_90d_chf as decimal(14, 2)) as salary_90d_chf,
        cast(behaviour.card_90d_chf as decimal(14, 2)) as card_90d_chf,
        cast(behaviour.card_90d_chf / nullif(behaviour.salary_90d_chf, 0) as double) as card_to_salary_90d_ratio,
        cast(coalesce(behaviour.returned_90d_count, 0) as integer) as returned_90d_count,
        cast(coalesce(behaviour.returned_365d_count, 0) as integer) as returned_365d_count,
        cast(
            {{ dbt.datediff('behaviour.last_returned_at', 'running_loans.scored_on', 'day') }} as integer
        ) as days_since_returned,
        behaviour.last_salary_at
    from running_loans
    inner join loans
        on
            running_loans.branch_code = loans.branch_code
            and running_loans.loan_no = loans.loan_no
    inner join accounts
        on running_loans.account_no = accounts.account_no
    left join behaviour
        on
            running_loans.account_no = behaviour.account_no
            and running_loans.scored_on = behaviour.scored_on
)

select * from loan_features
