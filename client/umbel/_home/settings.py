"""What a device's owner decides: ``device.toml`` in its home, written by hand, or not there at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from umbel._home.files import read_file
from umbel_proto.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Settings of one device.

    Args:
        quota_bytes: How much installed packages may take, and one that is being fetched; None for as much as
            the disk has.
        shadow_bytes: How much memory a version may take that is run beside the one that answers, to be compared with
            it; 0: none is run. None for a share of what is free.
    """

    quota_bytes: int | None = None
    shadow_bytes: int | None = None


def read_settings(path: Path) -> DeviceSettings:
    """Return what a device's owner has decided; the defaults where the file is not there.

    Raises:
        UsageError: The file says something that is no setting.
        StorageError: It cannot be read.
    """
    if not path.exists():
        return DeviceSettings()
    import tomllib  # Few devices have such a file: the others need not wait for it.

    try:
        fields = tomllib.loads(read_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not TOML: {exc}.") from exc
    quota = _mib(path, fields.pop("quota_mib", None), "quota_mib", "a number of MiB above 0, such as 512")
    shadow = _mib(path, fields.pop("shadow_mib", None), "shadow_mib", "a number of MiB, or 0 for none")
    if fields:
        raise UsageError(
            f"{path} has a setting {sorted(fields)[0]!r}: there are only quota_mib and shadow_mib."
        )
    if quota == 0:
        raise UsageError(f"{path}: quota_mib is a number of MiB above 0, such as 512.")
    return DeviceSettings(quota, shadow)


def _mib(path: Path, value: object, name: str, what: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise UsageError(f"{path}: {name} is {what}.")
    return int(value * MIB)
