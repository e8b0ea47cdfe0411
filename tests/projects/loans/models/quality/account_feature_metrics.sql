-- Whether each feature of accounts is sound on each scoring day.
with metrics as (
    select * from {{ feature_metrics(declared_features('account_features'), of=ref('account_features')) }}
)

select * from metrics
