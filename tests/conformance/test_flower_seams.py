"""What the adapters use of Flower that is not its public API, and the bundle that names them.

When a new Flower fails here, everything umbel must adapt to is in the message; nothing else knows Flower.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import struct
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Metadata
from flwr.cli.build import build_fab_from_files

import umbel._rounds.superlink
import umbel.flower
import umbel_server.control
import umbel_server.flower
import umbel_server.superlink
from umbel.flower import CLIENT_APP, MAX_BUNDLE_BYTES, SERVER_APP, check_bundle
from umbel_proto.errors import RefusedError
from umbel_server.control import BUNDLE

ROOT = Path(__file__).parents[2]
PUBLIC = frozenset({"flwr.app", "flwr.clientapp", "flwr.serverapp"})
ADAPT = "adapt umbel._rounds.superlink, umbel.flower / umbel_server.control, .flower and .superlink"


def imported(module: Any) -> Iterator[tuple[str, str]]:
    """Every (module, name) that an adapter imports from Flower's inside, wherever in the file."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flwr":
            if node.module not in PUBLIC:
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "flwr" for alias in node.names), (
                "import names, not flwr"
            )


PULLING = ("max_time", "max_tries_per_object", "initial_backoff", "backoff_cap")
ADAPTERS = (
    umbel._rounds.superlink,
    umbel.flower,
    umbel_server.control,
    umbel_server.flower,
    umbel_server.superlink,
)
SEAMS = sorted({seam for adapter in ADAPTERS for seam in imported(adapter)})


def find(module: str, dotted: str) -> Any:
    """Return a name of Flower's, such as ``Class.method``; fail with what to do if it is gone."""
    try:
        found: Any = importlib.import_module(module)
        for part in dotted.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(f"Flower moved {module}.{dotted}: {ADAPT}.")
    return found


def takes(module: str, dotted: str, *arguments: str, count: int = 0) -> None:
    """Fail unless a function takes ``count`` positional arguments and these by name."""
    signature = inspect.signature(find(module, dotted))
    try:
        signature.bind(*range(count), **dict.fromkeys(arguments))
    except TypeError as exc:
        pytest.fail(f"Flower moved {module}.{dotted}{signature}: {exc}; {ADAPT}.")


def test_the_adapters_reach_into_flower_in_more_than_one_place() -> None:
    """So that the tests below cannot pass by finding nothing to look for."""
    assert len(SEAMS) > 30
    assert ("flwr.superlink.main", "create_app") in SEAMS  # Imported inside a function.


@pytest.mark.parametrize(("module", "name"), SEAMS, ids=lambda part: part)
def test_flower_has_the_name(module: str, name: str) -> None:
    find(module, name)


INFLATABLE = "flwr.supercore.inflatable"
CALLS: list[tuple[str, str, int, tuple[str, ...]]] = [
    ("flwr.app.message", "make_message", 0, ("metadata", "content")),
    ("flwr.app.message", "remove_content_from_message", 1, ()),
    ("flwr.cli.build", "build_fab_from_files", 1, ()),
    ("flwr.common.serde", "fab_from_proto", 1, ()),
    ("flwr.common.serde", "fab_to_proto", 1, ()),
    ("flwr.common.serde", "message_from_proto", 1, ()),
    ("flwr.common.serde", "message_to_proto", 1, ()),
    ("flwr.common.serde", "run_from_proto", 1, ()),
    ("flwr.common.serde", "user_config_to_proto", 1, ()),
    ("flwr.supercore.control", "ControlHttpClient.from_server_address", 3, ("interceptors",)),
    ("flwr.supercore.fab", "Fab", 3, ()),
    (f"{INFLATABLE}.inflatable_object", "get_all_nested_objects", 1, ()),
    (f"{INFLATABLE}.inflatable_object", "get_object_tree", 1, ()),
    (f"{INFLATABLE}.inflatable_object", "iterate_object_tree", 1, ()),
    (f"{INFLATABLE}.inflatable_object", "no_object_id_recompute", 0, ()),
    (f"{INFLATABLE}.inflatable_protobuf_utils", "make_pull_object_fn_protobuf", 3, ()),
    (f"{INFLATABLE}.inflatable_protobuf_utils", "make_push_object_fn_protobuf", 4, ()),
    (f"{INFLATABLE}.inflatable_utils", "ObjectPullError", 2, ()),
    (f"{INFLATABLE}.inflatable_utils", "ObjectPushError", 3, ()),
    (f"{INFLATABLE}.inflatable_utils", "inflate_object_from_contents", 2, ()),
    (f"{INFLATABLE}.inflatable_utils", "pull_objects", 2, PULLING),
    (f"{INFLATABLE}.inflatable_utils", "push_object_contents_from_iterable", 1, ("push_object_fn",)),
    (f"{INFLATABLE}.inflatable_utils", "push_objects", 2, ("object_ids_to_push",)),
    ("flwr.supercore.primitives.asymmetric", "public_key_to_bytes", 1, ()),
    ("flwr.supercore.primitives.asymmetric", "sign_message", 2, ()),
    ("flwr.supernode.fleet_http_client", "FleetHttpClient.from_server_address", 3, ("interceptors",)),
    ("flwr.superlink.cli.flower_superlink", "_parse_superlink_lifespan_config", 0, ()),
    ("flwr.superlink.main", "create_app", 2, ()),
]


@pytest.mark.parametrize(("module", "dotted", "count", "arguments"), CALLS, ids=lambda part: str(part))
def test_flower_takes_the_arguments(module: str, dotted: str, count: int, arguments: tuple[str, ...]) -> None:
    takes(module, dotted, *arguments, count=count)


METHODS = {
    ("flwr.supernode.fleet_http_client", "FleetHttpClient"): (
        "ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages",
        "PullObject", "PushObject", "ConfirmMessageReceived", "GetRun", "GetFab",
    ),
    ("flwr.supercore.runtime", "RuntimeHttpClient"): (
        "PushMessages", "PullMessages", "PushObject", "PullObject", "ConfirmMessageReceived",
    ),
    ("flwr.supercore.control", "ControlHttpClient"): ("RegisterNode", "ListNodes", "StartRun", "ListRuns"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "dotted"), [(m, f"{kind}.{name}") for (m, kind), names in METHODS.items() for name in names]
)
def test_flowers_clients_have_the_call(module: str, dotted: str) -> None:
    takes(module, dotted, count=2)  # The client itself, and the request.


@pytest.mark.parametrize(
    "name", ["FleetHttpClient", "RuntimeHttpClient", "ControlHttpClient"]
)  # fmt: skip
def test_flowers_clients_can_be_closed(name: str) -> None:
    module = next(m for m, kind in METHODS if kind == name)
    takes(module, f"{name}.close", count=1)


FIELDS: list[tuple[str, str, tuple[str, ...]]] = [
    ("fleet_pb2", "ActivateNodeRequest", ("public_key", "heartbeat_interval")),
    ("fleet_pb2", "ActivateNodeResponse", ("node_id",)),
    ("fleet_pb2", "DeactivateNodeRequest", ("node_id",)),
    ("fleet_pb2", "PullMessagesRequest", ("node",)),
    ("fleet_pb2", "PullMessagesResponse", ("messages_list", "message_object_trees")),
    (
        "fleet_pb2",
        "PushMessagesRequest",
        ("node", "messages_list", "message_object_trees", "clientapp_runtime_list"),
    ),
    ("fleet_pb2", "PushMessagesResponse", ("objects_to_push", "session_id")),
    ("heartbeat_pb2", "SendNodeHeartbeatRequest", ("node", "heartbeat_interval")),
    ("message_pb2", "ConfirmMessageReceivedRequest", ("node", "run_id", "message_object_id")),
    ("message_pb2", "ObjectTree", ("object_id", "children")),
    ("node_pb2", "Node", ("node_id",)),
    ("node_pb2", "NodeInfo", ("node_id", "public_key", "status")),
    ("run_pb2", "GetRunRequest", ("node", "run_id")),
    ("fab_pb2", "GetFabRequest", ("node", "hash_str", "run_id")),
    ("runtime_pb2", "PushAppMessagesRequest", ("messages_list", "message_object_trees")),
    ("runtime_pb2", "PushAppMessagesResponse", ("message_ids", "objects_to_push", "session_id")),
    ("runtime_pb2", "PullAppMessagesRequest", ("message_ids",)),
    ("runtime_pb2", "PullAppMessagesResponse", ("messages_list", "message_object_trees")),
    ("control_pb2", "RegisterNodeRequest", ("public_key", "name")),
    ("control_pb2", "RegisterNodeResponse", ("node_id",)),
    ("control_pb2", "StartRunRequest", ("fab", "override_config", "federation")),
    ("control_pb2", "StartRunResponse", ("run_id",)),
    ("control_pb2", "ListRunsRequest", ("run_id",)),
    ("control_pb2", "ListRunsResponse", ("run_dict",)),
    ("control_pb2", "ListNodesResponse", ("nodes_info",)),
]


@pytest.mark.parametrize(("module", "message", "fields"), FIELDS, ids=lambda part: str(part))
def test_flowers_messages_have_the_fields(module: str, message: str, fields: tuple[str, ...]) -> None:
    found = find(f"flwr.proto.{module}", message).DESCRIPTOR.fields_by_name
    missing = [name for name in fields if name not in found]
    assert not missing, f"Flower moved {', '.join(missing)} of {module}.{message}: {ADAPT}."


def test_flowers_grid_has_the_attributes_that_a_link_uses() -> None:
    source = inspect.getsource(find("flwr.superlink.grid", "HttpGrid"))
    for name in ("_runtime_client", "self.node", "def run(", "def get_node_ids("):
        assert name in source, f"Flower moved HttpGrid's {name}: {ADAPT}."


def test_a_message_lets_its_id_be_set() -> None:
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    metadata.__dict__["_message_id"] = "named"
    assert metadata.message_id == "named", f"Flower moved Metadata's _message_id: {ADAPT}."


def test_the_bundle_in_deploy_is_the_one_that_runs_start_with() -> None:
    assert (ROOT / "deploy" / "federation" / "pyproject.toml").read_text() == BUNDLE


def test_the_bundle_names_the_two_installed_apps() -> None:
    components = tomllib.loads(BUNDLE)["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}


def bundle(text: str = BUNDLE, **extra: bytes) -> bytes:
    content: bytes = build_fab_from_files({"pyproject.toml": text.encode(), **extra})[0]
    return content


def packed(files: dict[str, bytes]) -> bytes:
    """A ZIP file as a stranger would make it, not through Flower's own checks."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_the_bundle_builds_to_the_same_bytes_twice() -> None:
    assert bundle() == bundle()


def test_a_device_accepts_the_bundle_that_runs_start_with() -> None:
    check_bundle(bundle())


def lying_about_its_size() -> bytes:
    """A pyproject.toml of 10 MB whose ZIP directory says it has 100 bytes."""
    bomb = bytearray(packed({"pyproject.toml": BUNDLE.encode() + b"#" * 10_000_000}))
    entry = bomb.rindex(b"PK\x01\x02")
    struct.pack_into("<I", bomb, entry + 24, 100)
    return bytes(bomb)


NAMED = BUNDLE.encode()
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: packed({"pyproject.toml": NAMED, "umbel/flower.py": b"print()"}), "no code is taken"),
    "a model": (lambda: packed({"pyproject.toml": NAMED, "model.bin": b"x"}), "no code is taken"),
    "another client app": (
        lambda: bundle(BUNDLE.replace(CLIENT_APP, "os:system")), "names the client app 'os:system'"
    ),
    "no client app": (
        lambda: packed({"pyproject.toml": NAMED.replace(b"clientapp", b"someapp")}), "names the client app None"
    ),
    "no project": (lambda: packed({"LICENSE": b"x"}), "malformed"),
    "no components": (lambda: packed({"pyproject.toml": b"[project]"}), "malformed"),
    "no TOML": (lambda: packed({"pyproject.toml": b"]["}), "malformed"),
    "no text": (lambda: packed({"pyproject.toml": b"\xff\xfe"}), "malformed"),
    "no ZIP": (lambda: b"PK\x03\x04 and no more", "malformed"),
    "nothing": (lambda: b"", "malformed"),
    "cut short": (lambda: bundle()[:-30], "malformed"),
    "too large": (lambda: bytes(MAX_BUNDLE_BYTES + 1), "must only name the installed app"),
    "a ZIP bomb": (
        lambda: packed({"pyproject.toml": NAMED + b"#" * 10_000_000}), "unpacks to more than a name"
    ),
    "a ZIP bomb that lies": (lying_about_its_size, "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_refuses_a_bundle_with(name: str) -> None:
    make, reason = REFUSED[name]
    content = make()
    if "bomb" in name:
        assert len(content) < MAX_BUNDLE_BYTES
    with pytest.raises(RefusedError, match=reason):
        check_bundle(content)
