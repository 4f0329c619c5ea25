"""The examples on this device, and what their owner allows."""
