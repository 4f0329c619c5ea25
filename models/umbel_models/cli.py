"""``umbel model``: build, pack and show model packages."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel_models.compress_cli import COMMANDS
from umbel_models.load import load_task
from umbel_models.responsible_cli import assess, read_sections
from umbel_models.task import TASKS, Examples
from umbel_proto.errors import MissingExtraError, PackageError, StorageError, UsageError
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.manifest import FloatVector, Scalar
from umbel_proto.package import Package, inspect_package, load_tensors, read_package
from umbel_proto.update import is_update, read_update

if TYPE_CHECKING:
    from numpy.typing import NDArray

app = typer.Typer(
    help="Build, pack and show signed model packages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (assess, *COMMANDS):
    app.command()(command)

KeyOption = Annotated[Path, typer.Option("--key", help="The fleet's release key, a PEM file.")]
OutOption = Annotated[Path, typer.Option("--out", help="The package to write.")]
LineageOption = Annotated[
    str | None,
    typer.Option("--lineage", help="Facts about its origin: a JSON object, or a file that holds one."),
]
SectionsOption = Annotated[
    Path | None, typer.Option("--sections", help="For its card: what umbel model assess --json printed.")
]


class By(StrEnum):
    """What the devices of a split differ in."""

    label = "label"
    source = "source"


@app.command()
def build(
    task: Annotated[
        str, typer.Argument(help=f"A Python file with one Task, or the task {', '.join(sorted(TASKS))}.")
    ],
    out: OutOption,
    key: KeyOption,
    version: Annotated[int, typer.Option(min=1, help="The version to give it.")] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(help="An .npz file whose x holds inputs to quantize with; by default the task's own."),
    ] = None,
    lineage: LineageOption = None,
    sections: SectionsOption = None,
    tflite: Annotated[
        bool, typer.Option("--tflite", help="Add variants for devices that have LiteRT.")
    ] = False,
) -> None:
    """Write the first package of a task, with its initial parameters, exported and verified."""
    pack_module = _workbench()
    signing = _signing_key(key)
    loaded = load_task(task)
    data = pack_module.build(
        loaded,
        key=signing,
        version=version,
        calibration=None if calibration is None else _calibration(calibration),
        lineage=_lineage(lineage),
        sections=None if sections is None else read_sections(sections),
        lite=tflite,
        progress=_progress(),
    )
    _write(out, data)
    typer.echo(f"{out}: {loaded.model} {version}, {len(data):,} bytes")


@app.command()
def pack(
    base: Annotated[Path, typer.Argument(help="The package whose model was trained further.")],
    params: Annotated[
        Path, typer.Option(help="The new parameters: a run's trained.params, or a .safetensors file.")
    ],
    calibration: Annotated[Path, typer.Option(help="An .npz file whose x holds inputs to quantize with.")],
    version: Annotated[int, typer.Option(min=2, help="The version to give it.")],
    key: KeyOption,
    out: OutOption,
    lineage: LineageOption = None,
    sections: SectionsOption = None,
    heldout: Annotated[
        Path | None, typer.Option(help="An .npz file with x and y to evaluate on, for the card.")
    ] = None,
) -> None:
    """Write the next version of a package: new parameters, quantized and with golden vectors anew."""
    pack_module = _workbench()
    signing = _signing_key(key)
    package = read_package(_read(base), release_key=signing.public)
    data = pack_module.repack(
        package,
        _parameters(params, package),
        calibration=_calibration(calibration),
        version=version,
        key=signing,
        lineage=_lineage(lineage),
        sections=None if sections is None else read_sections(sections),
        held_out=None if heldout is None else _examples(heldout),
        progress=_progress(),
    )
    _write(out, data)
    typer.echo(f"{out}: {package.manifest.model} {version}, {len(data):,} bytes")


@app.command()
def split(
    task: Annotated[str, typer.Argument(help=f"The task: {', '.join(sorted(TASKS))}.")],
    out: Annotated[Path, typer.Option("--out", help="The directory to write to.")],
    devices: Annotated[int, typer.Option(min=1, help="How many devices share the training data.")] = 8,
    by: Annotated[
        By | None,
        typer.Option(help="What devices differ in: by default source, such as a person, where data has one."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="By label, how evenly: 100 nearly even, 0.1 a class or two each; 1."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Who gets what; the same seed, the same split.")] = 0,
) -> None:
    """Share a task's data among devices: shard-N.npz, train.npz, heldout.npz and calibration.npz."""
    _workbench()
    import numpy as np

    from umbel_models.federated import by_label, by_source

    parts = load_task(task).data()
    if by is None:
        by = By.label if parts.train.source is None else By.source
    if by is By.label:
        shards = by_label(parts.train, devices, alpha=1.0 if alpha is None else alpha, seed=seed)
    elif alpha is None:
        shards = by_source(parts.train, devices, seed=seed)
    else:
        raise UsageError("--alpha says how evenly labels are shared: give --by label as well.")
    files = {"train": parts.train, "heldout": parts.held_out, "calibration": parts.calibration}
    files |= {f"shard-{number}": shard for number, shard in enumerate(shards)}
    out.mkdir(parents=True, exist_ok=True)
    for name, examples in files.items():
        buffer = io.BytesIO()
        np.savez(buffer, x=examples.x, y=examples.y)
        _write(out / f"{name}.npz", buffer.getvalue())
    typer.echo(
        f"{out}: {len(parts.train.y):,} examples on {devices} devices, {len(parts.held_out.y):,} held out"
    )


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A package.")],
    release_key: Annotated[
        Path | None,
        typer.Option("--release-key", help="The fleet's public release key: its 32 bytes, or PEM."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest and the card as JSON.")] = False,
    as_card: Annotated[bool, typer.Option("--card", help="Print the model card as Markdown.")] = False,
) -> None:
    """Show what a package declares. Without --release-key its signature is not checked."""
    data = _read(file)
    if release_key is None:
        manifest = inspect_package(data)
    else:
        manifest = read_package(data, release_key=_verify_key(release_key)).manifest
    from umbel_models import show as words

    card, checked = words.card_of(data, manifest), release_key is not None
    if as_card:
        if card is None:
            raise UsageError(f"{file} has no model card: build it with this umbel.")
        typer.echo(card.to_markdown(), nl=False)
    elif as_json:
        typer.echo(json.dumps(words.body(manifest, card, checked=checked)))
    else:
        typer.echo("\n".join(words.lines(manifest, card, size=len(data), checked=checked)))


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(help="A package.")],
    release_key: Annotated[
        Path, typer.Option("--release-key", help="The fleet's public release key: nothing else is run.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure every variant of a package on this machine: latency, size, agreement; and a training step."""
    _workbench()
    from umbel_models.bench import measure

    package = read_package(_read(file), release_key=_verify_key(release_key))
    measured = measure(package, progress=_progress())
    typer.echo(json.dumps(measured.to_json()) if as_json else "\n".join(measured.lines()))


def _workbench() -> Any:
    try:
        from umbel_models import pack as module
    except ImportError as exc:
        raise MissingExtraError("models", "Building packages") from exc
    return module


def _signing_key(path: Path) -> SigningKey:
    return SigningKey.from_pem(_read(path))


def _verify_key(path: Path) -> VerifyKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    raw = _read(path)
    if raw.startswith(b"-----"):
        try:
            key = load_pem_public_key(raw)
        except ValueError as exc:
            raise UsageError(f"{path} is not a public key in PEM.") from exc
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{path} is not an Ed25519 key.")
        raw = key.public_bytes_raw()
    return VerifyKey(raw)


def _lineage(text: str | None) -> dict[str, Scalar]:
    if text is None:
        return {}
    if not text.lstrip().startswith("{"):
        text = _read(Path(text)).decode(errors="replace")
    try:
        facts = json.loads(text)
    except ValueError as exc:
        raise UsageError("--lineage is neither a JSON object nor a file that holds one.") from exc
    if not isinstance(facts, dict) or not all(
        isinstance(value, str | int | float) and not isinstance(value, bool) for value in facts.values()
    ):
        raise UsageError("--lineage must be one flat JSON object of text and numbers.")
    return facts


def _parameters(path: Path, base: Package) -> FloatVector:
    raw = _read(path)
    if is_update(raw):
        return read_update(raw, base)
    # Arrays that somebody trained elsewhere: nothing says from which package.
    try:
        return base.manifest.join(load_tensors(raw, path.name))
    except PackageError as exc:
        raise UsageError(str(exc)) from exc


def _calibration(path: Path) -> NDArray[Any]:
    (x,) = _arrays(path, "x")
    return x


def _examples(path: Path) -> Examples:
    import numpy as np

    x, y = _arrays(path, "x", "y")
    if len(x) != len(y) or y.dtype.kind not in "iu" or y.ndim != 1:
        raise UsageError(f"{path} holds no labels y, one whole number for each x: write them as integers.")
    return Examples(x, y.astype(np.int64))


def _arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as exc:
        wanted = f"an array {names[0]}" if len(names) == 1 else f"arrays {' and '.join(names)}"
        raise UsageError(f"{path} is not an .npz file with {wanted}.") from exc


def _progress() -> Callable[[str], None]:
    begin = time.monotonic()

    def tell(step: str) -> None:
        typer.echo(f"{time.monotonic() - begin:6.1f} s  {step}", err=True)

    return tell


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or exc}.") from exc


def _write(path: Path, data: bytes) -> None:
    # A package that is there is whole: it comes under its name only when it is on the disk.
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}.") from exc
