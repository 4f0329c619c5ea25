"""What an application pays for ``import umbel``."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import umbel

HEAVY = ("flwr", "grpc", "h2", "numpy", "onnxruntime", "torch", "umbel_models", "umbel_server")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_umbel_imports_nothing_heavy() -> None:
    names = run("import sys, umbel; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert not set(HEAVY).intersection(names)


def test_opening_a_device_imports_neither_flower_nor_torch_nor_grpc() -> None:
    code = "import sys, umbel; umbel.Device; print(*{name.partition('.')[0] for name in sys.modules})"
    assert not {"flwr", "torch", "grpc", "h2", "onnxruntime"}.intersection(run(code).split())


def test_a_model_is_imported_without_flower_torch_or_a_runtime() -> None:
    code = "import sys, umbel; umbel.Model; print(*{name.partition('.')[0] for name in sys.modules})"
    assert not {"flwr", "torch", "grpc", "h2", "onnxruntime"}.intersection(run(code).split())


def test_what_a_first_prediction_needs_brings_neither_what_a_status_says_nor_what_randomizes_a_report() -> (
    None
):
    code = (
        "import sys, umbel; umbel.Device, umbel.Model; import umbel._telemetry.telemetry; print(*sys.modules)"
    )
    assert not {"umbel._status", "umbel_proto.privacy.response"}.intersection(run(code).split())


def test_a_service_tells_grpc_how_to_read_before_it_is_there_and_leaves_the_choice_of_others() -> None:
    name = "os.environ['GRPC_EXPERIMENTS']"
    told = f"import umbel_server; print('grpc' in sys.modules, {name})"
    assert run(f"import os, sys; {name} = ''; del {name}; {told}") == "False -event_engine_listener"
    assert run(f"import os, sys; {name} = 'mine'; {told}") == "False mine"


def test_importing_umbel_takes_less_than_a_quarter_of_a_second() -> None:
    code = "import time; begin = time.process_time(); import umbel; print(time.process_time() - begin)"
    assert min(float(run(code)) for _ in range(3)) < 0.25


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert umbel.__all__ == sorted(umbel.__all__)
    assert dir(umbel) == umbel.__all__
    for name in umbel.__all__:
        value = getattr(umbel, name)
        assert value.__name__ == name


def test_the_version_is_what_the_command_prints_and_importing_umbel_does_not_look_for_it() -> None:
    code = "import sys, umbel; before = 'importlib.metadata' in sys.modules; print(before, umbel.__version__)"
    done = subprocess.run(
        [sys.executable, "-m", "umbel", "--version"], capture_output=True, text=True, check=True
    )
    assert run(code) == f"False {done.stdout.removeprefix('umbel ').strip()}"


def test_umbel_without_its_metadata_has_no_version_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.meta_path", [])
    monkeypatch.delitem(vars(umbel), "__version__", raising=False)
    with pytest.raises(AttributeError, match="not known here: install umbel with pip"):
        _ = umbel.__version__
    assert not hasattr(umbel, "__version__")


CALLED = (
    umbel.Conditions,
    umbel.Consent,
    umbel.DataSet,
    umbel.Device,
    umbel.Graph,
    umbel.Model,
    umbel.Review,
    umbel.Telemetry,
)


@pytest.mark.parametrize("kind", CALLED)
def test_the_help_of_what_an_application_calls_explains_every_argument(kind: type) -> None:
    for name in (each for each in vars(kind) if not each.startswith("_")):
        called = getattr(kind, name)
        told = inspect.getdoc(called) or ""
        assert told, name
        for argument in inspect.signature(called).parameters if callable(called) else ():
            assert argument == "self" or f"\n    {argument}: " in told or "see ``" in told, (
                f"{name}: {argument}"
            )


def test_the_help_of_load_explains_every_argument_what_it_gives_and_its_errors() -> None:
    told = inspect.getdoc(umbel.load) or ""
    for argument in inspect.signature(umbel.load).parameters:
        assert f"\n    {argument}: " in told, argument
    assert re.findall(r"^\w+:$", told, re.M) == ["Args:", "Returns:", "Raises:"]


def test_every_branch_of_the_error_tree_is_public() -> None:
    errors = {umbel.UmbelError}
    while found := {kind for error in errors for kind in error.__subclasses__()} - errors:
        errors |= found
    public = {error.__name__ for error in errors if error.__module__ == "umbel_proto.errors"}
    assert public - set(umbel.__all__) == {"LocalProtocolError", "RemoteProtocolError"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = umbel.nothing_of_the_kind  # type: ignore[attr-defined]
