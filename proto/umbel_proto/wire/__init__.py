"""The messages and services on the wire, compiled from the .proto files here by proto/generate.py."""
