"""Runs in MLflow's tracking server, over its REST API.

MLflow's own client, even the skinny one, brings some twenty packages and tells its makers how it is used unless it is
told not to. The API is seven calls of JSON that have not changed since version 2.0, and other servers speak it too. So
httpx makes them, which the service has anyway. That leaves out stores that no server is in front of.

Source: MLflow 3.17, "REST API", https://mlflow.org/docs/latest/rest-api.html.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from umbel_proto.errors import RefusedError, RemoteProtocolError, StorageError, UnavailableError, UsageError
from umbel_server.learning.exported import REASON, Exported, Point
from umbel_server.monitor.alerts.channels import check_url
from umbel_server.monitor.alerts.secret import fits_header
from umbel_server.monitor.alerts.send import cause

PATIENCE_S = 60.0
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer: a page of a thousand figures is 200 KB."""
TOKEN, USER, PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
"""Variables, as MLflow's own client reads them."""
MOST_METRICS, MOST_OTHERS = 1000, 100
"""What one call of log-batch takes."""
MAX_PARAMETER, MAX_TAG = 500, 5000
"""Characters of a value that every store takes."""
PAGE = 1000
_PREFIX = "/api/2.0/mlflow"
_STATES = {
    "running": "RUNNING",
    "paused": "RUNNING",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
_MAX_WORDS = 200


class Mlflow:
    """A tracking server, while the ``with`` block runs.

    Args:
        uri: Its URL, https, or http on this machine.
        environment: Environment variables: a token, or a user's name and password.
        ca: Certificates that the server's is checked against; None: the system's.

    Raises:
        UsageError: That is no such URL, or the token is none that can be sent.
        StorageError: The certificates cannot be read.
    """

    def __init__(self, uri: str, environment: Mapping[str, str], *, ca: Path | None = None) -> None:
        if wrong := check_url(uri, loopback=True):
            raise UsageError(f"The tracking URI {wrong}.")
        try:
            trust = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as exc:
            raise StorageError(f"{ca} holds no certificate that can be read.") from exc
        trust.minimum_version = ssl.TLSVersion.TLSv1_2
        token, user = environment.get(TOKEN), environment.get(USER)
        if token and not fits_header(token):
            raise UsageError(f"{TOKEN} is not one line of visible ASCII: set it anew.")
        # As it is: what is small when it is sent may be large when it is unpacked.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx.Client(
            base_url=uri.rstrip("/") + _PREFIX,
            verify=trust,
            headers=headers,
            auth=(user, environment.get(PASSWORD, "")) if user and not token else None,
            timeout=PATIENCE_S,
            follow_redirects=False,
            trust_env=False,  # Proxies would see the token.
        )

    def __enter__(self) -> Mlflow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def write(self, told: Exported, *, experiment: str) -> tuple[str, int]:
        """Write what is told of a run, and of its figures those that are not there yet.

        Args:
            told: What is told.
            experiment: The experiment's name; it is made where there is none.

        Returns:
            The run's id there, and how many figures were new.

        Raises:
            UnavailableError: The server does not answer.
            RefusedError: It refuses.
            RemoteProtocolError: It is no tracking server.
        """
        where = self._experiment(experiment)
        run, named = self._find(told, where) or (self._create(told, where), [])
        there = {(name, step) for name in named for step in self._steps(run, name)}
        new = [point for point in told.points if (point.name, point.round) not in there]
        parameters = [
            {"key": name, "value": _word(value)[:MAX_PARAMETER]} for name, value in told.plan.items()
        ]
        for some in _some(parameters, MOST_OTHERS):
            self._post("runs/log-batch", run_id=run, params=some)
        for points in _some(new, MOST_METRICS):
            self._post("runs/log-batch", run_id=run, metrics=[_metric(each) for each in points])
        self._post("runs/log-batch", run_id=run, tags=_tags(told))
        ended = {} if told.finished_s is None else {"end_time": _ms(told.finished_s)}
        self._post("runs/update", run_id=run, status=_STATES[told.state], **ended)
        return run, len(new)

    def _experiment(self, name: str) -> str:
        found = self._get("experiments/get-by-name", missing=True, experiment_name=name)
        if found is None:
            return str(self._post("experiments/create", name=name)["experiment_id"])
        if found["experiment"].get("lifecycle_stage") == "deleted":
            raise RefusedError(f"The experiment {name} was deleted in MLflow: restore it, or name another.")
        return str(found["experiment"]["experiment_id"])

    def _find(self, told: Exported, experiment: str) -> tuple[str, list[str]] | None:
        """Return the run's id and the names of its figures; None: it is not there."""
        same = " and ".join(
            f"tags.`{name}` = '{told.about[name]}'" for name in ("umbel.run", "umbel.created_s")
        )
        found = self._post("runs/search", experiment_ids=[experiment], filter=same, max_results=1)
        for run in found.get("runs", ()):
            return str(run["info"]["run_id"]), [each["key"] for each in run["data"].get("metrics", ())]
        return None

    def _create(self, told: Exported, experiment: str) -> str:
        made = self._post(
            "runs/create",
            experiment_id=experiment,
            run_name=told.run,
            start_time=_ms(told.created_s),
            tags=_tags(told),
        )
        return str(made["run"]["info"]["run_id"])

    def _steps(self, run: str, name: str) -> Iterator[int]:
        token = ""
        while True:
            page = self._get(
                "metrics/get-history", run_id=run, metric_key=name, max_results=PAGE, page_token=token or None
            )
            yield from (int(each["step"]) for each in page.get("metrics", ()))
            before, token = token, page.get("next_page_token", "")
            if not token or token == before:
                return

    def _get(self, path: str, *, missing: bool = False, **query: Any) -> Any:
        asked = {name: value for name, value in query.items() if value is not None}
        return self._send(self._http.build_request("GET", f"/{path}", params=asked), missing=missing)

    def _post(self, path: str, **body: Any) -> Any:
        return self._send(self._http.build_request("POST", f"/{path}", json=body))

    def _send(self, request: httpx.Request, *, missing: bool = False) -> Any:
        where = f"{request.url.host}"
        try:
            answer = self._read(self._http.send(request, stream=True), where)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise UnavailableError(f"MLflow at {where} does not answer: {cause(exc)}.") from None
        try:
            told = answer.json()
            if answer.is_success and isinstance(told, dict):
                return told
            code, words = str(told["error_code"]), str(told.get("message", ""))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            code, words = "", ""
        if missing and code == "RESOURCE_DOES_NOT_EXIST":
            return None
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise RefusedError(
                f"MLflow at {where} does not let you: set {TOKEN}, or {USER} and {PASSWORD}, and ask its operator."
            )
        if not code:
            raise RemoteProtocolError(where, f"it answered {answer.status_code}: is that an MLflow server?")
        said = " ".join("".join(each if each.isprintable() else " " for each in words).split())[:_MAX_WORDS]
        raise RefusedError(f"MLflow at {where} refuses: {code}, {said}")

    def _read(self, answer: httpx.Response, where: str) -> httpx.Response:
        """Return an answer with its body, which is read no further than it may be."""
        body = bytearray()
        with contextlib.closing(answer):
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_ANSWER:
                    raise RemoteProtocolError(where, f"it answers with more than {MAX_ANSWER} bytes")
        return httpx.Response(answer.status_code, content=bytes(body))


def _metric(point: Point) -> dict[str, Any]:
    return {"key": point.name, "value": point.value, "step": point.round, "timestamp": _ms(point.at_s)}


def _tags(told: Exported) -> list[dict[str, str]]:
    return [{"key": name, "value": value[:MAX_TAG]} for name, value in told.about.items() if name != REASON]


def _word(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ms(at_s: float) -> int:
    return round(at_s * 1000)


def _some(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + most] for first in range(0, len(items), most))
