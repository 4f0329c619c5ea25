"""Experiments: which of two versions is better for what people do with it, and who decided by what."""
