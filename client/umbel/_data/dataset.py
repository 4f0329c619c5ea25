"""The local data set of one model: what its rounds train on. It never leaves the device.

Whether an example is kept from training depends on its content alone, by a keyed hash of the input rounded
to 32 steps of its range: so a copy, exact or near, is never on the other side.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._data.consent import Consent
from umbel._data.examples import Examples
from umbel._data.lineage import Label, agreed, check_words, pack, unpack, voices
from umbel._data.report import DataReport, imbalance, leaks, repeats
from umbel._data.rows import NewRow, Retention, Row
from umbel._data.store import Store, erase
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel.train.evaluate import hold_back
from umbel_proto.answers import checked_answers
from umbel_proto.contract import Column, Field
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, Manifest

STEPS = 32
"""Into so many steps the range of an input is rounded, to find near copies."""
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An example with its lineage.

    Args:
        id: 16 hexadecimal digits.
        source: Where its input is from.
        at_s: When it came, Unix seconds of the device's clock.
        labels: Every label it was given, oldest first.
        y: What training takes: the label that most annotators gave it last, or the median of their targets;
            None while there is none, or as many for one class as for another.
        agreement: The share of annotators that gave ``y``; None without a label, or for targets.
        x: The input.
    """

    id: str
    source: str
    at_s: float
    labels: tuple[Label, ...]
    y: int | tuple[float, ...] | None
    agreement: float | None
    x: NDArray[Any] = field(repr=False)


class DataSet:
    """A model's examples on this device, encrypted at rest.

    Args:
        home: The device's files.
        manifest: What the installed version of the model takes and answers.
        clock: Returns Unix time, seconds.

    Raises:
        StorageError: The file is damaged.
    """

    def __init__(
        self, home: DeviceHome, manifest: Manifest, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._manifest = manifest
        self._field = manifest.contract.fields[0]
        self._consent = Consent(home, clock=clock)
        self._clock = clock
        self._schema = _schema(manifest)
        self._low, self._step = _grid(self._field)
        if self._consent.decision().state == "revoked":
            erase(home.examples, home.examples_key)  # A crash may have come before the end of it.
        self._store = Store(home.examples, home.examples_key)
        self._closed = False

    def __enter__(self) -> DataSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DataSet({self._manifest.model!r})"

    @property
    def model(self) -> str:
        """The model that it is for."""
        return self._manifest.model

    @property
    def closed(self) -> bool:
        """Whether it was closed, by itself or with its device."""
        return self._closed

    def close(self) -> None:
        """Close the file. What was added is on disk already, and ``device.data`` opens it again."""
        self._closed = True
        self._store.close()

    def add(self, x: object, y: object = None, *, source: str, annotator: str = "") -> tuple[str, ...]:
        """Keep one example, or a batch of them. When this returns they are on disk.

        Args:
            x: What the model takes: one input of the contract's shape, or a batch of them.
            y: The label of each, all by number or all by the names in the model's ``labels``, or its target; None if
                nobody knows yet.
            source: Where they are from, such as ``user``.
            annotator: Who gave the labels.

        Returns:
            Their ids.

        Raises:
            UsageError: They break the model's data contract, or it has no such label; none is kept.
            RefusedError: The user took back consent.
            StorageError: The disk is full; none is kept.
        """
        batch, single = self._field.check(x)
        answers = None if y is None else self._answers(y, len(batch), single=single)
        check_words(source, annotator)
        if not source:
            raise UsageError("Say where an example is from: give a source, such as 'user'.")
        now_s = self._clock()
        origin = pack({"source": source}, b"")
        with self._store.writing() as writer:
            self._consent.require()
            cipher = writer.cipher()
            rows = [
                NewRow(
                    marks=_marks(cipher.mark, self._rounded(batch[index])),
                    content=origin + batch[index].tobytes(),
                    label=None
                    if answers is None
                    else pack({"source": source, "annotator": annotator}, answers[index].tobytes()),
                )
                for index in range(len(batch))
            ]
            return tuple(writer.add(self.model, self._schema, rows, now_s=now_s))

    def label(self, example: str, y: object, *, source: str, annotator: str = "") -> None:
        """Give an example a label, beside those it has.

        Of each annotator the newest counts; without a name, of each source.

        Args:
            example: Its id.
            y: The label, by number or by name, or the target.
            source: Where the label is from.
            annotator: Who gave it.

        Raises:
            UsageError: There is no such example, or the model has no such class.
            RefusedError: The user took back consent.
            StorageError: The disk is full.
        """
        (answer,) = self._answers(y, 1, single=True)
        check_words(source, annotator)
        content = pack({"source": source, "annotator": annotator}, answer.tobytes())
        with self._store.writing() as writer:
            self._consent.require()
            writer.label(self.model, example, content, now_s=self._clock())

    def remove(self, *examples: str) -> int:
        """Delete examples by id, and return how many of them were here.

        Args:
            examples: Their names, as ``add`` gave them: 16 hexadecimal digits each.

        Raises:
            UsageError: One is no such name.
            StorageError: The disk is full, or the file damaged.
        """
        with self._store.writing() as writer:
            return writer.remove(self.model, examples)

    def clear(self) -> int:
        """Delete every example of this model, and return how many there were."""
        with self._store.writing() as writer:
            return writer.clear(self.model)

    def retain(self, retention: Retention) -> None:
        """Keep examples within these bounds from now on; what is over them goes now.

        Args:
            retention: The bounds: age in seconds, rows, and bytes as they lie encrypted.

        Raises:
            UsageError: They are no bounds.
            StorageError: The disk is full, or the file damaged.
        """
        given: object = retention
        if not isinstance(given, Retention):
            raise UsageError(
                f"{given!r:.40} is no Retention: give umbel.Retention(max_rows=...), or other bounds."
            )
        with self._store.writing() as writer:
            writer.retain(self.model, retention)
            writer.expire(self.model, now_s=self._clock())

    @property
    def retention(self) -> Retention:
        """Within what bounds examples are kept."""
        return self._store.retention(self.model)

    def examples(self) -> tuple[Example, ...]:
        """Return every example that the installed version of the model takes, oldest first.

        Raises:
            StorageError: The file is damaged, or its key missing.
        """
        return tuple(example for _, example in self._usable())

    def training(self) -> Examples:
        """Return the examples that have a label, as training takes them.

        Raises:
            UsageError: There is none.
            StorageError: The file is damaged, or its key missing.
        """
        with self._store.writing() as writer:
            writer.expire(self.model, now_s=self._clock())
        labeled = [(row, example) for row, example in self._usable() if example.y is not None]
        if not labeled:
            raise UsageError(
                f"There is no labeled example of model {self.model} on this device: add some with "
                f"device.data({self.model!r}).add(x, y, source=...), or  umbel data import FILE"
            )
        kind = np.int64 if self._manifest.kind == CLASSIFICATION else np.float32
        shape = () if self._manifest.kind == CLASSIFICATION else self._manifest.answer_shape
        return Examples(
            np.stack([example.x for _, example in labeled]),
            np.array([example.y for _, example in labeled], kind).reshape(len(labeled), *shape),
            np.array([_place(row) for row, _ in labeled], np.uint64),
        )

    def split(self, share: float = TEST_SHARE) -> tuple[Examples, Examples]:
        """Return the labeled examples to train on, and those to test on.

        Args:
            share: Of them to test on, in [0, 1/2]. With 0 both are all of them.

        Raises:
            UsageError: There are too few.
        """
        return hold_back(self.training(), share)

    def report(self) -> DataReport:
        """Return what there is: balance, lineage, copies and leaks.

        Raises:
            StorageError: The file is damaged, or its key missing.
        """
        with self._store.writing() as writer:
            writer.expire(self.model, now_s=self._clock())
        rows = self._store.rows(self.model)
        usable = self._read(rows)
        held = next((each for each in self._store.held() if each.model == self.model), None)
        classes = Counter(example.y for _, example in usable if isinstance(example.y, int))
        names = self._manifest.labels
        tested = [_place(row) < TEST_SHARE * 2**64 for row, _ in usable]
        several = [e.agreement for _, e in usable if e.agreement is not None and len(voices(e.labels)) > 1]
        times = [row.added_s for row in rows]
        return DataReport(
            model=self.model,
            rows=len(rows),
            bytes=0 if held is None else held.bytes,
            oldest_s=min(times, default=None),
            newest_s=max(times, default=None),
            unlabeled=sum(not example.labels for _, example in usable),
            disputed=sum(example.y is None and bool(example.labels) for _, example in usable),
            unusable=len(rows) - len(usable),
            labels={name: classes[number] for number, name in enumerate(names)},
            imbalance=imbalance([classes[number] for number in range(len(names))]),
            sources=dict(sorted(Counter(example.source for _, example in usable).items())),
            agreement=sum(several) / len(several) if several else None,
            train=tested.count(False),
            test=tested.count(True),
            copies=repeats([row.marks[0] for row in rows]),
            near_copies=repeats([row.marks[1] for row in rows]) - repeats([row.marks[0] for row in rows]),
            leaks=leaks([row.marks[2] for row, _ in usable], tested),
            expired=0 if held is None else held.expired,
            crowded=0 if held is None else held.crowded,
        )

    def _answers(self, y: object, count: int, *, single: bool) -> NDArray[Any]:
        try:
            answers = np.asarray(y)
        except ValueError as exc:
            raise UsageError(
                "The labels y are not an array, as some have another length: give one label for each."
            ) from exc
        if self._manifest.kind == CLASSIFICATION:
            if answers.dtype.kind in "OTU":
                answers = self._numbers(np.asarray(y, object))
            answers = answers.reshape(count) if answers.size == count else answers
        elif single and answers.shape == self._manifest.answer_shape:
            answers = answers[np.newaxis]
        return checked_answers(self._manifest, answers, count)

    def _numbers(self, names: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers of labels that are given by name; what holds no name, as it is."""
        given, labels = names.reshape(-1).tolist(), self._manifest.labels
        if not any(isinstance(each, str) for each in given):
            return names
        for each in given:
            if not isinstance(each, str) or each not in labels:
                raise UsageError(
                    f"Model {self.model} has no label {each!r:.80}: give all of them by name, or whole numbers in "
                    f"0..{len(labels) - 1}."
                )
        return np.array([labels.index(each) for each in given]).reshape(names.shape)

    def _usable(self) -> list[tuple[Row, Example]]:
        return self._read(self._store.rows(self.model))

    def _read(self, rows: Sequence[Row]) -> list[tuple[Row, Example]]:
        """Return the rows that keep the installed version's contract; an older one's may have been wider."""
        return [
            (row, example)
            for row in rows
            if row.schema == self._schema
            for example in [self._example(row)]
            if self._keeps(example.x)
        ]

    def _keeps(self, x: NDArray[Any]) -> bool:
        try:
            self._field.check(x)
        except UsageError:
            return False
        return True

    def _example(self, row: Row) -> Example:
        fields, raw = unpack(row.content)
        x = np.frombuffer(raw, np.dtype(self._field.dtype)).reshape(self._field.shape)
        labels = tuple(self._label(at_s, content) for at_s, content in row.labels)
        y, agreement = agreed(labels)
        return Example(row.name, fields["source"], row.added_s, labels, y, agreement, x)

    def _label(self, at_s: float, content: bytes) -> Label:
        fields, raw = unpack(content)
        y: int | tuple[float, ...]
        if self._manifest.kind == CLASSIFICATION:
            y = int(np.frombuffer(raw, np.int64)[0])
        else:
            y = tuple(np.frombuffer(raw, np.float32).tolist())
        return Label(y, fields["source"], fields["annotator"], at_s)

    def _rounded(self, x: NDArray[Any]) -> tuple[bytes, bytes, bytes]:
        """Return an input as it is, and rounded on two grids; what is missing is a step of its own."""
        with np.errstate(invalid="ignore"):
            steps = (x.astype(np.float64) - self._low) / self._step
        # Flagged values may lie anywhere; beyond the range's ends they are all alike.
        steps = np.where(np.isnan(steps), -2.0, np.clip(steps, -1.0, 2**31 - 2))
        return x.tobytes(), np.rint(steps).astype("<i4").tobytes(), np.floor(steps).astype("<i4").tobytes()


def open_data(
    home: DeviceHome, shelf: Shelf, model: str, *, clock: Callable[[], float] = time.time
) -> DataSet:
    """Return the data set of an installed model.

    Raises:
        UsageError: The model is not installed: nobody knows what an example must look like.
        StorageError: The data set is damaged.
    """
    installed = shelf.active(model)
    if installed is None:
        raise UsageError(
            f"No model {model!r} is installed, and only it says what an example is: let the device fetch it first, with device.sync()."
        )
    return DataSet(home, shelf.package(installed).manifest, clock=clock)


def _grid(only: Field) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower end and the step of each value's grid, in shapes that go with an example's.

    Where only certain values are legal, no two of them are near each other.
    """
    columns = only.columns or (Column("x", only.minimum, only.maximum),)
    steps = [
        min(high - low for low, high in pairwise(each.values))
        if len(each.values) > 1
        else (each.maximum - each.minimum) / STEPS or 1.0
        for each in columns
    ]
    return np.array([each.minimum for each in columns]), np.array(steps)


def _schema(manifest: Manifest) -> bytes:
    """Return a digest of what an example must look like to be used by a version of a model at all."""
    only = manifest.contract.fields[0]
    shape = json.dumps([list(only.shape), list(manifest.answer_shape), list(manifest.labels)])
    return digest("umbel/1/local-schema", only.name, only.dtype, manifest.kind, shape)


def _marks(
    mark: Callable[[str, bytes], bytes], contents: tuple[bytes, bytes, bytes]
) -> tuple[bytes, bytes, bytes]:
    exact, near, shifted = contents
    return mark("exact", exact), mark("near", near), mark("shifted", shifted)


def _place(row: Row) -> int:
    """Return a uniform number below 2**64 that is the same for copies: where in a split it falls."""
    return int.from_bytes(row.marks[1][:8], "little")
