"""The gateway: what devices talk to, outside of rounds, over gRPC."""
