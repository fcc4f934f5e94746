"""Sealed rows in files: shared by processes, and without a wrong row however a writer died."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little import CLASSES
from started import Started
from test_table import augmented, looked_up, table_of

from mmard.engine import table as sealed
from mmard.engine.table import CHECKSUM_BYTES, ChecksummedRows
from mmard.errors import Refused

# --- files ---


def test_nothing_is_written_before_it_is_asked(tmp_path: Path) -> None:
    it = table_of(tmp_path / "new" / "folder")
    assert it.filled() == 0
    assert not (tmp_path / "new").exists()
    assert it.size == 40 * 18 * (CHECKSUM_BYTES + 4 * CLASSES)
    looked_up(it, augmented())
    assert it.path is not None
    assert it.path.stat().st_size == it.size
    facts = json.loads(it.path.with_suffix(".json").read_text())
    assert facts == it.facts
    assert facts["augmentation"] == "Augmentation(pad=1, flip=True, cutout=0)"


def test_a_row_that_was_not_written_whole_is_made_again(tmp_path: Path) -> None:
    """What a power cut leaves: seals without rows, rows without seals, rows in other places."""
    it = table_of(tmp_path)
    expected, _ = looked_up(it, augmented())
    assert it.path is not None
    raw = bytearray(it.path.read_bytes())
    width = CHECKSUM_BYTES + 4 * CLASSES
    written = [i for i in range(0, len(raw), width) if any(raw[i : i + width])]
    assert len(written) == 40
    for i in written[:10]:
        raw[i + CHECKSUM_BYTES : i + width] = bytes(4 * CLASSES)
    for i in written[10:20]:
        raw[i : i + CHECKSUM_BYTES] = bytes(CHECKSUM_BYTES)
    for i in written[20:25]:
        raw[i + CHECKSUM_BYTES + 2] ^= 1
    raw[written[26] : written[26] + width], raw[written[27] : written[27] + width] = (
        raw[written[27] : written[27] + width],
        raw[written[26] : written[26] + width],
    )
    it.path.write_bytes(raw)
    again = table_of(tmp_path)
    found, _ = looked_up(again, augmented())
    assert torch.equal(found, expected)
    assert again.made == 27


@given(st.lists(st.binary(min_size=12, max_size=12), min_size=1, max_size=6, unique=True), st.integers(0, 10**9))
def test_a_seal_tells_rows_and_places_apart(rows: list[bytes], place: int) -> None:
    body = torch.tensor([list(row) for row in rows], dtype=torch.uint8)
    places = torch.full((len(rows),), place)
    seals = sealed._checksum(body, places)
    assert len(set(seals.tolist())) == len(rows)
    assert 0 not in seals
    assert (sealed._checksum(body, places + 1) != seals).all()


def test_seals_of_any_width() -> None:
    for width in (1, 3, 4, 6, 8, 20):
        rows = ChecksummedRows("rows", 5, width, None, {})
        body = torch.arange(2 * width, dtype=torch.uint8).view(2, width)
        rows.write(torch.tensor([1, 4]), body)
        found, known = rows.read(torch.arange(5))
        assert known.tolist() == [False, True, False, False, True]
        assert torch.equal(found[known], body)


def test_another_file_under_the_name_is_refused(tmp_path: Path) -> None:
    it = table_of(tmp_path)
    looked_up(it, augmented())
    assert it.path is not None
    with it.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(Refused, match="bytes of something else; remove it"):
        looked_up(table_of(tmp_path), augmented())


def test_no_room_on_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(Refused, match=r"teacher table: expected 0 MB, got 0 MB, the disk of .*, or off"):
        table_of(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(sealed, "_memory", lambda: 1000.0)
    with pytest.raises(Refused, match="half of the memory"):
        table_of(None)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    it = table_of(tmp_path / "taken")
    with pytest.raises(Refused, match=r"expected a file to read and write, got .*; name another folder"):
        looked_up(it, augmented())


# --- processes ---


def fill(folder: Path, first: int, last: int, kill_after: int) -> None:
    """Look epochs up in the table of a folder; dies half-way in this write, counted from 1."""
    written, write = 0, ChecksummedRows.write

    def torn(self: ChecksummedRows, places: torch.Tensor, body: torch.Tensor) -> None:
        nonlocal written
        written += 1
        if written == kill_after:
            write(self, places[: len(places) // 2], body[: len(places) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, places, body)

    ChecksummedRows.write = torn  # type: ignore[method-assign]
    it = table_of(folder)
    for epoch in range(first, last):
        looked_up(it, augmented(), epoch)


def test_processes_share_a_table_and_a_killed_one_leaves_no_wrong_row(tmp_path: Path) -> None:
    """Two begin at once on an empty folder, some epochs of which are the same; one dies half-way in a write."""
    processes = [Started(fill, tmp_path, 0, 4, 0), Started(fill, tmp_path, 2, 9, 9)]
    ends = [(p.communicate(timeout=120), p.returncode) for p in processes]
    assert [code for _, code in ends] == [0, -signal.SIGKILL], ends
    it = table_of(tmp_path)
    alone = table_of(None)
    for epoch in range(9):
        found, _ = looked_up(it, augmented(), epoch)
        expected, _ = looked_up(alone, augmented(), epoch)
        assert torch.equal(found, expected)
    assert 0 < it.made < alone.made
    assert len(list(tmp_path.glob("*.table"))) == 1
    assert not list(tmp_path.glob(".*.table.*")), "a half-made file"
