"""Fetching, against a hub of our own that needs no network."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from disks import disk_of

from mmard.data import load
from mmard.data.fetch import REPOSITORIES, fetch
from mmard.errors import Refused

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


def cifar_shard(n: int) -> bytes:
    cells = []
    for x in np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(x).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    file = io.BytesIO()
    pq.write_table(pa.table({"img": cells, "label": [i % 10 for i in range(n)]}), file)
    return file.getvalue()


class FakeHub:
    """Keeps files in memory. `served` is what a download gives, where that differs from what the record says."""

    def __init__(self, files: dict[str, bytes], in_git: bool = False) -> None:
        self.files, self.served, self.in_git = files, dict(files), in_git
        self.downloads: list[str] = []

    def repo_info(self, repo_id: str, *, repo_type: str, files_metadata: bool) -> Any:
        assert (repo_type, files_metadata) == ("dataset", True)
        siblings = []
        for name, content in self.files.items():
            lfs = None if self.in_git else SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(SimpleNamespace(rfilename=name, size=len(content), lfs=lfs, blob_id=blob))
        return SimpleNamespace(sha="0b2714987fa4", siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: str) -> str:
        assert (repo_id, repo_type, revision) == (REPOSITORIES["cifar10"].repo_id, "dataset", "0b2714987fa4")
        self.downloads.append(filename)
        path = Path(local_dir) / filename
        assert not path.exists(), "the client would keep a file that is there"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.served[filename])
        return str(path)


TRAIN, TEST = "plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub(
        {TRAIN: cifar_shard(40), TEST: cifar_shard(20), "README.md": b"card", "other/train-0.parquet": b"no"}
    )


def test_what_is_fetched_is_recorded_and_loads(hub: FakeHub, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = fetch("cifar10", tmp_path / "new", lines.append, hub=hub)
    assert folder == tmp_path / "new" / "cifar10"
    assert hub.downloads == [TRAIN, TEST]
    assert [line.partition(":")[0] for line in lines] == [TRAIN, TEST]
    record = json.loads((folder / "fetched.json").read_text())
    assert record == {
        "repo": "uoft-cs/cifar10",
        "revision": "0b2714987fa4",
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in hub.files.items()
            if name in (TRAIN, TEST)
        },
    }
    s = load("cifar10", tmp_path / "new")
    assert (len(s.train) + len(s.val), len(s.test)) == (40, 20)
    assert load("cifar10", folder).train.fingerprint() == s.train.fingerprint()


def test_whole_files_stay_and_damaged_ones_are_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch("cifar10", tmp_path, hub=hub)
    (folder / TRAIN).write_bytes(hub.files[TRAIN][:-1])  # cut off
    (folder / "fetched.json").unlink()
    hub.downloads.clear()
    lines: list[str] = []
    fetch("cifar10", tmp_path, lines.append, hub=hub)
    assert hub.downloads == [TRAIN]
    assert lines[1] == f"{TEST}: already there"
    assert (folder / TRAIN).read_bytes() == hub.files[TRAIN]
    (folder / TEST).write_bytes(bytes(len(hub.files[TEST])))  # the right size
    fetch("cifar10", tmp_path, hub=hub)
    assert hub.downloads == [TRAIN, TEST]
    assert (folder / "fetched.json").exists()


@pytest.mark.parametrize("in_git", [False, True])
@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_a_file_that_is_not_the_recorded_one_is_deleted(
    in_git: bool, change: Any, hub: FakeHub, tmp_path: Path
) -> None:
    hub.in_git = in_git
    hub.served[TEST] = change(hub.files[TEST])
    with pytest.raises(
        Refused, match=r"test-00000-of-00001\.parquet: expected .*; deleted; run the same command again"
    ):
        fetch("cifar10", tmp_path, hub=hub)
    folder = tmp_path / "cifar10"
    assert (folder / TRAIN).exists()
    assert not (folder / TEST).exists()
    assert not (folder / "fetched.json").exists()
    hub.served = hub.files  # and the next time it works
    assert (fetch("cifar10", tmp_path, hub=hub) / TEST).read_bytes() == hub.files[TEST]


def test_files_small_enough_to_lie_in_git_are_verified_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.in_git = True
    fetch("cifar10", tmp_path, hub=hub)
    hub.downloads.clear()
    fetch("cifar10", tmp_path, hub=hub)
    assert hub.downloads == []


class Offline(FakeHub):
    def repo_info(self, *args: Any, **kw: Any) -> Any:
        raise ConnectionError("no route to host\nand more lines")


class Interrupted(FakeHub):
    def hf_hub_download(self, *args: Any, **kw: Any) -> str:
        raise TimeoutError


@pytest.mark.parametrize(
    ("kind", "got"), [(Offline, r"ConnectionError \(no route to host\)"), (Interrupted, "TimeoutError")]
)
def test_no_network_is_one_line(kind: type[FakeHub], got: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"^fetch cifar10: expected an answer from .* hub, got {got}; .*again"):
        fetch("cifar10", tmp_path, hub=kind({TRAIN: b"1"}))


def test_unknown_names_moved_files_and_an_absent_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="did you mean 'cifar10'"):
        fetch("cifar", tmp_path)
    with pytest.raises(Refused, match=r"uoft-cs/cifar10/plain_text: expected Parquet files, got none at revision 0b27"):
        fetch("cifar10", tmp_path, hub=FakeHub({"elsewhere/train-0.parquet": b""}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Refused, match=r"the package 'huggingface_hub'.*mmard\[hub\]"):
        fetch("cifar10", tmp_path)


def test_a_full_disk_is_called_so_and_not_a_missing_network(hub: FakeHub, tmp_path: Path) -> None:
    hub.served = {name: bytes(2**20) for name in hub.files}
    with (
        disk_of(2**16),
        pytest.raises(Refused, match=r"^fetch cifar10: expected room for its files, got no space left"),
    ):
        fetch("cifar10", tmp_path, hub=hub)
