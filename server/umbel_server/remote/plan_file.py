"""A run's plan as it is sent to a service."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError


def fields_of(plan: Path) -> dict[str, Any]:
    """Return the fields of a plan's TOML file; what they name is at the service, and not looked for here.

    Raises:
        UsageError: The file cannot be read, is not TOML, or holds what JSON cannot say.
    """
    try:
        fields = tomllib.loads(plan.read_text("utf-8"))
        json.dumps(fields, allow_nan=False)
    except OSError as exc:
        raise UsageError(f"The plan {plan} cannot be read: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"The plan {plan} is not TOML: {exc}.") from exc
    except (TypeError, ValueError) as exc:
        raise UsageError(
            f"The plan {plan} holds a date or a number that no plan has: see the reference."
        ) from exc
    return fields
