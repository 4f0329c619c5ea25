"""Rollouts: a new version reaches some devices, is compared with the old one, and goes on or is taken back."""
