"""The product: a Litestar API and pages over published generations. Knows no warehouse."""
