"""Sources whose images are listed: tables of paths and labels, and tar shards as WebDataset lays them.

`csv` is train.csv and test.csv in a folder, or one .csv file: with a column `split`, or a fifth of it, by the images'
names, is set aside as test. A line names an image (column path, file, filename, file_name or image; relative to the
file) and its class (label, class, target or category: numbers from 0, or names). A .tsv has tabs instead of commas.

`webdataset` is shards such as train-000000.tar and test-000000.tar, not compressed. Files whose names are the same up
to the first dot are one sample: an image (.jpg, .png, ...) and its class as text in .cls, or in .json under label, cls,
class or target. Shards are read in place.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmard.data.decoding import Encoded, damaged, decoded_part, form_of, missing, search_folders
from mmard.data.folders import IMAGE_SUFFIXES, SPLIT_NAMES, set_aside
from mmard.data.image_set import Part, Rows, numbered
from mmard.errors import Refused

_PATHS = ("path", "file", "filename", "file_name", "image", "img")
_LABELS = ("label", "class", "target", "category", "cls")
_LOOKED_AT = 4096
_MOST_LABEL = 2**16  # bytes of a sample's label

Names = list[str]


def classes_of(train: Names, test: Names, where: str) -> tuple[tuple[str, ...], list[Rows]]:
    """Names of the classes and the labels of both parts as numbers, from labels as text.

    Raises:
        Refused: for a label that no training image has.
    """
    if all(re.fullmatch(r"\d{1,6}", label) for label in (*train, *test)):
        ys = [np.array([int(label) for label in part], np.int64) for part in (train, test)]
        return numbered(ys[0], where), ys
    classes = tuple(sorted(set(train)))
    number = {name: k for k, name in enumerate(classes)}
    strange = sorted(set(test) - set(classes))
    if strange:
        raise Refused(where, expected="test labels that training images have", got=repr(strange[0]))
    return classes, [np.array([number[label] for label in part], np.int64) for part in (train, test)]


def _split_of(word: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if word.lower() in names), None)


def read_csv(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part that tables of paths and labels name.

    Raises:
        Refused: if a table or a column is absent, a line has no path or no label, or a label is of no class.
    """
    forms = "train.csv and test.csv, or one .csv file"
    search_folders(data_dir.parent if data_dir.is_file() else data_dir, "csv", fetchable=False)
    inside = (
        [data_dir] if data_dir.is_file() else [f for end in ("csv", "tsv") for f in sorted(data_dir.glob(f"*.{end}"))]
    )
    files = {_split_of(path.stem): path for path in inside}
    if "train" in files and ("test" in files or "val" in files):
        train, test = _lines(files["train"], ""), _lines(files.get("test") or files["val"], "")
        note = "test" if "test" in files else "val as test"
    elif len(inside) == 1:
        every = _lines(inside[0], "split")
        splits = {_split_of(split) for _, _, split in every}
        if "train" in splits and splits & {"test", "val"}:
            other = "test" if "test" in splits else "val"
            train, test = ([line for line in every if _split_of(line[2]) == word] for word in ("train", other))
            note = "test" if other == "test" else "val as test"
        else:
            labels = sorted({label for _, label, _ in every})
            root = inside[0].parent
            parts = set_aside([(Path(path), labels.index(label)) for path, label, _ in every], root)
            train, test = ([(str(path), labels[k], "") for path, k in part] for part in parts)
            note = "a fifth, by file name, as test"
    else:
        raise missing("csv", data_dir, forms, fetchable=False)
    if not train or not test:
        raise missing("csv", data_dir, forms, fetchable=False)
    classes, ys = classes_of([line[1] for line in train], [line[1] for line in test], str(inside[0]))
    sample = train[:: -(-len(train) // _LOOKED_AT)]
    form, grey = form_of([(path, Path(path)) for path, _, _ in sample], image_size)
    found = []
    for lines, y, word in ((train, ys[0], "train"), (test, ys[1], note)):
        paths = [Path(path) for path, _, _ in lines]

        def encoded(rows: Rows, paths: Sequence[Path] = paths) -> Iterator[Encoded]:
            return ((str(paths[row]), paths[row]) for row in rows)

        found.append(decoded_part(y, form, encoded, tuple(paths), classes, f"csv, {word}{grey}"))
    return found[0], found[1]


def _lines(file: Path, extra: str) -> list[tuple[str, str, str]]:
    """Path, label and the text of a further column, of every line of a table."""
    expected = "a table with a line of column names"
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            table = csv.DictReader(opened, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
            columns = {str(name).strip().lower(): name for name in table.fieldnames or ()}
            found = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(file, expected, error) from error
    path, label = (next((columns[name] for name in names if name in columns), None) for names in (_PATHS, _LABELS))
    if path is None or label is None:
        wanted = " or ".join(_PATHS if path is None else _LABELS)
        raise Refused(str(file), expected=f"a column {wanted}", got=", ".join(map(str, columns)) or "no columns")
    lines = []
    for number, row in enumerate(found, 2):
        if not (row[path] or "").strip() or not (row[label] or "").strip() or None in row:
            got = "no path" if not (row[path] or "").strip() else "another number of fields"
            raise Refused(f"{file}, line {number}", expected="a path and a label", got=got)
        split = row[columns[extra]] if extra in columns else ""
        lines.append((str(file.parent / row[path].strip()), row[label].strip(), (split or "").strip()))
    return lines


def read_webdataset(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part in tar shards.

    Raises:
        Refused: if there are no shards of a split, one is damaged or compressed, or a sample lacks image or label.
    """
    splits: dict[str, list[Path]] = {}
    for folder in search_folders(data_dir, "webdataset", fetchable=False):
        for path in sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")]):
            words = [re.split(r"[^a-zA-Z]", path.name)[0], path.parent.name]
            split = next((found for word in words if (found := _split_of(word))), None)
            if split is not None:
                splits.setdefault(split, []).append(path)
        if splits:
            break
    other = "test" if "test" in splits else "val"
    if "train" not in splits or other not in splits:
        raise missing("webdataset", data_dir, "train-*.tar and test-*.tar", fetchable=False)
    samples = {split: [one for path in splits[split] for one in _samples(path)] for split in ("train", other)}
    labels = {split: [label for _, _, _, label in own] for split, own in samples.items()}
    classes, ys = classes_of(labels["train"], labels[other], f"webdataset in {data_dir}")

    def encoded(split: str, rows: Rows) -> Iterator[Encoded]:
        for row in rows:
            path, offset, size, _ = samples[split][row]
            with path.open("rb") as file:
                file.seek(offset)
                yield f"{row} of {path}", file.read(size)

    stride = -(-len(ys[0]) // _LOOKED_AT)
    form, grey = form_of(list(encoded("train", np.arange(0, len(ys[0]), stride))), image_size)
    parts = []
    for split, y in (("train", ys[0]), (other, ys[1])):
        word = "train" if split == "train" else "test" if split == "test" else "val as test"

        def own(rows: Rows, split: str = split) -> Iterator[Encoded]:
            return encoded(split, rows)

        parts.append(decoded_part(y, form, own, tuple(splits[split]), classes, f"webdataset, tar shards, {word}{grey}"))
    return parts[0], parts[1]


def _samples(path: Path) -> list[tuple[Path, int, int, str]]:
    """Of every sample in a shard: where its image lies, and its label as text."""
    expected = "a tar shard that is not compressed"
    images: dict[str, tuple[Path, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, dot, end = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{key}"
                if not member.isfile() or not dot:
                    continue
                if f".{end.lower()}" in IMAGE_SUFFIXES:
                    images[key] = (path, member.offset_data, member.size)
                elif end.lower() in ("cls", "json") and member.size <= _MOST_LABEL:
                    content = tar.extractfile(member)
                    label = _label(content.read() if content else b"", end.lower())
                    labels |= {} if label is None else {key: label}
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise damaged(path, expected, error) from error
    for one, has, lacks in ((images, "an image", "label (.cls or .json)"), (labels, "a label", "image")):
        other = labels if one is images else images
        alone = next((key for key in one if key not in other), None)
        if alone is not None:
            raise Refused(
                f"{path}, sample {alone.lstrip('/')}", expected="an image and a label", got=f"{has}, no {lacks}"
            )
    return [(*where, labels[key]) for key, where in images.items()]


def _label(content: bytes, end: str) -> str | None:
    text = content.decode("utf-8").strip()
    if end == "cls":
        return text
    said = json.loads(text)
    value = next((said[name] for name in _LABELS if name in said), None) if isinstance(said, dict) else said
    return None if value is None or isinstance(value, bool | dict | list | float) else str(value).strip()
