"""Files that are damaged, of another kind, or say what cannot be: everything that mmard reads, changed in every way.

What a command answers must be a refusal, or what it answers for the file as it was. A figure that it did not show
before is a figure made up.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test_data_sources import FORMS

from campaign.commands import Case, Done, fault, mmard, python
from campaign.home import copy_of

Change = Callable[[Path, random.Random], None]
NUMBER = re.compile(r"\d+\.\d+")


# changes of any file ------------------------------------------------------------------------------
def _rewritten(change: Callable[[bytes, random.Random], bytes]) -> Change:
    def apply(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    return apply


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(max(3, len(found) // 200)):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _front_flipped(data: bytes, rng: random.Random) -> bytes:
    return bytes(each ^ 0xFF for each in data[:64]) + data[64:]


def _as_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _looped(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.symlink("/dev/null", path)


ANY: dict[str, Change] = {
    "empty": _rewritten(lambda d, r: b""),
    "half": _rewritten(lambda d, r: d[: len(d) // 2]),
    "last byte gone": _rewritten(lambda d, r: d[:-1]),
    "nine tenths": _rewritten(lambda d, r: d[: len(d) * 9 // 10]),
    "first 64 bytes inverted": _rewritten(_front_flipped),
    "bits flipped": _rewritten(_flipped),
    "zeros": _rewritten(lambda d, r: bytes(len(d))),
    "text": _rewritten(lambda d, r: b"<html>404 Not Found</html>\n"),
    "twice": _rewritten(lambda d, r: d + d),
    "a folder": _as_folder,
    "a link to nowhere": _dangling,
    "a link to itself": _looped,
    "a link to /dev/null": _pipe,
}


# changes of JSON ----------------------------------------------------------------------------------
def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))


def _set(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    if new is _set:
        del value[path[-1]]
    else:
        value[path[-1]] = new


VALUES: dict[str, Any] = {
    "gone": _set,
    "null": None,
    "a list": [],
    "text": "\x1b[31mtext",
    "NaN": float("nan"),
    "infinite": float("inf"),
    "negative": -7,
    "enormous": 10**400,
    "deep": [[[[[[[[[[]]]]]]]]]],
}


def _json_value(new: Any) -> Change:
    def apply(path: Path, rng: random.Random) -> None:
        lines = path.suffix == ".jsonl"
        text = path.read_text()
        value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        _set(value, rng.choice(list(_places(value))), new)
        path.write_text("".join(json.dumps(each) + "\n" for each in value) if lines else json.dumps(value))

    return apply


JSON: dict[str, Change] = {
    **{f"a value {name}": _json_value(new) for name, new in VALUES.items()},
    "another top": _rewritten(lambda d, r: b"[" + d.replace(b"\n", b" ") + b"]"),
    "UTF-16": _rewritten(lambda d, r: d.decode().encode("utf-16")),
    "nested beyond reason": _rewritten(lambda d, r: b"[" * 100_000),
    "Latin-1": _rewritten(lambda d, r: d[:-2] + "é".encode("latin-1") + d[-2:]),
}


# what is read, and by what ------------------------------------------------------------------------
@dataclass(frozen=True)
class Read:
    """A file of the home, and commands that read it."""

    file: str
    needs: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    changes: tuple[str, ...] = ("any",)


SHOW, COMPARE = ("show", "s"), ("compare", "s", "t", "--format", "csv")
JUDGE = ("evaluate", "s", "--attack", "pgd-1", "--first", "10", "--device", "cpu")
READS = (
    Read("s/config.json", ("s", "t"), (SHOW, COMPARE), ("any", "json")),
    Read("s/log.jsonl", ("s", "t"), (SHOW,), ("any", "json")),
    Read("s/environment.json", ("s", "t"), (SHOW,), ("any", "json")),
    Read("s/engine.json", ("s", "t"), (("distill", "--resume", "s", "--epochs", "3"),), ("any", "json")),
    Read("s/state.safetensors", ("s", "t"), (SHOW, ("distill", "--resume", "s", "--epochs", "3"))),
    Read("s/best.safetensors", ("s", "t"), (SHOW, JUDGE, ("push", "s", "ada/x", "--to", "p"))),
    Read("s/scores/*pgd-2*.json", ("s", "t"), (SHOW, COMPARE), ("any", "json")),
    Read("s/scores/*pgd-2*.npy", ("s", "t"), (SHOW, COMPARE)),
    Read("s/findings/*.json", ("s", "t"), (SHOW, ("report", "s", "--out", "r.html")), ("any", "json")),
    Read("s.onnx", ("s.onnx",), (("evaluate", "s.onnx", "--data", "digits", "--eps", "0.1", *JUDGE[2:]),)),
    Read("shared/config.json", ("shared",), (("pull", "shared", "--to", "new"),), ("any", "json")),
    Read("shared/best.safetensors", ("shared",), (("pull", "shared", "--to", "new"),)),
)


def _figures(done: Done) -> set[str]:
    return set(NUMBER.findall(re.sub(r"\d\d:\d\d(:\d\d)?|\d+\.\d+ s\b", "", done.out)))


def _trial(home: Path, read: Read, line: tuple[str, ...], change: Change, seed: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, *read.needs)
        untouched = folder / "untouched"
        untouched.mkdir()
        copy_of(home, untouched, *read.needs)
        before = mmard(*line, cwd=untouched)
        for path in sorted(folder.glob(read.file)):
            change(path, random.Random(seed))
        shutil.rmtree(untouched)
        done = mmard(*line, cwd=folder)
        if wrong := fault(done):
            return wrong
        if done.code == 0 and re.search(r"\b(nan|inf)\b", done.out, re.IGNORECASE) and "nan" not in before.out.lower():
            return "shows a figure that is no number"
        shows_figures = done.code == 0 and line[0] in ("show", "compare")
        if shows_figures and (made_up := _figures(done) - _figures(before)):
            return f"shows {', '.join(sorted(made_up)[:3])}, which the file as it was does not hold"
        return None

    return run


def _load(name: str, root: Path) -> str:
    from mmard.data import load

    found = load(name, data_dir=root)
    return " ".join(f"{len(part)} {part.x.float().mean():.6f} {part.y.sum()}" for part in (found.train, found.test))


def _data_trial(form: str, change: Change, seed: str) -> Callable[[Path], str | None]:
    name, write = FORMS[form]

    def run(folder: Path) -> str | None:
        root = folder / "data"
        root.mkdir()
        write(root)
        rng = random.Random(seed)
        held = sorted(path for path in root.rglob("*") if path.is_file())
        change(rng.choice(held), rng)
        return fault(python(lambda: _load(name, root), folder))

    return run


def _table_trial(text: str, line: tuple[str, ...], name: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        (folder / name).write_text(text)
        return fault(mmard(*line, cwd=folder), may=(2,))

    return run


STUDIES = {
    "no TOML": "hosts = [",
    "another file's shape": '[teachers]\n"a" = 1\n',
    "a name that climbs": 'name = "../../x"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["pgd_at"]\n',
    "an unknown host": 'name = "x"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["nope"]\n',
    "hosts as text": 'name = "x"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = "pgd_at"\n',
    "a date": 'name = 2020-01-01\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["pgd_at"]\n',
    "an unknown key": 'name = "x"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["pgd_at"]\nx = 1\n',
    "bytes": "\x00\x01",
}


def cases(home: Path, rng: random.Random, work: Path) -> Iterator[Case]:
    tables = {"any": ANY, "json": JSON}
    for read in READS:
        for kind in read.changes:
            for name, change in tables[kind].items():
                line = rng.choice(read.lines)
                seed = f"{read.file} {name} {rng.random()}"
                yield Case("input", f"{read.file}: {name}, by {line[0]}", _trial(home, read, line, change, seed))
    for form in FORMS:
        for name in rng.sample(sorted(ANY), 5):
            yield Case("input", f"{form}: {name}", _data_trial(form, ANY[name], f"{form} {name} {rng.random()}"))
    for name, text in STUDIES.items():
        line = ("study", "status", "x.toml", "--scale", "S")
        yield Case("input", f"study: {name}", _table_trial(text, line, "x.toml"))
        yield Case(
            "input", f"scale: {name}", _table_trial(text, ("study", "status", "all", "--scale", "x.toml"), "x.toml")
        )
        if name != "an unknown host":
            yield Case(
                "input", f"settings: {name}", _table_trial(text, ("train", "--config", "x.toml", "--dry-run"), "x.toml")
            )
