"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disks import disk_of
from hypothesis import given
from hypothesis import strategies as st

from mmard.errors import Refused
from mmard.files import (
    UNFINISHED,
    _sweep_once,
    append_line,
    foreign_files,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
    write_text,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def half_then(error: BaseException) -> Callable[[Path], None]:
    """A writer that fails in the middle."""

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    return write


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path, "a rename is atomic within a folder alone"
        assert not path.exists()
        temporary.write_text("whole")

    write_whole(path, write)
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "I/O")])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_what_was_there(error: BaseException, before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)
    expected = Refused if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_whole(path, half_then(error))
    assert (path.read_text() if path.exists() else None) == before
    assert names(tmp_path) == (["a.txt"] if before else [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_its_mend(number: int, tmp_path: Path) -> None:
    words = "a.txt: expected to write this file, got no space left; what was saved before is whole; free some space"
    with pytest.raises(Refused, match=words):
        write_whole(tmp_path / "a.txt", half_then(OSError(number, os.strerror(number))))


def test_a_disk_that_is_full_in_truth(tmp_path: Path) -> None:
    """The limit stops Python's own writes and those of safetensors, which raises an error of its own kind."""
    small, large = {"w": torch.ones(8)}, {"w": torch.zeros(20_000)}
    save_tensors(tmp_path / "w.safetensors", small, {"n": 1})
    write_json(tmp_path / "a.json", [1])
    with disk_of(2000):
        with pytest.raises(Refused, match=r"w\.safetensors.*no space left"):
            save_tensors(tmp_path / "w.safetensors", large, {"n": 2})
        with pytest.raises(Refused, match=r"a\.json.*no space left"):
            write_json(tmp_path / "a.json", list(range(2000)))
        with pytest.raises(Refused, match=r"log.*no space left"):
            append_line(tmp_path / "log", "x" * 3000)
    tensors, facts = load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["w"], small["w"])
    assert facts == {"n": 1}
    assert read_json(tmp_path / "a.json") == [1]
    assert names(tmp_path) == ["a.json", "log", "w.safetensors"]


def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    """A killed process leaves temporary files in whatever folder it wrote to; one that lives keeps its own."""
    dead = tmp_path / f".a.json.x1{UNFINISHED}"
    dead.write_text("half")
    assert foreign_files(tmp_path) == []
    theirs = [tmp_path / name for name in (".notes", ".a.json.x1", "a.bak", f"b{UNFINISHED}")]
    for file in theirs:
        file.write_text("")

    def write(_: Path) -> None:
        _sweep_once.cache_clear()
        write_text(tmp_path / "b.json", "2")

    write_whole(tmp_path / "c.json", write)
    assert names(tmp_path) == sorted([*(file.name for file in theirs), "b.json", "c.json"])


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="expected to write this file, got No such file or directory"):
        write_json(tmp_path / "absent" / "a.json", 1)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(Refused, match="got Permission denied"):
        write_json(tmp_path / "a.json", 1)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_that_any_file_would_have(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
        assert os.umask(mask) == mask, "put back"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("theirs")
    (tmp_path / "a.json").symlink_to(tmp_path / "real")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "real").read_text() == "theirs"
    assert read_json(tmp_path / "a.json") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values)
def test_json_comes_back_as_it_went(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text(encoding="utf-8").endswith("\n")


def test_json_is_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "größe": 1\n}\n'


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"a": 1} b', b"[" * 100_000, b"9" * 5000])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Refused, match=r"a\.json: expected JSON.*another kind of file"):
        read_json(tmp_path / "a.json")


def test_json_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"absent\.json: expected a JSON file, got no such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(Refused, match="got Is a directory"):
        read_json(tmp_path)


def test_lines_are_added(tmp_path: Path) -> None:
    for number in range(3):
        append_line(tmp_path / "log", json.dumps({"n": number}))
    assert (tmp_path / "log").read_text() == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'
