"""A process of the service that answers calls, calls, and starts programs meanwhile: prints how many calls failed."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import umbel_server  # noqa: F401  # Before gRPC, as in every program of the service.

import grpc  # isort: skip

PROGRAMS, CALLERS = 40, 2


def main() -> None:
    answer = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server = grpc.server(ThreadPoolExecutor(CALLERS))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"Ask": answer})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    over, failed, answered = threading.Event(), [], []

    def call() -> None:
        while not over.is_set():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                try:
                    answered.append(channel.unary_unary("/test/Ask")(b"?", timeout=30))
                except grpc.RpcError as exc:
                    failed.append(str(exc))

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for each in callers:
        each.start()
    for _ in range(PROGRAMS):
        # As the service starts its programs: with something to do in the child, Python really forks.
        subprocess.run([sys.executable, "-S", "-c", ""], check=True, preexec_fn=lambda: None)
    over.set()
    for each in callers:
        each.join()
    server.stop(0).wait()
    print(len(failed), len(answered) > PROGRAMS)


if __name__ == "__main__":
    main()
