"""Runs to the Hugging Face hub and back. The only calls over the network are those of `huggingface_hub`, on request.

What the hub's client needs to know who somebody is it has from its own login; no token passes through here, and none is
written anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmard.data.fetch import differs
from mmard.data.optional import optional
from mmard.environment import now
from mmard.errors import Refused
from mmard.networks import load_network
from mmard.run import Run
from mmard.share.card import WEIGHTS, suspicions
from mmard.share.folder import SHARED, refuse_code, write_shared
from mmard.storage import write_json
from mmard.weights import load_tensors

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
        return _written(opened, Path(to).expanduser(), repo, licence)
    hub = hub or optional("huggingface_hub", f"push {repo}", extra="hub").HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        made = _written(opened, Path(scratch) / "shared", repo, licence)
        try:
            hub.create_repo(repo, private=not public, exist_ok=True)
            message = f"Run {opened.path.resolve().name}, written by mmard"
            commit = hub.upload_folder(repo_id=repo, folder_path=str(made.folder), commit_message=message)
        except Exception as error:  # the client's errors have no common class
            raise _unreachable(f"push {repo}", error, "log in with: hf auth login; --to FOLDER needs no hub") from error
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
    to.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        if Path(repo).expanduser().is_dir():
            facts = _copied(Path(repo).expanduser(), scratch)
        else:
            _check_repo(repo)
            hub = hub or optional("huggingface_hub", f"pull {repo}", extra="hub").HfApi()
            facts = _downloaded(hub, repo, revision, scratch, tell)
        _check_run(repo, scratch)
        write_json(scratch / "pulled.json", {**facts, "pulled": now()})
        if to.exists():
            to.rmdir()  # an empty one was let pass
        scratch.chmod(0o777 & ~_umask())
        scratch.replace(to)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
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
        raise _unreachable(f"pull {repo}", error, mend) from error
    wanted = [each for each in info.siblings if SHARED.fullmatch(each.rfilename)]
    for record in wanted:
        tell(f"{record.rfilename}: {(record.size or 0) / 1e6:,.1f} MB")
        try:
            hub.hf_hub_download(repo, record.rfilename, repo_type="model", revision=info.sha, local_dir=str(folder))
        except Exception as error:
            raise _unreachable(f"pull {repo}", error, "run the same command again") from error
        wrong = differs(folder / record.rfilename, record)
        if wrong is not None:
            where = f"pull {repo}, {record.rfilename}"
            raise Refused(where, expected=wrong[0], got=wrong[1], mend="run the same command again")
    # The client's notes on what it has downloaded.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    left = [each.rfilename for each in info.siblings if not SHARED.fullmatch(each.rfilename)]
    return {"repo": repo, "revision": info.sha, "left_out": left}


def _copied(source: Path, folder: Path) -> dict[str, Any]:
    names = [file.relative_to(source).as_posix() for file in sorted(source.rglob("*")) if file.is_file()]
    for name in names:
        if SHARED.fullmatch(name):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    return {"folder": source.name, "left_out": [name for name in names if not SHARED.fullmatch(name)]}


def _check_run(repo: str, folder: Path) -> None:
    """Refuse what is no run of mmard, and build its network from it."""
    found = [which for which in WEIGHTS if (folder / f"{which}.safetensors").is_file()]
    if not (folder / "config.json").is_file() or not found:
        held = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing of these"
        mend = "weights of somebody else are given with --weights or --teacher-weights"
        expected = "config.json and best.safetensors or last.safetensors, as mmard push writes them"
        raise Refused(f"pull {repo}", expected=expected, got=held, mend=mend)
    for which in found:
        _, facts = load_tensors(folder / f"{which}.safetensors")
        if "network" not in facts:
            expected = "weights that mmard wrote"
            raise Refused(f"pull {repo}", expected=expected, got=f"a {which}.safetensors that does not say its network")
        refuse_code(str(facts["network"]), f"pull {repo}")
        load_network(str(folder), which=which)


def _check_repo(repo: str) -> None:
    if not REPO.fullmatch(repo):
        raise Refused("repository", expected="USER/NAME", got=repr(repo), mend="for example ada/resnet18-rslad")


def _unreachable(where: str, error: Exception, mend: str) -> Refused:
    lines = str(error).strip().splitlines()
    got = type(error).__name__ + (f" ({lines[0][:200]})" if lines else "")
    return Refused(where, expected="an answer from the Hugging Face hub", got=got, mend=mend)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
