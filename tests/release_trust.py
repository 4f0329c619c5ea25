"""A fleet's signed metadata in memory: what a gateway hands on, for tests whose gateway has no disk."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field

from umbel._home.directory import DeviceHome
from umbel_proto.keys import SigningKey
from umbel_proto.wire import delivery_pb2 as pb
from umbel_server.trust.metadata import (
    Lives,
    Released,
    State,
    begin,
    changed,
    file_name,
    in_force,
    resigned,
    signer,
    to_bytes,
    with_line,
    with_release,
)

HOUR_S = 3600.0


@dataclass(eq=False)
class MemoryTrust:
    """Signs whatever is offered; what devices ask for is in ``files``, for tests to change.

    Args:
        now_s: When it signs, Unix seconds.
    """

    now_s: float = field(default_factory=time.time)
    lives: Lives = field(default_factory=Lives)
    root: SigningKey = field(default_factory=SigningKey.generate)
    targets: SigningKey = field(default_factory=SigningKey.generate)
    online: SigningKey = field(default_factory=SigningKey.generate)
    release: SigningKey = field(default_factory=SigningKey.generate)
    state: State = field(init=False)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        root, targets, online = map(signer, (self.root, self.targets, self.online))
        self.state = begin(root=root, targets=targets, online=online, lives=self.lives, now_s=self.now_s)
        self.files.update(changed(None, self.state))

    def admit(self, home: DeviceHome) -> None:
        """Let a device trust it, as enrollment does."""
        shutil.rmtree(home.trust, ignore_errors=True)
        home.path.mkdir(parents=True, exist_ok=True)
        home.write(home.root, to_bytes(self.state.root), secret=False)

    def take(self, state: State) -> None:
        """Let what follows be in force."""
        after = resigned(state, signer(self.online), lives=self.lives, now_s=self.now_s)
        self.files.update(changed(self.state, after))
        self.state = after

    def line(self, model: str, key: SigningKey | None = None) -> None:
        """Say who signs for a model."""
        key = signer(key or self.release)
        waiting = with_line(
            self.state,
            model,
            [key.public_key],
            [signer(self.targets), key],
            lives=self.lives,
            now_s=self.now_s,
        )
        after, taken = in_force(self.state, {"targets": waiting[0], model: waiting[1]})
        assert set(taken) == {"targets", model}
        self.take(after)

    def offer(self, release: pb.Release) -> pb.Release:
        """Sign a release, in place of what had its version before, and return it."""
        if release.model not in self.state.lines:
            self.line(release.model)
        present = self.state.lines[release.model].signed.targets
        path = f"{release.model}/{release.version}.umbel"
        if path in present and present[path].hashes["sha256"] != release.sha256.hex():
            del present[path]
        released = Released(release.model, release.version, release.sha256, release.size)
        self.take(
            with_release(self.state, released, signer(self.release), lives=self.lives, now_s=self.now_s)
        )
        return release

    def Metadata(self, request: pb.MetadataRequest, timeout: float) -> pb.MetadataReply:  # noqa: N802
        """Answer as the gateway does."""
        name = file_name(request.role, request.version)
        self.asked.append(name)
        reply = pb.MetadataReply(metadata=self.files.get(name, b""))
        self.sent += reply.ByteSize() + request.ByteSize()
        return reply
