-- What an account spends by card within 90 days, the scoring day being the first of them. A bill is recorded up to two
-- weeks after it happened, so only once those are over too is it known.
with running_loans as (
    select * from {{ ref('int_running_loans') }}
),

transactions as (
    select * from {{ ref('stg_bank__transactions') }}
),

borrowing_accounts as (
    select distinct
        account_no,
        scored_on,
        cast({{ dbt.dateadd('day', 90, 'scored_on') }} as date) as ends_on,
        cast({{ dbt.dateadd('day', 90 + 14, 'scored_on') }} as date) as matures_on
    from running_loans
),

account_card_spend_90d as (
    select
        borrowing_accounts.account_no,
        borrowing_accounts.scored_on,
        cast(coalesce(sum(-transactions.amount_chf), 0) as double) as label,
        borrowing_accounts.matures_on
    from borrowing_accounts
    left join transactions
        on
            borrowing_accounts.account_no = transactions.account_no
            and transactions.kind = 'card bill'
            and borrowing_accounts.scored_on <= transactions.occurred_at
            and borrowing_accounts.ends_on > transactions.occurred_at
            and borrowing_accounts.matures_on > transactions.recorded_on
    where borrowing_accounts.matures_on <= {{ today() }}
    group by 1, 2, 4
)

select * from account_card_spend_90d
