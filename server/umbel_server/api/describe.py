"""Print the API's description: ``python -m umbel_server.api.describe > docs/reference/openapi.json``."""

from __future__ import annotations

import json

from umbel_server.api.app import make_app


def description() -> str:
    """Return the API's OpenAPI 3.1 description, as it is committed."""
    return json.dumps(make_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(description(), end="")
