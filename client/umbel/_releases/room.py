"""Whether a device has memory for a second version of a model, which is asked beside the one that answers.

Source: proc(5), MemAvailable; Documentation/admin-guide/cgroup-v2.rst of the Linux kernel, memory.max and memory.current.
"""

from __future__ import annotations

from pathlib import Path

from umbel_proto.errors import RefusedError

TIMES, BESIDE_BYTES = 4, 16 << 20
"""What a loaded version takes at most: its package, its arrays once more in the runtime and once as that packs them,
and what a prediction needs; and what runtimes take whatever they run."""
SHARE = 4
"""A second version takes no more than one in so many bytes that are free: the rest is the application's."""


def beside_bytes(size: int) -> int:
    """Return the memory that a package of ``size`` bytes is taken to need beside another one."""
    return TIMES * size + BESIDE_BYTES


def require_memory(size: int, *, limit_bytes: int | None, root: Path = Path("/")) -> None:
    """Check that a package can be loaded beside another one.

    Args:
        size: Its length, bytes.
        limit_bytes: What the device's owner allows; None for a share of what is free.
        root: Where Linux's files are. A system that does not tell is taken to have enough.

    Raises:
        RefusedError: It cannot. The sentence begins with the version.
    """
    need = beside_bytes(size)
    if limit_bytes is not None and need > limit_bytes:
        raise RefusedError(
            f"would take {need >> 20} MiB of memory beside the active version, and the owner allows "
            f"{limit_bytes >> 20}: shadow_mib in device.toml"
        )
    free = free_bytes(root)
    if free is not None and need > free // SHARE:
        raise RefusedError(
            f"would take {need >> 20} MiB of memory beside the active version, more than one in {SHARE} of the "
            f"{free >> 20} that are free"
        )


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that a process can still have: the machine's, or less where its group is bounded."""
    known = [each for each in (_available(root), _of_group(root)) if each is not None]
    return min(known, default=None)


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _of_group(root: Path) -> int | None:
    try:
        # One line "0::/path" where there are only groups of version 2.
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        group = root / "sys" / "fs" / "cgroup" / path.lstrip("/")
        most = (group / "memory.max").read_text().strip()
        return None if most == "max" else max(int(most) - int((group / "memory.current").read_text()), 0)
    except (OSError, ValueError, StopIteration):
        return None
