"""Predictions on demand."""
