-- One row per account that a loan is paid from × scoring day, of what was known before the day: a transaction counts
-- if it happened before it and was recorded before it.
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

borrowing_accounts as (
    select
        running_loans.account_no,
        running_loans.scored_on,
        count(*) as running_loans_count,
        sum(loans.instalment_chf) as instalments_chf
    from running_loans
    inner join loans
        on
            running_loans.branch_code = loans.branch_code
            and running_loans.loan_no = loans.loan_no
    group by 1, 2
),

known_transactions as (
    select
        borrowing_accounts.account_no,
        borrowing_accounts.scored_on,
        transactions.kind,
        transactions.amount_chf,
        transactions.occurred_at,
        transactions.occurred_at >= {{ dbt.dateadd('day', -90, 'borrowing_accounts.scored_on') }} as is_within_90d
    from borrowing_accounts
    inner join transactions
        on
            borrowing_accounts.account_no = transactions.account_no
            and {{ as_of_window(
                'borrowing_accounts.scored_on', 'transactions.occurred_at', 'transactions.recorded_on', days=365
            ) }}
),

behaviour as (
    select
        account_no,
        scored_on,
        count(case when kind = 'card bill' and is_within_90d then 1 end) as card_bills_90d_count,
        sum(case when kind = 'card bill' and is_within_90d then -amount_chf end) as card_90d_chf,
        avg(case when kind = 'card bill' then -amount_chf end) as mean_card_bill_365d_chf,
        avg(case when kind = 'salary' then amount_chf end) as mean_salary_365d_chf
    from known_transactions
    group by 1, 2
),

card_bills as (
    select * from transactions
    where kind = 'card bill'
),

last_card_bills as (
    select *
    from {{ latest_as_of(
        'borrowing_accounts',
        'card_bills',
        key='account_no',
        as_of='scored_on',
        occurred='occurred_at',
        known='recorded_on',
        then_by='amount_chf'
    ) }} as latest
),

account_features as (
    select
        borrowing_accounts.account_no,
        borrowing_accounts.scored_on,
        accounts.segment,
        accounts.customer_since,
        accounts.is_joint_account,
        accounts.declared_income_chf,
        cast(borrowing_accounts.running_loans_count as integer) as running_loans_count,
        cast(borrowing_accounts.instalments_chf as decimal(12, 2)) as instalments_chf,
        cast(coalesce(behaviour.card_bills_90d_count, 0) as integer) as card_bills_90d_count,
        cast(behaviour.card_90d_chf as decimal(14, 2)) as card_90d_chf,
        cast(behaviour.mean_card_bill_365d_chf as double) as mean_card_bill_365d_chf,
        cast(behaviour.mean_salary_365d_chf as double) as mean_salary_365d_chf,
        last_card_bills.occurred_at as last_card_bill_at,
        cast(-last_card_bills.amount_chf as decimal(12, 2)) as last_card_bill_chf
    from borrowing_accounts
    inner join accounts
        on borrowing_accounts.account_no = accounts.account_no
    left join behaviour
        on
            borrowing_accounts.account_no = behaviour.account_no
            and borrowing_accounts.scored_on = behaviour.scored_on
    left join last_card_bills
        on
            borrowing_accounts.account_no = last_card_bills.account_no
            and borrowing_accounts.scored_on = last_card_bills.scored_on
)

select * from account_features
