"""What the fleet signed that devices may install: asked of the gateway, verified and kept by the rules of TUF.

The gateway is not trusted with it: it hands on what the fleet's keys have signed, and can neither change nor mix that,
nor hold back for longer than the timestamp holds that there is something new.

Source:
    The Update Framework Specification 1.0.34, section 5; docs/spec/delivery.md, section 5.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from umbel._fleet.approval import engines
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel._home.files import (
    PUBLIC_MODE,
    locked,
    make_private_directory,
    read_file,
    storage_error,
    write_atomically,
)
from umbel_proto.errors import PackageError, RemoteProtocolError, StorageError, UmbelError
from umbel_proto.manifest import FORMAT
from umbel_proto.wire import delivery_pb2 as pb

MAX_ROOT_BYTES = 64_000
MAX_TIMESTAMP_BYTES = 16_000
MAX_METADATA_BYTES = 2_000_000
MAX_ROOTS = 64
"""Roots that a device catches up with in one check."""

_NOT_FOUND = 404
_BASE = "metadata/"

# What it says of every file that it did not find at once is no trouble.
logging.getLogger("tuf").setLevel(logging.WARNING)


class Listed:
    """What the fleet says at this moment that devices may install.

    Args:
        home: The enrolled device.
        gateway: The way to its gateway.
        now_s: The time, Unix seconds.
    """

    def __init__(self, home: DeviceHome, gateway: Gateway, *, now_s: float) -> None:
        self._home = home
        self._gateway = gateway
        self._now_s = now_s
        self._updater = self._refreshed()

    def require(self, release: pb.Release) -> None:
        """Check that devices may install a release, that it is the very one, and that something here can run it.

        Raises:
            PackageError: They may not, the fleet signed another package under this version, or it is for devices
                that have what this one has not: then it need not be fetched to know.
            UnavailableError: The gateway does not answer.
            StorageError: The disk is full.
        """
        with self._errors(), locked(self._home.trust / "lock"):
            target = self._updater.get_targetinfo(f"{release.model}/{release.version}.umbel")
        if target is None:
            raise PackageError(
                f"The gateway offers {release.model} {release.version}, which the fleet has not signed: it is not "
                "installed."
            )
        if (target.length, target.hashes.get("sha256")) != (release.size, release.sha256.hex()):
            raise PackageError(
                f"The gateway offers {release.model} {release.version} with other content than the fleet has signed: "
                "it is not installed."
            )
        _require_for_us(f"{release.model} {release.version}", target.custom or {})

    def _refreshed(self) -> _Updater:
        if not self._home.root.exists():
            raise PackageError(
                "This device does not know yet whom to trust with releases: it learns that when it renews its "
                "certificate, within a day, or with  umbel enroll TOKEN --again."
            )
        make_private_directory(self._home.trust)
        with self._errors(), locked(self._home.trust / "lock"):
            updater = _Updater(self._home, self._gateway, now_s=self._now_s)
            updater.refresh()
        return updater

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ExpiredMetadataError as exc:
            raise PackageError(
                f"What the fleet signed of its releases holds no more ({str(exc).rstrip('.')}): what is installed goes "
                "on running, and nothing new is installed until the fleet signs again. Check this machine's clock, and "
                "tell the fleet's operator."
            ) from exc
        except DownloadError as exc:
            if isinstance(exc.__cause__, UmbelError):
                raise exc.__cause__ from exc
            raise PackageError(
                f"The gateway does not give what the fleet signed of its releases: {exc}. Nothing is installed."
            ) from exc
        except RepositoryError as exc:
            raise PackageError(
                f"What the gateway says of releases is not what the fleet signed last: {str(exc).rstrip('.')}. Nothing "
                "is installed."
            ) from exc
        except StorageError:
            raise
        except OSError as exc:
            raise storage_error(exc, self._home.trust) from exc


def check_root(data: bytes) -> None:
    """Check that bytes are a root of trust that its own keys signed; whoever gives it is trusted with which it is.

    Raises:
        RemoteProtocolError: They are not.
    """
    try:
        root: Metadata[Root] = Metadata.from_bytes(data)
        if not isinstance(root.signed, Root) or len(data) > MAX_ROOT_BYTES:
            raise RepositoryError("not a root")
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (DeserializationError, RepositoryError) as exc:
        raise RemoteProtocolError(
            "server",
            "it names nobody to trust with releases: the fleet's gateway may be older than this umbel",
        ) from exc


def _require_for_us(release: str, custom: Mapping[str, Any]) -> None:
    """Check that a release is for devices like this one, by what the fleet signed beside its hash.

    What is not said there shows when the package is opened.

    Raises:
        PackageError: Its form is another umbel's, or none of its engines is here.
    """
    form, wanted = custom.get("format"), custom.get("engines")
    if isinstance(form, int) and form != FORMAT:
        raise PackageError(
            f"{release} has format {form}, and this umbel reads {FORMAT}: update umbel. It is not fetched."
        )
    if not isinstance(wanted, list) or not wanted:
        return
    here = engines()
    if not set(here) & set(map(str, wanted)):
        raise PackageError(
            f"{release} is for devices with the engine {' or '.join(map(str, wanted))}, and this one has "
            f"{' and '.join(here)}: install that, or give this device another version. It is not fetched."
        )


class _Updater(Updater):
    """TUF's client workflow with this device's clock, files and gateway.

    The methods that it replaces are not public: the version of the library is bounded in pyproject.toml.
    """

    def __init__(self, home: DeviceHome, gateway: Gateway, *, now_s: float) -> None:
        super().__init__(
            str(home.trust),
            _BASE,
            fetcher=_Fetcher(gateway),
            config=UpdaterConfig(
                max_root_rotations=MAX_ROOTS,
                root_max_length=MAX_ROOT_BYTES,
                timestamp_max_length=MAX_TIMESTAMP_BYTES,
                snapshot_max_length=MAX_METADATA_BYTES,
                targets_max_length=MAX_METADATA_BYTES,
            ),
            bootstrap=read_file(home.root),
        )
        self._trusted_set.reference_time = datetime.datetime.fromtimestamp(now_s, datetime.UTC)

    def _persist_file(self, filename: str, data: bytes) -> None:
        # The library's own would neither survive a power cut nor spare the flash what it holds already.
        path = Path(filename)
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data, PUBLIC_MODE)

    def _update_root_symlink(self) -> None:
        """Do nothing: the trusted root is given each time, and the link would be gone for a moment."""


class _Fetcher(FetcherInterface):
    """Asks the gateway for metadata by the names that the updater gives to files."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_BASE).removesuffix(".json")
        number, dot, role = name.partition(".")
        asked = pb.MetadataRequest(role=role, version=int(number)) if dot else pb.MetadataRequest(role=name)
        reply: pb.MetadataReply = call(self._gateway.delivery.Metadata, asked, self._gateway.address)
        if not reply.metadata:
            raise DownloadHTTPError(f"it has no {url.removeprefix(_BASE)}", _NOT_FOUND)
        return iter((reply.metadata,))
