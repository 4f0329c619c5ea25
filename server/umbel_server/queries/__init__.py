"""Federated analytics: questions put to a fleet, and what its noised sums say."""
