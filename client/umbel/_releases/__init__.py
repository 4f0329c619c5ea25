"""The versions of a model on a device: kept, tried, switched, and taken back."""
