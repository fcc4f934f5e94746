"""The file of a known teacher, brought from Google Drive, where RobustBench keeps it. Nothing here is called unasked.

Google Drive answers with a page of HTML where it wants a person to confirm, or has served a file too often; kept under
the file's name that page is the classic failure. What arrives is therefore looked at before it gets its name: it must
be a checkpoint by its first bytes, whole by the length that was announced, and hold exactly this teacher's tensors.
Nobody publishes checksums of these files; that of what arrived is written beside it.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmard.environment import now
from mmard.errors import Refused
from mmard.storage import write_json, write_whole
from mmard.teachers import Teacher, find, open_teacher

DRIVE = "https://docs.google.com/uc"
MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a checkpoint: a zip file, or a bare pickle of PyTorch before 1.6."""
BLOCK = 2**20
SECONDS = 60


def fetch_teacher(
    spec: str, data_dir: str | Path, progress: Callable[[str], None] | None = None, *, base: str = DRIVE
) -> Path:
    """Bring a teacher's file to `data_dir`/teachers/<data>/<name>.pt; one that is there and whole stays.

    Args:
        spec: `robustbench:NAME`, with the data set in front where two have it.
        data_dir: made if it does not exist.
        progress: called with one line at a time.
        base: the address that answers `?id=...`.

    Raises:
        Refused: for a name that is none or means two teachers, one whose file's place is not known, no network, or a
            file that is not the teacher's, which is deleted.
    """
    teacher = _one(spec)
    tell = progress or (lambda line: None)
    folder = Path(data_dir).expanduser() / "teachers" / teacher.data
    file = folder / f"{teacher.name}.pt"
    if file.is_file():
        tell(f"{file}: already there, looking at it")
        open_teacher(teacher.spec, file)
        return file
    if teacher.drive is None:
        mend = f"see {teacher.link}, and give the file with --teacher-weights"
        raise Refused(f"fetch {spec}", expected="a known place of its file", got="none", mend=mend)
    folder.mkdir(parents=True, exist_ok=True)
    query = urllib.parse.urlencode({"export": "download", "confirm": "t", "id": teacher.drive})
    tell(f"{teacher.spec}: fetching {teacher.drive} from Google Drive, licence {teacher.licence}")
    facts: dict[str, Any] = {"teacher": teacher.spec, "drive": teacher.drive}

    def write(half: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with half.open("wb") as out:
            for block in _blocks(f"{base}?{query}", teacher, f"fetch {spec}"):
                out.write(block)
                digest.update(block)
                size += len(block)
        tell(f"{size / 1e6:,.1f} MB arrived; looking whether they are this teacher's")
        try:
            open_teacher(teacher.spec, half)
        except Refused as error:
            where = error.where.replace(str(half), file.name)
            mend = f"{error.mend}; deleted" if error.mend else "deleted"
            raise Refused(where, expected=error.expected, got=error.got, mend=mend) from None
        facts.update(size=size, sha256=digest.hexdigest())

    write_whole(file, write)
    write_json(file.with_suffix(".json"), {**facts, "fetched": now(), "licence": teacher.licence, "link": teacher.link})
    return file


def by_hand(teacher: Teacher) -> str:
    """The address under which a person gets a teacher's file in a browser."""
    return f"https://drive.google.com/uc?id={teacher.drive}"


def _one(spec: str) -> Teacher:
    found = find(spec)
    if len(found) > 1:
        raise Refused(f"fetch {spec}", expected="one teacher", got="two", mend=" or ".join(t.spec for t in found))
    return found[0]


def _blocks(url: str, teacher: Teacher, where: str) -> Iterator[bytes]:
    """What an address answers, piece by piece; refused if it is a page, or ends early."""
    browser = f"this needs the network; or get {by_hand(teacher)} in a browser and give it with --teacher-weights"
    size = 0
    try:
        # Google Drive turns away clients that do not name themselves.
        request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 mmard"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            announced = answer.headers.get("Content-Length")
            block = answer.read(BLOCK)
            _refuse_page(block, where, browser)
            while block:
                size += len(block)
                yield block
                block = answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        got = f"{type(error).__name__} ({error})"
        raise Refused(where, expected="an answer from Google Drive", got=got[:200], mend=browser) from error
    if announced is not None and size != int(announced):
        raise Refused(where, expected=f"{int(announced):,} bytes", got=f"{size:,}", mend="run the same command again")


def _refuse_page(first: bytes, where: str, mend: str) -> None:
    if first.startswith(MAGIC):
        return
    page = first[:256].lstrip().lower().startswith((b"<!doctype", b"<html"))
    why = "an HTML page: a question to confirm, a quota used up, or a file no longer shared"
    got = why if page else repr(first[:8])
    raise Refused(where, expected="a checkpoint", got=got, mend=mend)
