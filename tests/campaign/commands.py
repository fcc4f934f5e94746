"""Commands in forks of one warm process, and what is wrong with what they came to.

PyTorch is imported once, by the parent, which uses nothing of it: autograd does not work in the fork of a process that
has used it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmard.cli import answer
from mmard.errors import Refused

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONGEST_REFUSAL = 1200
"""Characters; some refusals quote a list of names."""


@dataclass(frozen=True)
class Done:
    """What a command came to. A signal that ended it is a negative code, as in `subprocess`; a hang is code None."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Case:
    """One trial: it returns what is wrong, or nothing."""

    kind: str
    name: str
    run: Callable[[Path], str | None] = field(repr=False)
    """Of an empty folder that it may use."""


def in_fork(
    work: Callable[[], int | None],
    cwd: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    limit: float = 90,
    out: int | None = None,
    after: Callable[[int], None] | None = None,
) -> Done:
    """Run this in a fork that leads its own process group; `out` may be a descriptor for standard output.

    `after` is called with the fork's number as soon as it runs. A variable of the environment that is None is removed.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        child = os.fork()
        if child == 0:
            _become(work, cwd, environment or {}, said.fileno() if out is None else out, complained.fileno())
        if after:
            after(child)
        code = _wait(child, limit)
        for each in (said, complained):
            each.seek(0)
        texts = [each.read().decode("utf-8", "replace") for each in (said, complained)]
    return Done(code, *texts, time.monotonic() - began)


def _become(
    work: Callable[[], int | None], cwd: Path, environment: Mapping[str, str | None], out: int, err: int
) -> None:
    status: int | None = 1
    try:
        os.setsid()
        os.chdir(cwd)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tempfile.tempdir = None
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = work()
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status or 0)


def _wait(child: int, limit: float) -> int | None:
    until = time.monotonic() + limit
    pause = 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def mmard(*arguments: str, cwd: Path, before: Callable[[], object] | None = None, **options: Any) -> Done:
    """A command line; `before` is called in the fork first."""

    def work() -> int:
        if before:
            before()
        return answer(list(arguments))

    return in_fork(work, cwd, **options)


def python(call: Callable[[], object], cwd: Path, **options: Any) -> Done:
    """A call of the library, whose refusal is what a command's would be and whose value is printed."""

    def work() -> int:
        try:
            print(call())
        except Refused as refused:
            print(f"mmard: {refused}", file=sys.stderr)
            return 2
        return 0

    return in_fork(work, cwd, **options)


def fault(done: Done, *, may: tuple[int, ...] = (0, 2)) -> str | None:
    """What no command may do, whatever it was given."""
    last = done.err.strip().splitlines()[-1:] or [""]
    if done.code is None:
        return f"hangs: no end after {done.seconds:.0f} s"
    if "Traceback (most recent call last)" in done.text:
        return f"traceback: {last[0][:200]}"
    if done.code not in may:
        return f"exit {done.code}, expected {' or '.join(map(str, may))}: {last[0][:200]}"
    if done.code == 2 and not done.err.startswith("mmard: "):
        return f"a refusal without its first word: {done.err[:120]!r}"
    if done.code == 2 and len(done.err) > LONGEST_REFUSAL:
        return f"a refusal of {len(done.err)} characters: {done.err[:120]!r}"
    if done.code == 2 and re.search(r"0x[0-9a-f]{8}|object at|<class ", done.err):
        return f"an address or a class in a refusal: {done.err[:200]!r}"
    if found := CONTROL.search(done.text):
        return f"control character {found.group()!r} in what it says"
    return None


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, but locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def largest_file(size: int) -> None:
    """No file grows beyond this, which fails as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class WriteCounter:
    """Counts what a process does to files below a folder, and kills it at one of them.

    Opening for writing, renaming, removing and making a folder: between two of these, files do not change but by what
    is written into one that is open.
    """

    EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate", "os.link")

    def __init__(self, folder: Path, kill_at: int | None, note: Path) -> None:
        self.folder, self.kill_at, self.note, self.count = str(folder.resolve()), kill_at, note, 0

    def __call__(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in self.EVENTS:
            path = arguments[0]
        else:
            return
        where = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if not where.startswith(self.folder) or where == str(self.note):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def spread(rng: random.Random, total: int, count: int) -> list[int]:
    """So many numbers from 1 to total, over the whole range."""
    if total <= count:
        return list(range(1, total + 1))
    edges = [1 + total * k // count for k in range(count + 1)]
    return [rng.randrange(a, b) for a, b in pairwise(edges)]
