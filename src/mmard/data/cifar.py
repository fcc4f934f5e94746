"""CIFAR-10 and CIFAR-100 in every form they are handed around in.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 32 x 32 colour images, 50,000 to train on and
10,000 to test. Searched for in this order: the official python files, as a folder or as the .tar.gz they come in; the
official binary files, likewise; Parquet as on the Hugging Face hub. CIFAR-100 has its 100 fine labels.

The number of images is not enforced, so an excerpt in the same form can be read; what is enforced is that no file of
the form is absent and that each holds whole images.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path

import numpy as np

from mmard.data.decoding import blocks_of, damaged, mapped, missing, search_folders, unpacked
from mmard.data.image_set import Images, Part, Rows, averaged, part_of_arrays, whole_labels
from mmard.data.parquet import Columns, find_parquet, read_parquet
from mmard.data.pickles import read_pickle
from mmard.errors import Refused

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MOST_BYTES = 2**29  # of a file; the largest official one has 154 million
_Arrays = tuple[Images, Rows]


def _python(data: mmap, label: str) -> _Arrays:
    """Images and labels of a python file, whose labels are a list named `label`."""
    content = read_pickle(data)
    if label not in content or "data" not in content:
        raise ValueError(f"no {label!r} and 'data' in it but {', '.join(map(repr, content))}")
    x = content["data"]
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != _PIXELS:
        raise ValueError(f"pixels of shape {getattr(x, 'shape', None)} instead of (n, {_PIXELS})")
    y = whole_labels(np.asarray(content[label]), f"labels {label!r}")
    if y.shape != (len(x),):
        raise ValueError(f"{len(y)} labels for {len(x)} images")
    return x.reshape(-1, *_SHAPE), y


def _binary(data: mmap, label_bytes: int) -> _Arrays:
    """Images and labels of a binary file: before each image `label_bytes` bytes, of which the last is its label."""
    row = label_bytes + _PIXELS
    if len(data) % row:
        raise ValueError(f"{len(data):,} bytes, which is no multiple of the {row:,} that an image takes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:].reshape(-1, *_SHAPE), rows[:, label_bytes - 1].astype(np.int64)


@dataclass(frozen=True)
class Layout:
    """One official form: in words, as a folder, as an archive; the files of each split; and how one is read."""

    form: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    reader: Callable[[mmap], _Arrays]

    @property
    def files(self) -> tuple[str, ...]:
        return self.train + self.test

    def find(self, place: Path) -> Path | None:
        """The folder or the archive that holds this form, if it lies at `place`."""
        for inside in (place / self.folder, place):
            if any((inside / name).is_file() for name in self.files):
                return inside
        return place / self.archive if (place / self.archive).is_file() else None

    def read(self, source: Path, title: str) -> dict[str, _Arrays]:
        """Each file's images and labels, from a folder or an archive."""
        expected = f"an {self.form} file of {title}"
        if source.is_dir():
            return {name: self._read_file(source / name, expected) for name in self.files}
        found = {}
        try:
            # One pass through the stream.
            with tarfile.open(source, "r|gz") as tar:
                for member in tar:
                    name = Path(member.name).name
                    content = tar.extractfile(member) if name in self.files and member.isfile() else None
                    if content is not None:
                        found[name] = self.reader(unpacked(blocks_of(content), _MOST_BYTES))
        except Refused:
            raise
        except Exception as error:  # gzip, tar, pickle and shapes each fail in their own ways
            raise damaged(source, f"an archive with each {expected.removeprefix('an ')}", error) from error
        absent = [name for name in self.files if name not in found]
        if absent:
            raise damaged(source, f"an archive with each {expected.removeprefix('an ')}", f"no {', '.join(absent)}")
        return found

    def _read_file(self, path: Path, expected: str) -> _Arrays:
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if not 0 < size <= _MOST_BYTES:
                    raise ValueError(f"{size:,} bytes")
                return self.reader(mapped(file))
        except FileNotFoundError:
            raise Refused(str(path), expected=expected, got="no such file", mend="copy the whole folder") from None
        except Exception as error:
            raise damaged(path, expected, error) from error


@dataclass(frozen=True)
class Cifar:
    """One of the two sets; called with a folder, it finds and reads what is there."""

    name: str
    layouts: tuple[Layout, ...]
    columns: Columns
    configs: tuple[str, ...]
    classes: tuple[str, ...]

    def __call__(self, data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
        """The train and the test part in `data_dir`, or in the folder named after the set within it.

        With `image_size`, a divisor of 32, images are averaged over whole blocks to that many pixels a side.

        Raises:
            Refused: if no form is found, naming all that were looked for, a file is absent or damaged, or for an
                `image_size` that does not divide 32.
        """
        train, test = self._found(data_dir)
        return (train, test) if image_size is None else (averaged(train, image_size), averaged(test, image_size))

    def _found(self, data_dir: Path) -> tuple[Part, Part]:
        for place in search_folders(data_dir, self.name):
            for layout in self.layouts:
                source = layout.find(place)
                if source is not None:
                    return self._parts(layout, source)
            found = find_parquet(place, self.configs)
            if found is not None:
                return read_parquet(found, self.name, self.columns, self.classes, _SHAPE)
        forms = [f"{layout.folder}/ or {layout.archive}" for layout in self.layouts]
        raise missing(self.name, data_dir, ", ".join([*forms, "or train-*.parquet and test-*.parquet"]))

    def _parts(self, layout: Layout, source: Path) -> tuple[Part, Part]:
        arrays = layout.read(source, self.name)
        files = [source / name for name in layout.files] if source.is_dir() else [source]

        def part(split: str, names: tuple[str, ...]) -> Part:
            xs, ys = zip(*(arrays[name] for name in names), strict=True)
            form = f"{layout.form} {'files' if source.is_dir() else 'archive'}"
            return part_of_arrays(xs, np.concatenate(ys), files, self.classes, f"{self.name}, {form}, {split}")

        return part("train", layout.train), part("test", layout.test)


CIFAR10 = Cifar(
    name="cifar10",
    layouts=(
        Layout(
            "official python",
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            reader=partial(_python, label="labels"),
        ),
        Layout(
            "official binary",
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test=("test_batch.bin",),
            reader=partial(_binary, label_bytes=1),
        ),
    ),
    columns=Columns(images=("img", "image"), labels=("label",)),
    configs=("plain_text",),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

CIFAR100 = Cifar(
    name="cifar100",
    layouts=(
        Layout(
            "official python",
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test=("test",),
            reader=partial(_python, label="fine_labels"),
        ),
        Layout(
            "official binary",
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            train=("train.bin",),
            test=("test.bin",),
            reader=partial(_binary, label_bytes=2),
        ),
    ),
    columns=Columns(images=("img", "image"), labels=("fine_label",)),
    configs=("cifar100",),
    classes=tuple(  # in one string, because a hundred lines of names help nobody
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
    ),
)
