"""The fields of one table of ``alerts.toml``, taken one by one; what is left over at the end is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name

MAX_TEXT = 1000
_MISSING = object()


class Fields:
    """A table, of which every field is taken once.

    Args:
        what: ``rule`` or ``channel``.
        name: Its name.
        raw: Its other fields.
    """

    def __init__(self, what: str, name: str, raw: Mapping[str, Any]) -> None:
        self.what, self.name = what, name
        self._left = dict(raw)
        self._known = ["name"]

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @classmethod
    def of(cls, what: str, raw: Mapping[str, Any]) -> Fields:
        """Begin with a table's name.

        Raises:
            UsageError: It has none.
        """
        name = raw.get("name")
        if not isinstance(name, str):
            raise UsageError(f'A {what} of alerts.toml has no name: begin it with  name = "...".')
        check_name(name, what)
        return cls(what, name, {key: value for key, value in raw.items() if key != "name"})

    def error(self, field: str, said: str) -> UsageError:
        """Return the sentence that a field cannot be used."""
        return UsageError(f"{self.what.capitalize()} {self.name}: {field} {said}.")

    def take(self, name: str, default: object = _MISSING) -> Any:
        """Take a field as it is.

        Raises:
            UsageError: It is missing, and must not be.
        """
        self._known.append(name)
        value = self._left.pop(name, default)
        if value is _MISSING:
            raise self.error(name, "is missing")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Take a text; without a default it must be there, and not be empty."""
        value = self.take(name, _MISSING if default is None else default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.error(name, "must be text")
        if len(value) > MAX_TEXT or not (value.isprintable() or not value):
            raise self.error(name, f"must be {MAX_TEXT} characters on one line, at most")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Take a list of texts."""
        if name not in self:
            self.take(name, None)
            return default
        value = self.take(name)
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self.error(name, 'must be a list of texts, as in ["one", "two"]')
        return tuple(value)

    def number(self, name: str, default: float | None, *, between: tuple[float, float]) -> float:
        """Take a number; without a default it must be there."""
        value = self.take(name, _MISSING if default is None else default)
        if type(value) not in (int, float):
            raise self.error(name, "must be a number")
        if not between[0] <= value <= between[1]:
            raise self.error(name, f"is {value:g}: choose {between[0]:g} to {between[1]:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Take true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def one_of(self, name: str, known: tuple[str, ...], default: str | None = None) -> str:
        """Take one of some texts."""
        value = self.text(name, default)
        if value not in known:
            raise self.error(name, f"is {value[:40]!r}: choose of {', '.join(known)}")
        return value

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            UsageError: Something is: it is misspelled, or belongs elsewhere.
        """
        for name in self._left:
            raise self.error(
                name[:40], f"is not a field of a {self.what}; there are {', '.join(self._known)}"
            )
