"""Federated analytics: declared questions that a fleet answers with one noised sum."""
