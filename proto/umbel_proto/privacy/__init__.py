"""Distributed differential privacy: encode, noise, plan, account."""
