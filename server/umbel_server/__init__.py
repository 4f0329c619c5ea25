"""The service: the fleet, its gateway, its telemetry and its learning."""
