"""Schemathesis over the whole description of the API, against the API as it really listens.

Whatever is sent: no answer but those that the description has, none of them a failure of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api_world import ApiWorld, api_world
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.api.app import make_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
DESCRIBED = schemathesis.openapi.from_dict(make_app().openapi())
OPERATIONS: dict[str, Any] = {
    operation.label: operation for operation in (each.ok() for each in DESCRIBED.get_all_operations())
}
REFUSES = {"POST /api/v1/sign-in", "POST /api/v1/sign-out"}
"""What says 401 to a password that is not one, and to a token that it took back itself."""
EXAMPLES = 6
"""For each operation. Enough for every bound of every field to be crossed over some runs of CI."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiWorld]:
    with api_world(tmp_path_factory.mktemp("fuzzed")) as made:
        made.user("root", Role.ADMIN)
        made.device("nobody")
        yield made


@pytest.fixture(scope="module")
def session(world: ApiWorld) -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_whatever_is_sent_the_answer_is_one_that_the_description_has(
    world: ApiWorld, session: requests.Session, label: str
) -> None:
    token = world.token("root", HELD[Role.ADMIN])

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy())
    def sent(case: Any) -> None:
        answer = case.call(
            base_url=str(world.client.base_url).rstrip("/"),
            session=session,
            verify=str(world.fleet.ca_pem),
            headers={"Authorization": f"Bearer {token}"},
        )
        case.validate_response(answer, checks=CHECKS)
        assert answer.status_code != 401 or label in REFUSES
        assert b"Traceback" not in answer.content

    sent()
