"""The service: the fleet, its gateway, its telemetry and its learning."""

import os

# What a service forks runs another program at once. gRPC's handlers of forks, which are for children that go on with
# gRPC, end the parent's own calls, and at times the parent. Read when gRPC starts; Flower's programs inherit it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
