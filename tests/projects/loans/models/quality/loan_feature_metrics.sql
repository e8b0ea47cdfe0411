-- Whether each feature of loans is sound on each scoring day.
with metrics as (
    select * from {{ feature_metrics(declared_features('loan_features'), of=ref('loan_features')) }}
)

select * from metrics
