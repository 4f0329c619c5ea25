"""Governed models: their versions, stages, approvals and cards."""
