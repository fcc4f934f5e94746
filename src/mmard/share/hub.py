"""Runs to the Hugging Face hub and back, and files of known teachers from Google Drive; nothing is called unasked.

A run as others get it is weights, settings, figures, findings and a card, without what is of this machine alone:

    README.md          the card; its head is what the hub reads
    config.json        the settings, without folders of this machine
    best.safetensors, last.safetensors
    environment.json, epochs.jsonl, scores/, findings/   as in the run, likewise

It is a run folder itself, from which one evaluates, distils and compares. What a training would resume from stays
behind, and so does its log between the ends of epochs. Links are neither sent nor brought. What the hub's client needs
to know who somebody is it has from its own login; no token passes through here, and none is written anywhere.

Google Drive, where RobustBench keeps its files, answers with a page of HTML where it wants a person to confirm, or has
served a file too often; kept under the file's name that page is the classic failure. What arrives is therefore looked
at before it gets its name: it must be a checkpoint by its first bytes, whole by the length that was announced, and hold
exactly this teacher's tensors. Nobody publishes checksums of these files; that of what arrived is written beside it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmard.data.decoding import import_extra
from mmard.data.fetch import differs, unreachable
from mmard.errors import Refused, require
from mmard.files import (
    load_tensors,
    parse_json,
    read_json,
    replacing_folder,
    save_tensors,
    write_bytes,
    write_json,
    write_text,
    write_whole,
    writing_into,
)
from mmard.networks import load_network
from mmard.run import Run, now
from mmard.settings import Settings
from mmard.share.card import WEIGHTS, card, suspicions
from mmard.teachers import Teacher, find, open_teacher
from mmard.trust import is_code

SHARED = re.compile(
    r"README\.md|config\.json|environment\.json|pushed\.json|epochs\.jsonl|(?:best|last)\.safetensors"
    r"|(?:scores|findings)/[A-Za-z0-9.,@+_-]+\.(?:json|npy|npz)"
)
"""Files that a shared run has; nothing else is written, and nothing else is brought back."""

_FOLDERS = re.compile(r"(?<![\w.])(?<!:/)(?:~|[A-Za-z]:)?[/\\](?:(?:[^\s'\"/\\]|[ ](?![-/~'\"]))+[/\\])+")
"""Absolute folders. Their names may have blanks: rather too much is cut than a name left."""
_MOST_BYTES = 2**28
"""Of a record; weights may have more."""


def write_shared(run: Run, to: Path, name: str, licence: str | None = None) -> list[str]:
    """Write a run's shared form into a new or empty folder; the names of its files.

    Args:
        name: of the network on its card.
        licence: of the weights, by its short name at the hub, e.g. "mit"; None says nothing.

    Raises:
        Refused: if the run has no weights or a network that nobody else can build, or the folder is in use.
    """
    _refuse_links(run.path)
    held = {which: load_tensors(run.weights_file(which)) for which in WEIGHTS if run.weights_file(which).is_file()}
    if not held:
        raise Refused(str(run.path), expected="a run with weights", got="none", mend="has it been trained?")
    for _, facts in held.values():
        refuse_code(str(facts.get("network", "")), str(run.path))
    Run.refuse_taken(to)
    to.mkdir(parents=True, exist_ok=True)
    for which, (tensors, facts) in held.items():
        save_tensors(to / f"{which}.safetensors", tensors, without_folders(facts))
    write_json(to / "config.json", shared_config(run.config))
    for file in _beside(run):
        target = to / file.relative_to(run.path)
        target.parent.mkdir(exist_ok=True)
        if file.suffix == ".json":
            write_json(target, without_folders(read_json(file)))
        else:
            write_bytes(target, file.read_bytes())
    epochs = [without_folders(event) for event in run.log() if event.get("kind") == "epoch"]
    if epochs:
        write_text(to / "epochs.jsonl", "".join(json.dumps(event) + "\n" for event in epochs))
    write_text(to / "README.md", card(Run(to), name, licence))
    names = sorted(str(file.relative_to(to).as_posix()) for file in to.rglob("*") if file.is_file())
    assert all(SHARED.fullmatch(each) for each in names), names
    return names


def shared_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings for others: where data and tables lay is left out, and folders before a name are."""
    left = {"data_dir": None, "teacher_table": "off"}
    found: dict[str, Any] = without_folders(dict(config))
    return {key: left.get(key, value) if key in left else value for key, value in found.items()}


def without_folders(value: Any) -> Any:
    """Any JSON, with absolute paths in its texts cut to their last name.

    >>> without_folders({"a": "mmard train --out /home/ada/runs/t --eps 8/255", "b": ["runs/t", 3]})
    {'a': 'mmard train --out t --eps 8/255', 'b': ['runs/t', 3]}
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return value


def refuse_code(network: str, where: str) -> None:
    """Refuse a network that only somebody's own code can build: reading it would import what a file names.

    Raises:
        Refused: for `package.module:function`, or an object that was handed over.
    """
    if ":" in network:
        mend = "`mmard models` lists those; share code of your own beside its weights, as a repository"
        raise Refused(where, expected="a network that mmard builds by name", got=network, mend=mend)


def _refuse_links(folder: Path) -> None:
    """Refuse a folder in which what is shared is a link: it would send, or bring, what lies somewhere else."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and (SHARED.fullmatch(name) or name in ("scores", "findings", "log.jsonl")):
            mend = "copy the file there if it belongs to the run"
            raise Refused(str(path), expected="a file of the run itself", got="a link", mend=mend)


def _beside(run: Run) -> list[Path]:
    """Environment, and the records of figures and findings with their arrays."""
    named = [run.path / "environment.json"]
    for folder in (run.scores, run.findings_folder):
        named += [file for kind in ("json", "npy", "npz") for file in sorted(folder.glob(f"*.{kind}"))]
    return [file for file in named if file.is_file()]


REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelHub(Protocol):
    """The calls of `huggingface_hub.HfApi` that are made here."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any: ...

    def repo_info(self, repo_id: str, *, revision: str | None, repo_type: str, files_metadata: bool) -> Any: ...

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: str) -> str: ...


@dataclass(frozen=True)
class Pushed:
    """What a push made.

    Attributes:
        folder: where the shared form lies; None if it went to the hub and was removed here.
        files: names in it.
        size: bytes of all of them.
        address: of the commit at the hub; "" without one.
        suspicious: checks that were raised on these weights.
    """

    folder: Path | None
    files: tuple[str, ...]
    size: int
    address: str
    suspicious: tuple[str, ...]


def push(
    run: str | Path,
    repo: str,
    *,
    to: str | Path | None = None,
    public: bool = False,
    licence: str | None = None,
    hub: ModelHub | None = None,
) -> Pushed:
    """Share a run: weights, settings, figures, findings and a model card.

    Args:
        run: its folder.
        repo: USER/NAME at the hub; the name is the card's title.
        to: write the folder here and send nothing.
        public: whether a repository that is made is for everybody.
        licence: of the weights, by its short name at the hub, e.g. "mit".
        hub: by default `huggingface_hub.HfApi()`, from the extra `hub`.

    Raises:
        Refused: for no run, no weights, a network that others cannot build, a name that is none, a folder in use, or a
            hub that does not take it.
    """
    _check_repo(repo)
    opened = Run.open(run)
    if to is not None:
        to = Path(to).expanduser()
        Run.refuse_taken(to)
        with writing_into(to), replacing_folder(to) as scratch:
            made = _written(opened, scratch, repo, licence)
        return replace(made, folder=to)
    hub = hub or import_extra("huggingface_hub", f"push {repo}", extra="hub").HfApi()
    with tempfile.TemporaryDirectory() as passing:
        made = _written(opened, Path(passing) / "shared", repo, licence)
        try:
            hub.create_repo(repo, private=not public, exist_ok=True)
            message = f"Run {opened.path.resolve().name}, written by mmard"
            commit = hub.upload_folder(repo_id=repo, folder_path=str(made.folder), commit_message=message)
        except Exception as error:  # the client's errors have no common class
            raise unreachable(f"push {repo}", error, "log in with: hf auth login; --to FOLDER needs no hub") from error
    address = str(getattr(commit, "commit_url", "") or f"https://huggingface.co/{repo}")
    return Pushed(None, made.files, made.size, address, made.suspicious)


def pull(
    repo: str,
    to: str | Path,
    *,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    hub: ModelHub | None = None,
) -> Path:
    """Bring a shared run to a new folder, from which one evaluates and distils; returns it.

    Only files that a shared run has are brought, each is compared with the hub's record of it, and the folder gets its
    name when the network has been built from it. Nothing in it is executed.

    Args:
        repo: USER/NAME at the hub, or a folder that `push(..., to=...)` wrote.
        to: a new folder.
        revision: branch, tag or commit.

    Raises:
        Refused: for a name that is none, a hub that does not answer, a repository that holds no run of mmard, a damaged
            file, or a folder in use.
    """
    to = Path(to).expanduser()
    Run.refuse_taken(to)
    tell = progress or (lambda line: None)
    with writing_into(to), replacing_folder(to) as scratch:
        if Path(repo).expanduser().is_dir():
            facts = _copied(Path(repo).expanduser(), scratch)
        else:
            _check_repo(repo)
            hub = hub or import_extra("huggingface_hub", f"pull {repo}", extra="hub").HfApi()
            facts = _downloaded(hub, repo, revision, scratch, tell)
        _check_run(repo, scratch)
        write_json(scratch / "pulled.json", {**facts, "pulled": now()})
    return to


def _written(run: Run, folder: Path, repo: str, licence: str | None) -> Pushed:
    files = write_shared(run, folder, repo, licence)
    size = sum((folder / name).stat().st_size for name in files)
    return Pushed(folder, tuple(files), size, "", suspicions(Run(folder)))


def _downloaded(
    hub: ModelHub, repo: str, revision: str | None, folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    try:
        info = hub.repo_info(repo, revision=revision, repo_type="model", files_metadata=True)
    except Exception as error:
        mend = "is it spelled so, and are you logged in if it is private?"
        raise unreachable(f"pull {repo}", error, mend) from error
    wanted = [each for each in info.siblings if SHARED.fullmatch(each.rfilename)]
    for record in wanted:
        _refuse_large(f"pull {repo}, {record.rfilename}", record.rfilename, record.size or 0)
        tell(f"{record.rfilename}: {(record.size or 0) / 1e6:,.1f} MB")
        try:
            hub.hf_hub_download(repo, record.rfilename, repo_type="model", revision=info.sha, local_dir=str(folder))
        except Exception as error:
            raise unreachable(f"pull {repo}", error, "run the same command again") from error
        wrong = differs(folder / record.rfilename, record)
        if wrong is not None:
            where = f"pull {repo}, {record.rfilename}"
            raise Refused(where, expected=wrong[0], got=wrong[1], mend="run the same command again")
    # The client's notes on what it has downloaded.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    left = [each.rfilename for each in info.siblings if not SHARED.fullmatch(each.rfilename)]
    return {"repo": repo, "revision": info.sha, "left_out": left}


def _copied(source: Path, folder: Path) -> dict[str, Any]:
    _refuse_links(source)
    names = [file.relative_to(source).as_posix() for file in sorted(source.rglob("*")) if file.is_file()]
    for name in names:
        if SHARED.fullmatch(name):
            _refuse_large(str(source / name), name, (source / name).stat().st_size)
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    return {"folder": source.name, "left_out": [name for name in names if not SHARED.fullmatch(name)]}


def _check_run(repo: str, folder: Path) -> None:
    """Refuse what is no run of mmard: its records must be records, and its network is built from it."""
    found = [which for which in WEIGHTS if (folder / f"{which}.safetensors").is_file()]
    if not (folder / "config.json").is_file() or not found:
        held = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing of these"
        mend = "weights of somebody else are given with --weights or --teacher-weights"
        expected = "config.json and best.safetensors or last.safetensors, as mmard push writes them"
        raise Refused(f"pull {repo}", expected=expected, got=held, mend=mend)
    _refuse_links(folder)
    config = Run(folder).config
    if "method" in config:
        settings = Settings.resolve(config)
        for name in (settings.network, settings.peer or ""):
            if is_code(name):
                refuse_code(name, f"pull {repo}, config.json")
    for file in (each for each in folder.rglob("*") if each.is_file()):
        _refuse_no_record(file, f"pull {repo}, {file.relative_to(folder).as_posix()}")
    for which in found:
        _, facts = load_tensors(folder / f"{which}.safetensors")
        if "network" not in facts:
            expected = "weights that mmard wrote"
            raise Refused(f"pull {repo}", expected=expected, got=f"a {which}.safetensors that does not say its network")
        refuse_code(str(facts["network"]), f"pull {repo}")
        load_network(str(folder), which=which)


def _refuse_large(where: str, name: str, size: int) -> None:
    if size > _MOST_BYTES and not name.endswith(".safetensors"):
        raise Refused(where, expected=f"a record of at most {_MOST_BYTES / 1e6:,.0f} MB", got=f"{size / 1e6:,.0f} MB")


def _refuse_no_record(file: Path, where: str) -> None:
    """Refuse a file whose content is not what its name says."""
    try:
        if file.suffix == ".json":
            held = read_json(file)
            listed = isinstance(held, list) and all(isinstance(each, dict) for each in held)
            require(
                listed if file.name == "environment.json" else isinstance(held, dict),
                where,
                expected="a record",
                got=type(held).__name__,
            )
        elif file.suffix == ".jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                held = parse_json(line, where)
                require(isinstance(held, dict), where, expected="an object in each line", got=line[:40])
        elif file.suffix == ".npy":
            np.load(file, mmap_mode="r", allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                _ = arrays.files
        elif file.suffix == ".md":
            file.read_text(encoding="utf-8")
    except Refused:
        raise
    except Exception as error:  # JSON, text and arrays each fail in their own ways
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(where, expected="a record of mmard", got=got, mend="pull it again, or tell its owner") from error


def _check_repo(repo: str) -> None:
    if not REPO.fullmatch(repo):
        raise Refused("repository", expected="USER/NAME", got=repr(repo), mend="for example ada/resnet18-rslad")


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
    with writing_into(folder):
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


def _one(spec: str) -> Teacher:
    found = find(spec)
    if len(found) > 1:
        raise Refused(f"fetch {spec}", expected="one teacher", got="two", mend=" or ".join(t.spec for t in found))
    return found[0]


def _blocks(url: str, teacher: Teacher, where: str) -> Iterator[bytes]:
    """What an address answers, piece by piece; refused if it is a page, or ends early."""
    browser = f"this needs the network; or get {teacher.address} in a browser and give it with --teacher-weights"
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
