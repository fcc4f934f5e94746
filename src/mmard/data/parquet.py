"""Image classification sets as the Hugging Face hub and the `datasets` library keep them.

Parquet: a split is one or more shards, `train-00000-of-00002.parquet` or `train/0000.parquet`, in the folder itself or
in one below. Arrow: what `datasets.save_to_disk` leaves, `train/data-00000-of-00002.arrow`. An image is a struct with
the encoded file in `bytes`, or the bytes themselves; the label is an integer, or the name of its class. Columns are
known by their usual names, and where none has one by their types. Class names are in the schema's `huggingface`
metadata where that library wrote the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mmard.data.decoding import Encoded, Form, damaged, decoded_part, form_of, import_extra, missing, search_folders
from mmard.data.image_set import Part, Rows, numbered
from mmard.errors import Refused

_TRAIN, _TEST = ("train",), ("test", "valid", "validation", "val")
_SHARD = re.compile(r"(?P<split>[a-z]+)(-(?P<index>\d+)-of-(?P<count>\d+))?(-[0-9a-f]+)?\.parquet", re.IGNORECASE)
_SAME = {"training": "train", "testing": "test"}
_AT_A_TIME = 2**26  # bytes of images in memory

Shards = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Columns:
    """Names under which images and labels are looked for, the first that is there being taken."""

    images: tuple[str, ...] = ("image", "img")
    labels: tuple[str, ...] = ("label", "labels", "fine_label", "target", "class")
    by_type: bool = False  # or, where none is there, the only one of a fitting type


ANY_COLUMNS = Columns(by_type=True)


def read_any_parquet(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of any such set in `data_dir`.

    Where there is no test split, the one for validation takes its place, as Tiny ImageNet needs (its test labels are
    not public); the origin says so. Images are grey if all those looked at first are; otherwise RGB.

    Raises:
        Refused: if a split, a shard or a column is absent, a file is damaged, or images differ in size and no
            `image_size` is given.
    """
    for place in search_folders(data_dir, "parquet", fetchable=False):
        found = find_parquet(place, anywhere=True)
        if found is not None:
            return read_parquet(found, "parquet", image_size=image_size)
    forms = (
        "train-*.parquet and test-*.parquet, train/*.parquet and test/*.parquet, or train/data-*.arrow of save_to_disk"
    )
    raise missing("parquet", data_dir, forms, fetchable=False)


def find_parquet(place: Path, configs: Sequence[str] = (), anywhere: bool = False) -> Shards | None:
    """The shards of every split in `place`, in one of the folders `configs` or `data` within it, or in any with
    `anywhere`, which is for sets that have no name to go by.

    Raises:
        Refused: if a shard is absent, or if several folders hold a training split and none is named.
    """
    for folder in (place, *(place / config for config in configs), place / "data"):
        splits = _splits(folder)
        if "train" in splits:
            return splits
    if not anywhere:
        return None
    others = {folder: _splits(folder) for folder in sorted(place.iterdir()) if folder.is_dir()}
    others = {folder: splits for folder, splits in others.items() if "train" in splits}
    if len(others) > 1:
        names = ", ".join(folder.name for folder in others)
        raise Refused(str(place), expected="one folder of Parquet files", got=names, mend="point --data-dir at one")
    return next(iter(others.values()), None)


def _splits(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if match:
            split = match["split"].lower()
            split = _SAME.get(split, split)
            splits.setdefault(split, []).append(path)
            counts[split] = int(match["count"] or 1)
    for inside in sorted(folder.iterdir()) if not splits and folder.is_dir() else ():
        split = _SAME.get(inside.name.lower(), inside.name.lower())
        # Of one save_to_disk there may be caches beside the data.
        files = [*inside.glob("*.parquet"), *inside.glob("data-*-of-*.arrow")] if split in (*_TRAIN, *_TEST) else []
        if files:
            splits[split] = sorted(files)
            of = re.search(r"-of-(\d+)\.", files[0].name)
            counts[split] = int(of[1]) if of else len(files)
    for split in (*_TRAIN, *_TEST):
        if split in splits and len(splits[split]) != counts[split]:
            where = f"{splits[split][0].parent}/{split}"
            got = str(len(splits[split]))
            raise Refused(where, expected=f"{counts[split]} shards", got=got, mend="fetch the set again")
    return splits


def read_parquet(
    shards: Shards,
    name: str,
    columns: Columns = ANY_COLUMNS,
    classes: tuple[str, ...] | None = None,
    shape: tuple[int, int, int] | None = None,
    image_size: int | None = None,
) -> tuple[Part, Part]:
    """The train and the test part; class names and shape are found out where they are not given."""
    test = next((split for split in _TEST if split in shards), None)
    if test is None:
        first = shards["train"][0].parent
        raise Refused(f"{first}", expected=f"a test split ({' or '.join(_TEST)})", got=", ".join(shards))
    tables = {split: [_Table(path, columns) for path in shards[split]] for split in ("train", test)}
    named = {table.path.name: table.classes() for each in tables.values() for table in each}
    lists = list(dict.fromkeys(names for names in named.values() if names is not None))
    if len(lists) > 1:
        odd = next(name for name, names in named.items() if names not in (None, lists[0]))
        differ = next((a, b) for a, b in zip_longest(*lists[:2]) if a != b)
        expected = f"the class names of the other files, {differ[0]!r}"
        raise Refused(odd, expected=expected, got=repr(differ[1]), mend="are the files of one set?")
    if classes is None and lists:
        classes = lists[0]
    found = {split: np.concatenate([table.labels() for table in each]) for split, each in tables.items()}
    if classes is None and found["train"].dtype.kind not in "iu":
        classes = tuple(sorted(set(found["train"].tolist())))
    labels = {split: _whole(each, classes, f"{name}, {split}") for split, each in found.items()}
    if classes is None:
        classes = numbered(labels["train"], f"{tables['train'][0].path}")
    form, note = (Form(shape), "") if shape else form_of(_samples(tables["train"][0]), image_size)

    def part(split: str) -> Part:
        label = "train" if split == "train" else "test" if split == "test" else f"{split} as test"
        each = tables[split]

        files = tuple(table.path for table in each)
        origin = f"{name}, {each[0].kind}, {label}{note}"
        return decoded_part(labels[split], form, partial(_encoded, each), files, classes, origin)

    return part("train"), part(test)


def _whole(labels: np.ndarray[Any, Any], classes: tuple[str, ...] | None, where: str) -> Rows:
    """Labels as numbers, from the names of classes where they are those."""
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    numbers = {name: number for number, name in enumerate(classes or ())}
    strange = next((name for name in labels.tolist() if name not in numbers), None)
    if strange is not None:
        raise Refused(where, expected=f"a class of the training images: {', '.join(numbers)}", got=repr(strange))
    return np.array([numbers[name] for name in labels.tolist()], np.int64)


def _samples(table: _Table) -> list[Encoded]:
    """A few images from the beginning, which tell the form of the rest."""
    if not len(table):
        raise Refused(str(table.path), expected="at least one image", got="none")
    return list(table.encoded(np.unique(np.linspace(0, min(len(table), 1024) - 1, 32).astype(np.int64))))


def _encoded(tables: Sequence[_Table], rows: Rows) -> Iterator[Encoded]:
    """The images at ascending rows of several shards taken as one."""
    start = 0
    for table in tables:
        stop = start + len(table)
        yield from table.encoded(rows[(rows >= start) & (rows < stop)] - start)
        start = stop


class _Arrow:
    """A file of Arrow batches with what of a Parquet file is used here; it stays on disk."""

    def __init__(self, path: Path) -> None:
        pa = import_extra("pyarrow", "reading Arrow files")
        source = pa.memory_map(str(path))
        try:
            self._table: Any = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            self._table = pa.ipc.open_file(source).read_all()
        self.schema_arrow, self.num_rows = self._table.schema, self._table.num_rows

    @property
    def metadata(self) -> _Arrow:
        return self

    def read(self, columns: list[str]) -> Any:
        return self._table.select(columns)

    def iter_batches(self, size: int, columns: list[str]) -> Any:
        return self._table.select(columns).to_batches(max_chunksize=size)


class _Table:
    """One shard."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.kind = path, "Arrow" if path.suffix == ".arrow" else "Parquet"
        module = import_extra("pyarrow.parquet", "reading Parquet files")
        try:
            self._file: Any = _Arrow(path) if self.kind == "Arrow" else module.ParquetFile(path)
        except Refused:
            raise
        except Exception as error:  # pyarrow's errors derive from several built-in ones
            raise self._damaged(error) from error
        self._image = self._column("images", columns.images, columns.by_type)
        self._label = self._column("labels", columns.labels, columns.by_type)

    def _damaged(self, error: Exception) -> Refused:
        return damaged(self.path, f"{'an' if self.kind == 'Arrow' else 'a'} {self.kind} file", error)

    def _column(self, kind: str, wanted: Sequence[str], by_type: bool) -> str:
        schema = self._file.schema_arrow
        for name in wanted:
            if name in schema.names:
                return name
        fitting = ("struct<bytes", "binary", "large_binary") if kind == "images" else ("int", "uint")
        alike = [field.name for field in schema if str(field.type).startswith(fitting)]
        if by_type and len(alike) == 1:
            return str(alike[0])
        raise Refused(
            str(self.path),
            expected=f"a column of {kind} named {' or '.join(wanted)}",
            got=f"columns {', '.join(schema.names)}",
            mend="rename a column of it" if by_type else "is this the right data set?",
        )

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def classes(self) -> tuple[str, ...] | None:
        """Names that the `datasets` library left in the schema, if it wrote the file."""
        metadata = self._file.schema_arrow.metadata or {}
        try:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][self._label]["names"]
        except (KeyError, TypeError, ValueError):
            return None
        return tuple(map(str, names))

    def labels(self) -> np.ndarray[Any, Any]:
        """Integers, or names of classes."""
        try:
            column = self._file.read([self._label]).column(0)
        except Exception as error:
            raise self._damaged(error) from error
        kind = str(column.type)
        if not kind.startswith(("int", "uint", "string", "large_string")) or column.null_count:
            got = f"{column.type} with {column.null_count} left out"
            expected = "an integer, or the name of a class, for every image"
            raise Refused(f"{self.path}, column {self._label!r}", expected=expected, got=got)
        return np.asarray(column.to_pylist()) if "string" in kind else column.to_numpy().astype(np.int64)

    def encoded(self, rows: Rows) -> Iterator[Encoded]:
        """The images at ascending rows, some megabytes in memory at a time."""
        start = 0
        last = int(rows[-1]) if len(rows) else -1
        mean = self.path.stat().st_size / max(1, len(self))
        try:
            for batch in self._file.iter_batches(max(1, min(1024, int(_AT_A_TIME / mean))), columns=[self._image]):
                here = rows[(rows >= start) & (rows < start + len(batch))]
                if len(here):
                    yield from self._batch(batch.column(0), here, start)
                start += len(batch)
                if start > last:
                    return
        except Refused:
            raise
        except Exception as error:
            raise self._damaged(error) from error

    def _batch(self, column: Any, rows: Rows, start: int) -> Iterator[Encoded]:
        for row, cell in zip(rows, column.take(rows - start).to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            name = f"row {row} of {self.path}"
            if not isinstance(content, bytes):
                mend = "it holds paths of files, not the files" if isinstance(cell, dict) and cell.get("path") else ""
                got = type(content).__name__
                raise Refused(f"image {name}", expected="the encoded image itself", got=got, mend=mend)
            yield name, content
