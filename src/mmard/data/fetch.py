"""Data sets from the Hugging Face hub: the only module of this floor that uses the network, and only when called.

Each file is compared with the hub's own record of it, size and SHA-256, before the set is called complete. What was
fetched is written down in `fetched.json`. Calling again resumes: files that are whole stay, a partial one is continued
by the hub's client.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmard.data.decoding import import_extra
from mmard.errors import Refused, unknown
from mmard.files import write_json, writing_into

_SHARD = re.compile(r"(train|test|valid|validation)-[^/]*\.parquet")


@dataclass(frozen=True)
class Repository:
    """Where a set lies on the hub: the dataset repository and the folder in it."""

    repo_id: str
    folder: str


REPOSITORIES: dict[str, Repository] = {
    "cifar10": Repository("uoft-cs/cifar10", "plain_text"),
    "cifar100": Repository("uoft-cs/cifar100", "cifar100"),
    "svhn": Repository("ufldl-stanford/svhn", "cropped_digits"),
    "tiny_imagenet": Repository("zh-plus/tiny-imagenet", "data"),
}


class Hub(Protocol):
    """The two calls of `huggingface_hub.HfApi` that are made here."""

    def repo_info(self, repo_id: str, *, repo_type: str, files_metadata: bool) -> Any: ...

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: str) -> str: ...


def fetch(
    name: str, data_dir: str | Path, progress: Callable[[str], None] | None = None, *, hub: Hub | None = None
) -> Path:
    """Bring a data set to `data_dir`/`name`, where `load(name, data_dir)` finds it; returns that folder.

    Args:
        name: a key of REPOSITORIES.
        data_dir: made if it does not exist.
        progress: called with one line for each file.
        hub: by default `huggingface_hub.HfApi()`, from the extra `hub`.

    Raises:
        Refused: for an unknown name, a hub that cannot be reached, or a file that is not what the hub's record says;
            that file is deleted.
    """
    if name not in REPOSITORIES:
        raise unknown("data to fetch", name, REPOSITORIES)
    repository, folder = REPOSITORIES[name], Path(data_dir).expanduser() / name
    hub = hub or import_extra("huggingface_hub", f"fetching {name}", extra="hub").HfApi()
    tell = progress or (lambda line: None)
    offline = f"this needs the network; run the same command again to go on, or place the files in {folder} yourself"
    try:
        info = hub.repo_info(repository.repo_id, repo_type="dataset", files_metadata=True)
    except Exception as error:  # the client's errors for a missing network have no common class
        raise unreachable(f"fetch {name}", error, offline) from error
    wanted = [
        each
        for each in info.siblings
        if each.rfilename.startswith(repository.folder + "/") and _SHARD.fullmatch(each.rfilename.rpartition("/")[2])
    ]
    if not wanted:
        got = f"none at revision {info.sha}"
        where = f"{repository.repo_id}/{repository.folder}"
        raise Refused(where, expected="Parquet files", got=got, mend="the hub's copy has moved; please report it")
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for record in wanted:
        path = folder / record.rfilename
        if path.is_file() and differs(path, record) is None:
            tell(f"{record.rfilename}: already there")
            continue
        # The hub's client trusts its own note of a finished download over the file, so a damaged one has to go first.
        path.unlink(missing_ok=True)
        tell(f"{record.rfilename}: fetching {(record.size or 0) / 1e6:,.1f} MB from {repository.repo_id}")
        try:
            hub.hf_hub_download(
                repository.repo_id, record.rfilename, repo_type="dataset", revision=info.sha, local_dir=str(folder)
            )
        except Exception as error:
            raise unreachable(f"fetch {name}", error, offline) from error
        wrong = differs(path, record)
        if wrong is not None:
            path.unlink(missing_ok=True)
            expected, got = wrong
            raise Refused(str(path), expected=expected, got=got, mend="deleted; run the same command again")
    with writing_into(folder):
        _record(folder, repository.repo_id, info.sha, wanted)
    return folder


def differs(path: Path, record: Any) -> tuple[str, str] | None:
    """What was expected and met, where a file differs from the hub's record of it; None where it does not."""
    if not path.is_file():
        return "a file", "none"
    size = path.stat().st_size
    if record.size is not None and size != record.size:
        return f"{record.size:,} bytes", f"{size:,}"
    # Small files may lie in git itself, which names them by the SHA-1 of a header and the content.
    digest, expected = (
        (hashlib.sha256(), record.lfs.sha256)
        if record.lfs is not None
        else (hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False), record.blob_id)
    )
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    met = digest.hexdigest()
    return None if met == expected else (f"{digest.name} {expected}", met)


def _record(folder: Path, repo_id: str, revision: str, files: list[Any]) -> None:
    listed = {each.rfilename: {"size": each.size, "sha256": _sha256(folder / each.rfilename)} for each in files}
    write_json(folder / "fetched.json", {"repo": repo_id, "revision": revision, "files": listed})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unreachable(where: str, error: Exception, mend: str) -> Refused:
    """The error for a hub that did not answer, or a disk that did not take what it sent."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        mend = "make room, or name another folder; what is whole there stays"
        return Refused(where, expected="room for its files", got="no space left", mend=mend)
    lines = str(error).strip().splitlines()
    got = type(error).__name__ + (f" ({lines[0][:200]})" if lines else "")
    return Refused(where, expected="an answer from the Hugging Face hub", got=got, mend=mend)
