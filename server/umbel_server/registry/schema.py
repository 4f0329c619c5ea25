"""Model cards are checked against CycloneDX's own schema, which its library brings along."""

from __future__ import annotations

from umbel_proto.errors import MissingExtraError, PackageError
from umbel_proto.manifest import CARD
from umbel_proto.package import Package
from umbel_server.registry.figures import document, figures_of


def require_valid(card: bytes, what: str) -> None:
    """Check that a card is a CycloneDX 1.6 document.

    Args:
        card: The document, JSON.
        what: Whose it is, for the sentence.

    Raises:
        PackageError: It is not.
        MissingExtraError: The schema is not installed.
    """
    try:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ModuleNotFoundError as exc:
        raise MissingExtraError("server", "Checking a model card") from exc
    try:
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(card.decode())
    except (ValueError, RecursionError) as exc:
        raise PackageError(f"The card of {what} is no JSON: build the package again.") from exc
    if error is not None:
        where = "/".join(map(str, getattr(error.data, "path", ())))
        raise PackageError(
            f"The card of {what} is no CycloneDX 1.6 document{f', at {where}' if where else ''}: build the package again."
        )


def require_valid_card(package: Package) -> None:
    """Check that the card of a package is what it must be; a package without one passes.

    Raises:
        PackageError: It is not.
    """
    raw = document(package, CARD)
    if raw is not None:
        require_valid(raw, f"{package.manifest.model} {package.manifest.version}")
        figures_of(package)
