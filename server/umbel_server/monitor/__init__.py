"""Monitoring: telemetry is opened, summed and reported."""
