"""Pure functions over Arrow tables: declarations, encoding, training, evaluation, explanation, prediction, registry."""
