"""Texts that come in from outside, as the routes share them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


def keepable(text: str) -> str:
    """Return a text that a database can keep; raises for any other."""
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("it holds a character that cannot be kept")
    return text


Words = Annotated[str, StringConstraints(max_length=2000), AfterValidator(keepable)]
"""A sentence or two of a person."""
Reason = Annotated[Words, Field(min_length=1, description="Why, for the audit log, in your own words.")]
Named = Annotated[str, Path(pattern=NAME, description="Its name.")]
Name = Annotated[str, StringConstraints(pattern=NAME)]


class Asked(BaseModel):
    """What a request brings: no field that is not known, and no word of it in an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Why(Asked):
    """Why something is done."""

    reason: Reason
