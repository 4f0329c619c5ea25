"""Secure aggregation: the server learns a sum over a set of devices, once, and nothing else."""
