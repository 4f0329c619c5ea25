"""Where figures are pushed to: table [otlp] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_proto.errors import UsageError
from umbel_server.fleet.table import Table, setting
from umbel_server.monitor.alerts.channels import check_url

PATH = "/v1/metrics"
"""What an endpoint's URL is continued with.

Source: OTLP specification 1.9, section "OTLP/HTTP Request".
"""


@dataclass(frozen=True, slots=True)
class OtlpSettings(Table):
    """Where the figures of ``/metrics`` are pushed to.

    Args:
        endpoint: The receiver's https URL, without ``/v1/metrics``; empty: nowhere.
        headers_file: A file with headers to send, as ``Name: value``, a line each; empty: none.
        headers_env: The name of a variable that holds them.
        ca_file: Certificates that the receiver's is checked against; empty: the system's.
        interval_s: How often, seconds.
    """

    TABLE: ClassVar[str] = "otlp"
    NOTE: ClassVar[str] = "umbel serve otlp pushes what /metrics tells; off while endpoint is empty"

    endpoint: str = setting("the receiver's https URL, to which /v1/metrics is added", "")
    headers_file: str = setting("a file in this directory with headers, Name: value; empty: none", "")
    headers_env: str = setting("or an environment variable with them", "")
    ca_file: str = setting("certificates to check the receiver's against; empty: the system's", "")
    interval_s: int = setting("how often, seconds", 60, between=(1, 3600))

    def __post_init__(self) -> None:
        Table.__post_init__(self)
        if self.endpoint and (wrong := check_url(self.endpoint)):
            raise UsageError(f"endpoint of [otlp] {wrong}.")
        if self.endpoint.rstrip("/").endswith(PATH):
            raise UsageError(f"endpoint of [otlp] is to end before {PATH}, which is added to it.")
        if self.headers_file and self.headers_env:
            raise UsageError("[otlp] has headers_file and headers_env: keep one of them.")

    @property
    def url(self) -> str:
        """Where metrics are posted to."""
        return self.endpoint.rstrip("/") + PATH
