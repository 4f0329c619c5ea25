"""The tasks umbel ships: data, model, contract, graphs."""
