"""The service: the fleet, its gateway, its telemetry and its learning."""

import os

# What a service forks runs another program at once. gRPC's handlers of forks, which are for children that go on with
# gRPC, end the parent's own calls, and at times the parent. Read when gRPC starts; Flower's programs inherit it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# gRPC's newer servers read from connections in threads of their own, which wake the one that takes events, for each call
# again. Without these that one reads itself, and a server's call costs less: docs/adr/0020-threads-of-the-gateway.md.
# Read when gRPC is imported; one that knows the name no longer takes no notice. Who has chosen experiments keeps theirs.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
