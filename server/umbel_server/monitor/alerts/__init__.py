"""Alerts: rules that look at a fleet's figures, tell people what they find, and act."""
