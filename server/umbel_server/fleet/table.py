"""Tables of ``fleet.toml``: a frozen dataclass each, read strictly and written with its comments."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Self

from umbel_proto.errors import UsageError

_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a number"),
    "float": (float, "a number"),
    "str": (str, "text"),
    "bool": (bool, "true or false"),
}


def setting(
    note: str,
    default: Any = MISSING,
    *,
    between: tuple[float, float] | None = None,
    of: tuple[str, ...] = (),
) -> Any:
    """Return a field of a ``Table``; its type is ``int``, ``float``, ``str`` or ``bool``.

    Args:
        note: Its comment in ``fleet.toml``.
        default: What holds where the file says nothing; without one the file must.
        between: Its least and its greatest value.
        of: The texts it may be; any without.
    """
    return dataclasses.field(default=default, metadata={"note": note, "between": between, "of": of})


@dataclass(frozen=True, slots=True)
class Table:
    """A table; each is a frozen dataclass of ``setting`` fields, in the module that uses it.

    One line in `umbel_server.fleet.settings` makes it part of the file.
    """

    TABLE: ClassVar[str]
    """Its name in ``fleet.toml``."""
    NOTE: ClassVar[str] = ""
    """Its comment there."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(f"{field.name} of [{self.TABLE}]", field.metadata, getattr(self, field.name))

    @classmethod
    def read(cls, raw: object) -> Self:
        """Return the table as the file gives it.

        Raises:
            UsageError: A key is unknown, missing or of the wrong type.
        """
        if not isinstance(raw, dict):
            raise UsageError(f"fleet.toml: '{cls.TABLE}' must be a table, [{cls.TABLE}].")
        fields = dataclasses.fields(cls)
        refuse_unknown(raw, [field.name for field in fields])
        return cls(
            **{
                field.name: typed(raw.get(field.name), field.name, str(field.type))
                for field in fields
                if field.name in raw or field.default is MISSING
            }
        )

    def to_toml(self) -> str:
        """Return the table with its comments."""
        lines = [f"[{self.TABLE}]" + (f"    # {self.NOTE}" if self.NOTE else "")]
        for field in dataclasses.fields(self):
            lines.append(f"{field.name} = {literal(getattr(self, field.name))}    # {field.metadata['note']}")
        return "\n".join(lines) + "\n"


def refuse_unknown(raw: dict[str, object], names: list[str]) -> None:
    """Check that a table has no other keys than these.

    Raises:
        UsageError: It has; the sentence names the first.
    """
    unknown = sorted(raw.keys() - set(names))
    if unknown:
        raise UsageError(f"fleet.toml: {unknown[0]!r} is not a setting; there are {', '.join(names)}.")


def typed(value: object, name: str, kind: str) -> Any:
    """Return a value of the file; a whole number is also a float.

    Raises:
        UsageError: It is missing or of another type.
    """
    wanted, words = _KINDS[kind]
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"fleet.toml: {name!r} must be {words}.")
    return value


def literal(value: object) -> str:
    """Return a value as TOML writes it."""
    # Of JSON's texts, numbers and truth values all are TOML, as long as nothing but ASCII is escaped.
    return json.dumps(value, ensure_ascii=False)


def _check(what: str, metadata: Any, value: Any) -> None:
    between, of = metadata["between"], metadata["of"]
    if between and not between[0] <= value <= between[1]:
        raise UsageError(f"{what} is {value}: choose {between[0]} to {between[1]}.")
    if of and value not in of:
        raise UsageError(f"{what} is {value!r}: choose {' or '.join(of)}.")
