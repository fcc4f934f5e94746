"""Odd surroundings, and what an enemy would hand over."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import Case, fault, largest_file, mmard
from campaign.home import DISTILL, FEW, TRAIN, copy_of

LINES: dict[str, tuple[str, ...]] = {
    "train": (*TRAIN, "--out", "new"),
    "distill": (*DISTILL, "--teacher", "t", "--no-teacher-gate", "--out", "new"),
    "evaluate": ("evaluate", "t", "--attack", "pgd-1,cw-1", *FEW),
    "findings": ("evaluate", "s", "--also", "classes", "--attack", "pgd-1", *FEW),
    "transfer": ("transfer", "s", "t", "--attack", "pgd-1", *FEW),
    "export": ("export", "s", "--to", "new.onnx", "--first", "10", "--attack", "none"),
    "report": ("report", "s", "--out", "new.html"),
    "push": ("push", "s", "ada/x", "--to", "new"),
    "pull": ("pull", "shared", "--to", "new"),
    "show": ("show", "s"),
    "compare": ("compare", "s", "t"),
    "methods": ("methods",),
}
WRITING = ("train", "distill", "evaluate", "findings", "transfer", "export", "report", "push", "pull")


def _typed(home: Path, name: str, may: tuple[int, ...] = (0, 2), **how: Any) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder)
        return fault(mmard(*LINES[name], cwd=folder, **how), may=may)

    return run


# disks --------------------------------------------------------------------------------------------
def _refusing_writes(number: int) -> Callable[[], None]:
    """Opening for writing, and renaming, fail as on such a disk; root is refused nothing by permissions."""

    def start() -> None:
        here = os.getcwd()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                path, _, flags = arguments
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            else:
                path, writes = (arguments or ("",))[0], event in ("os.rename", "os.mkdir", "os.remove")
            if writes and isinstance(path, str | bytes | os.PathLike):
                where = os.path.abspath(os.fsdecode(path))
                if where.startswith(here):
                    raise OSError(number, os.strerror(number), where)

        sys.addaudithook(hook)

    return start


def _full(home: Path, name: str, size: int) -> Callable[[Path], str | None]:
    """A disk that is full, and then has room: the second try ends well, and nothing but its result is there."""

    def run(folder: Path) -> str | None:
        copy_of(home, folder)
        first = mmard(*LINES[name], cwd=folder, before=lambda: largest_file(size))
        if wrong := fault(first):
            return wrong
        if first.code == 0:
            return None
        again = LINES[name]
        if name in ("train", "distill") and (folder / "new" / "config.json").exists():
            again = (name, "--resume", "new")
        done = mmard(*again, cwd=folder)
        if done.code == 2 and again != LINES[name]:
            done = mmard(*LINES[name], cwd=folder)
        if wrong := fault(done, may=(0,)):
            return f"with room again: {wrong}"
        left = [each.name for each in folder.rglob("*") if ".tmp" in each.name or each.name.endswith("~")]
        return f"left over: {left[:3]}" if left else None

    return run


# terminals ----------------------------------------------------------------------------------------
def _closed_pipe(home: Path, name: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder)
        reading, writing = os.pipe()
        os.close(reading)
        done = mmard(*LINES[name], cwd=folder, out=writing)
        os.close(writing)
        return fault(done, may=(0, 1, 2, 141)) or (done.err[:200] or None)

    return run


def _full_device(home: Path, name: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder)
        device = os.open("/dev/full", os.O_WRONLY)
        done = mmard(*LINES[name], cwd=folder, out=device)
        os.close(device)
        return fault(done, may=(0, 1, 2))

    return run


def _moved(home: Path, folder_name: str, name: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        place = folder / folder_name
        place.mkdir()
        copy_of(home, place)
        return fault(mmard(*LINES[name], cwd=place), may=(0,))

    return run


def _without(*modules: str) -> Callable[[], None]:
    def start() -> None:
        for name in list(sys.modules):
            if name.split(".")[0] in modules:
                del sys.modules[name]
        sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]  # None: as if it were not installed

    return start


# an enemy -----------------------------------------------------------------------------------------
MARK = "campaign-was-here"


def _secret(folder: Path) -> Path:
    secret = folder.parent / f"{folder.name}-secret"
    secret.write_text("PRIVATE KEY of the campaign")
    return secret


def _holds_secret(folder: Path) -> str | None:
    for path in folder.rglob("*"):
        if path.is_file() and b"PRIVATE KEY of the campaign" in path.read_bytes():
            return f"the private file was copied to {path.name}"
    return None


def _pushed_link(home: Path, name: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, "s", "t")
        secret = _secret(folder)
        target = sorted((folder / "s").glob(name))[0]
        target.unlink()
        target.symlink_to(secret)
        done = mmard("push", "s", "ada/x", "--to", "new", cwd=folder)
        found = _holds_secret(folder / "new") if (folder / "new").exists() else None
        secret.unlink()
        return found or fault(done)

    return run


def _pulled_link(home: Path) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, "shared")
        secret = _secret(folder)
        for path in list((folder / "shared").iterdir()):
            if path.suffix == ".json":
                path.unlink()
                path.symlink_to(secret)
        done = mmard("pull", "shared", "--to", "new", cwd=folder)
        found = _holds_secret(folder / "new") if (folder / "new").exists() else None
        secret.unlink()
        return found or fault(done, may=(2,))

    return run


def _called(home: Path, where: str, line: tuple[str, ...]) -> Callable[[Path], str | None]:
    """A file names a function of a module that leaves a mark where it is imported or called."""

    def run(folder: Path) -> str | None:
        copy_of(home, folder)
        (folder / "enemy.py").write_text(
            f"open({str(folder / MARK)!r}, 'w').close()\ndef net(*a, **k): open({str(folder / MARK)!r}, 'w').close()\n"
        )
        path = folder / where
        config = json.loads(path.read_text())
        for key in ("network", "student", "model", "method"):
            if key in config:
                config[key] = "enemy:net"
        if "teachers" in config:
            config["teachers"] = {"T": ["enemy:net"]}
        elif "teacher" in config:
            config["teacher"] = "enemy:net"
        path.write_text(json.dumps(config))
        done = mmard(*line, cwd=folder, before=lambda: sys.path.insert(0, str(folder)))
        if (folder / MARK).exists():
            return "code that a file names was run"
        return fault(done)

    return run


def _pickled(home: Path, suffix: str) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        import pickle

        copy_of(home, folder)

        class Enemy:
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.mkdir, (str(folder / MARK),))

        (folder / f"their{suffix}").write_bytes(pickle.dumps({"state_dict": Enemy()}))
        line = ("evaluate", "cnn-2", "--weights", f"their{suffix}", "--data", "digits", "--eps", "0.1", "--first", "5")
        done = mmard(*line, cwd=folder)
        return "a pickle was run" if (folder / MARK).exists() else fault(done, may=(2,))

    return run


EVIL = {
    "LaTeX": (r"a\input{/etc/passwd}", ("compare", "{}", "t", "--format", "latex"), r"\input{"),
    "CSV": ("=HYPERLINK('http:x')", ("compare", "{}", "t", "--format", "csv"), "\n=HYPERLINK"),
    "Markdown": ("a|b<img src=x onerror=y>", ("compare", "{}", "t", "--format", "markdown"), "<img"),
    "terminal": ("a\x1b[31mred", ("show", "{}"), "\x1b"),
    "markup": ("a[bold]b", ("show", "{}"), None),
}


def _injected(home: Path, name: str, line: tuple[str, ...], never: str | None) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, "t")
        evil = folder / name.replace("/", "_")
        shutil.copytree(home / "s", evil)
        done = mmard(*(each.format(evil.name) for each in line), cwd=folder)
        if wrong := fault(done, may=(0, 2)):
            return wrong
        if never is not None and never in done.out:
            return f"{never!r} came through"
        if never is None and evil.name not in done.out:
            return "the name is not shown whole"
        return None

    return run


def _injected_html(home: Path) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        evil = folder / "<script>alert(1)<_script>"
        shutil.copytree(home / "s", evil)
        done = mmard("report", evil.name, "--out", "r.html", cwd=folder)
        if wrong := fault(done, may=(0,)):
            return wrong
        return "a script came through" if "<script>alert(1)" in (folder / "r.html").read_text() else None

    return run


def _climbing(home: Path) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, "shared")
        inner = folder / "deep" / "er"
        inner.mkdir(parents=True)
        names = [path.relative_to(folder.parent) for path in folder.parent.glob("*")]
        done = mmard("pull", "../../shared", "--to", "../er/new", cwd=inner)
        if [path.relative_to(folder.parent) for path in folder.parent.glob("*")] != names:
            return "wrote outside of the folder that was named"
        return fault(done)

    return run


def _optimised(home: Path) -> Callable[[Path], str | None]:
    """Python without assertions: a network that leaves the ball of its input is refused all the same."""

    def run(folder: Path) -> str | None:
        import subprocess

        code = (
            "import torch\nfrom mmard.balls import Budget\nfrom mmard.errors import Refused\n"
            "from mmard import evaluate\n"
            "class Writes(torch.nn.Module):\n"
            "    def forward(self, x):\n        x.mul_(0)\n        return x.flatten(1)[:, :3]\n"
            "x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3\n"
            "kept = x.clone()\n"
            "try:\n    evaluate(Writes(), (x, y), budget=0.1, attacks=['pgd-1'])\n"
            "except Refused:\n    pass\n"
            "print(torch.equal(x, kept))\n"
        )
        done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120)
        return None if done.stdout.strip().endswith("True") else (done.stderr[-200:] or "the caller's images changed")

    return run


def cases(home: Path, rng: random.Random, work: Path) -> Iterator[Case]:
    for name in WRITING:
        yield Case("surrounding", f"{name}: read-only", _typed(home, name, (2,), before=_refusing_writes(errno.EROFS)))
        yield Case(
            "surrounding", f"{name}: no permission", _typed(home, name, (2,), before=_refusing_writes(errno.EACCES))
        )
        yield Case(
            "surrounding", f"{name}: full at once", _typed(home, name, (2,), before=_refusing_writes(errno.ENOSPC))
        )
        yield Case("surrounding", f"{name}: full in the middle", _full(home, name, rng.choice([100, 700, 3000, 9000])))
    environments: dict[str, dict[str, str | None]] = {
        "no HOME": {"HOME": None},
        "HOME that is not there": {"HOME": "/nowhere/at/all"},
        "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        "30 columns": {"COLUMNS": "30"},
        "1 column": {"COLUMNS": "1"},
        "NO_COLOR": {"NO_COLOR": "1"},
        "FORCE_COLOR off terminal": {"NO_COLOR": "1", "TERM": "dumb"},
        "TMPDIR that is not there": {"TMPDIR": "/nowhere"},
        "99 threads": {"OMP_NUM_THREADS": "99"},
        "threads that are none": {"OMP_NUM_THREADS": "many"},
    }
    for about, environment in environments.items():
        for name in rng.sample(sorted(LINES), 3):
            yield Case("surrounding", f"{name}: {about}", _typed(home, name, (0,), environment=environment))
    for name in ("show", "compare", "methods", "evaluate", "train"):
        yield Case("surrounding", f"{name}: output nobody reads", _closed_pipe(home, name))
        yield Case("surrounding", f"{name}: output to a full device", _full_device(home, name))
    for name in ("train", "evaluate", "transfer", "export", "push"):
        yield Case(
            "surrounding", f"{name}: blanks and signs in the path", _moved(home, "a b 'c' [d] \u00e9\u4e2d #%", name)
        )
    for name in ("evaluate", "findings", "train"):
        low = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))  # noqa: E731
        yield Case("surrounding", f"{name}: 40 open files", _typed(home, name, (0, 2), before=low))
    extras = (
        "matplotlib",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "PIL",
        "pyarrow",
        "scipy",
        "huggingface_hub",
        "tensorboard",
    )
    for name in sorted(LINES):
        yield Case("surrounding", f"{name}: no extras", _typed(home, name, (0, 2), before=_without(*extras)))
    for name in (
        "config.json",
        "best.safetensors",
        "log.jsonl",
        "scores/*.json",
        "findings/*.json",
        "environment.json",
    ):
        yield Case("security", f"push of a link as {name}", _pushed_link(home, name))
    yield Case("security", "pull of links", _pulled_link(home))
    for where, line in (
        ("s/config.json", ("evaluate", "s", "--first", "5", "--attack", "pgd-1")),
        ("s/config.json", ("show", "s")),
        ("s/config.json", ("export", "s", "--to", "n.onnx", "--first", "5")),
        ("s/config.json", ("distill", "--resume", "s", "--epochs", "3")),
        ("s/config.json", ("distill", "--config", "s/config.json", "--dry-run")),
        ("t/config.json", LINES["distill"]),
        ("shared/config.json", ("pull", "shared", "--to", "new")),
    ):
        yield Case("security", f"code named by {where}, {line[0]}", _called(home, where, line))
    for suffix in (".pt", ".pth", ".bin", ".safetensors"):
        yield Case("security", f"a pickle as {suffix}", _pickled(home, suffix))
    for kind, (name, line, never) in EVIL.items():
        yield Case("security", f"injection: {kind}", _injected(home, name, line, never))
    yield Case("security", "injection: HTML", _injected_html(home))
    yield Case("security", "names that climb", _climbing(home))
    yield Case("security", "python -O", _optimised(home))
