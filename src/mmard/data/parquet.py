"""Image classification sets in Parquet, as the Hugging Face hub keeps them.

A split is one or more shards, `train-00000-of-00002.parquet`, in the folder itself or one below. An image is a struct
with the encoded file in `bytes`; the label is an integer. Class names are in the schema's `huggingface` metadata where
the `datasets` library wrote the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mmard.data.decoding import Encoded, Form, damaged, decode, form_of, import_extra, missing, search_folders
from mmard.data.image_set import Images, Part, Rows, numbered
from mmard.errors import Refused

_TRAIN, _TEST = ("train",), ("test", "valid", "validation", "val")
_SHARD = re.compile(r"(?P<split>[a-z]+)(-(?P<index>\d+)-of-(?P<count>\d+))?(-[0-9a-f]+)?\.parquet", re.IGNORECASE)
_SAME = {"training": "train", "testing": "test"}

Shards = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Columns:
    """Names under which images and labels are looked for, the first that is there being taken."""

    images: tuple[str, ...] = ("image", "img")
    labels: tuple[str, ...] = ("label", "labels", "fine_label")


ANY_COLUMNS = Columns()


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
    raise missing("parquet", data_dir, "train-*.parquet and test-*.parquet", fetchable=False)


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
    for split in (*_TRAIN, *_TEST):
        if split in splits and len(splits[split]) != counts[split]:
            where = f"{folder}/{split}-*.parquet"
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
    labels = {split: np.concatenate([table.labels() for table in each]) for split, each in tables.items()}
    if classes is None:
        classes = numbered(labels["train"], f"{tables['train'][0].path}")
    form, note = (Form(shape), "") if shape else form_of(_samples(tables["train"][0]), image_size)

    def part(split: str) -> Part:
        label = "train" if split == "train" else "test" if split == "test" else f"{split} as test"
        each = tables[split]

        def read(rows: Rows) -> Iterator[Images]:
            return decode(_encoded(each, rows), form)

        files = tuple(table.path for table in each)
        return Part(labels[split], form.shape, read, files, classes, f"{name}, Parquet, {label}{note}")

    return part("train"), part(test)


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


class _Table:
    """One shard."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        module = import_extra("pyarrow.parquet", "reading Parquet files")
        try:
            self._file: Any = module.ParquetFile(path)
        except Exception as error:  # pyarrow's errors derive from several built-in ones
            raise damaged(path, "a Parquet file", error) from error
        names = self._file.schema_arrow.names
        self._image = self._column("images", columns.images, names)
        self._label = self._column("labels", columns.labels, names)

    def _column(self, kind: str, wanted: Sequence[str], names: Sequence[str]) -> str:
        for name in wanted:
            if name in names:
                return name
        raise Refused(
            str(self.path),
            expected=f"a column of {kind} named {' or '.join(wanted)}",
            got=f"columns {', '.join(names)}",
            mend="is this the right data set?",
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

    def labels(self) -> Rows:
        try:
            column = self._file.read([self._label]).column(0)
        except Exception as error:
            raise damaged(self.path, "a Parquet file", error) from error
        if not str(column.type).startswith(("int", "uint")) or column.null_count:
            got = f"{column.type} with {column.null_count} left out"
            raise Refused(f"{self.path}, column {self._label!r}", expected="an integer for every image", got=got)
        labels: Rows = column.to_numpy().astype(np.int64)
        return labels

    def encoded(self, rows: Rows) -> Iterator[Encoded]:
        """The images at ascending rows, a thousand in memory at a time."""
        start = 0
        last = int(rows[-1]) if len(rows) else -1
        try:
            for batch in self._file.iter_batches(1024, columns=[self._image]):
                here = rows[(rows >= start) & (rows < start + len(batch))]
                if len(here):
                    yield from self._batch(batch.column(0), here, start)
                start += len(batch)
                if start > last:
                    return
        except Refused:
            raise
        except Exception as error:
            raise damaged(self.path, "a Parquet file", error) from error

    def _batch(self, column: Any, rows: Rows, start: int) -> Iterator[Encoded]:
        for row, cell in zip(rows, column.take(rows - start).to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            name = f"row {row} of {self.path}"
            if not isinstance(content, bytes):
                raise Refused(f"image {name}", expected="the encoded image itself", got=type(content).__name__)
            yield name, content
