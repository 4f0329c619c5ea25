"""Smaller forms of a model, made on the device."""
