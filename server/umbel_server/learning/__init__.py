"""Federated runs: plan, drive each round's secure aggregation, step the model, keep the record."""
