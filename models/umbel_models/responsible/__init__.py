"""Responsible training: fairness, calibration, robustness and explanations, each with numbers for the card."""
