"""Forms as browsers send them: names and texts, read once at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from umbel_proto.errors import UsageError
from umbel_server.api.texts import keepable

CSRF = "csrf"
"""The field with the session's token."""
MAX_FIELDS = 2000
MAX_WORDS = 2000
FORM_TYPE = "application/x-www-form-urlencoded"


class Form:
    """What somebody sent with a form.

    Args:
        fields: The texts of each field, in order.
    """

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    @classmethod
    def read(cls, content_type: str, body: bytes) -> Form:
        """Return the form of a request's body.

        Raises:
            UsageError: It is no form.
        """
        fields: dict[str, list[str]] = {}
        if body and content_type.partition(";")[0].strip().lower() != FORM_TYPE:
            raise UsageError("The form cannot be read: send it from the console's own pages.")
        try:
            pairs = parse_qsl(
                body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
            )
            for name, text in pairs:
                fields.setdefault(name, []).append(keepable(text))
        except ValueError as exc:
            raise UsageError("The form cannot be read: send it from the console's own pages.") from exc
        return cls(fields)

    def text(self, name: str, *, most: int = MAX_WORDS) -> str:
        """Return a field's text without the space around it; empty where it is not there.

        Raises:
            UsageError: It is longer than ``most`` characters, or there are several.
        """
        found = self._fields.get(name, [""])
        if len(found) > 1 or len(found[0]) > most:
            raise UsageError(f"The field {name} of the form is too long: at most {most} characters.")
        return found[0].strip()

    def secret(self, name: str) -> str:
        """Return a field's text as it is, space and all."""
        return self._fields.get(name, [""])[0]

    def number(self, name: str) -> int | None:
        """Return a field's whole number; None where it is empty.

        Raises:
            UsageError: It is no whole number.
        """
        text = self.text(name, most=20)
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"The field {name} of the form is no whole number.") from None

    def all(self, name: str) -> list[str]:
        """Return every text of a field: of boxes that were ticked, for one."""
        return list(self._fields.get(name, []))

    def ticked(self, name: str) -> bool:
        """Return whether a box is ticked."""
        return name in self._fields


async def form_of(request: Request) -> Form:
    """Return the form of a request that was let in."""
    return cast(Form, request.state.form)


FormOf = Annotated[Form, Depends(form_of)]
