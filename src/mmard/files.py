"""Files that are either whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mmard.errors import Refused, require

try:
    import fcntl
except ImportError:  # Windows, which does not let go of a file that somebody writes
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor, nn

UNFINISHED = ".mmard-unfinished"
"""How the names of temporary files end."""


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """What the system refuses to write inside, in one line that names the folder.

    Raises:
        Refused: for a full disk, a read-only folder, and whatever else an OSError says.
    """
    try:
        yield
    except OSError as error:
        mend = "choose another folder, or make room"
        raise Refused(
            str(folder), expected="a folder to write to", got=error.strerror or str(error), mend=mend
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`. A failure leaves what was there before.

    Raises:
        Refused: if there is no space left or no permission to write.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        raise _refusal(path, error) from error
    except Exception as error:
        # safetensors wraps a full disk in an error of its own, which keeps the words of the system.
        if "No space left" in str(error) or "File too large" in str(error):
            raise _refusal(path, OSError(errno.ENOSPC, "No space left on device")) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to fill inside, which becomes `path` at the end; on an error it is removed.

    What killed processes left in the folder is removed at a process's first write into it: who still writes holds a
    lock on its temporary file, and the system takes that back from the dead.

    Raises:
        OSError: as the system says it.
    """
    _sweep_once(path.parent.absolute())
    handle, temporary = _begun(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill inside, which becomes `path`, new or empty, at the end; on an error it is removed.

    Raises:
        OSError: as the system says it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    handle, temporary = _begun(path, folder=True)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _begun(path: Path, folder: bool = False) -> tuple[int, Path]:
    """A new temporary file or folder beside `path`, held by its open handle."""
    kind: dict[str, Any] = {"prefix": f".{path.name[:200]}.", "suffix": UNFINISHED, "dir": path.parent}
    while True:
        if folder:
            name = tempfile.mkdtemp(**kind)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(**kind)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: then nobody sweeps there either
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept in the moment before it was held


def _sweep(folder: Path) -> None:
    """Remove temporary files and folders whose writers are dead. What cannot be removed is left."""
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if fcntl is None:  # there, who still writes a file keeps it from being removed
                left.unlink()
                continue
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink(missing_ok=True)
            finally:
                os.close(handle)


_sweep_once = cache(_sweep)


def foreign_files(folder: Path) -> list[Path]:
    """What a folder holds beside locks and temporary files of ours."""
    return [each for each in folder.iterdir() if each.name != ".lock" and not each.name.endswith(UNFINISHED)]


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def append_line(path: Path, line: str) -> None:
    """Add one line to a text file. A process that dies in here leaves a torn last line, which readers must expect.

    Raises:
        Refused: if there is no space left or no permission to write.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _refusal(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read as well, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        Refused: for what is no JSON, numbers of thousands of digits, and nesting beyond reason.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise Refused(where, expected="JSON", got=str(error), mend="is it another kind of file?") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        Refused: if the file is missing, cannot be read, or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise Refused(str(path), expected="a JSON file", got=got) from None
    except UnicodeDecodeError as error:
        raise Refused(str(path), expected="JSON", got=str(error), mend="is it another kind of file?") from None
    return parse_json(text, str(path))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file, whole or not at all."""

    def write(temporary: Path) -> None:
        # Through an open file, because np.save would put a suffix behind a name that lacks it.
        with temporary.open("wb") as opened:
            np.save(opened, array)

    write_whole(path, write)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed .npz file of arrays by name, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:
            np.savez_compressed(opened, **dict[str, Any](arrays))

    write_whole(path, write)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _refusal(path: Path, error: OSError) -> Refused:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Refused(
        str(path),
        expected="to write this file",
        got="no space left" if full else str(error.strerror or error),
        mend="what was saved before is whole; free some space and resume" if full else "",
    )


FACTS = "mmard"
"""Key of the header entry that holds what is known about the tensors, as JSON."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts (anything JSON holds) into one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    ready = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    write_whole(path, lambda temporary: save_file(ready, temporary, metadata={FACTS: json.dumps(facts)}))


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says, and its header is one; no tensor is read."""
    try:
        with safe_open(path, framework="np"):
            return True
    except (SafetensorError, OSError):
        return False


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors by name, and its facts ({} if it was written by somebody else).

    Raises:
        Refused: if the file is missing, truncated, or of another format.
    """
    if not path.is_file():
        raise Refused(str(path), expected="a safetensors file", got="no such file")
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            facts = json.loads(header.get(FACTS, "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Refused(str(path), expected="a whole safetensors file", got=str(error), mend="is it truncated?") from None
    except OSError as error:
        raise Refused(str(path), expected="a file to read", got=str(error.strerror or error)) from None
    require(isinstance(facts, dict), str(path), expected=f"an object under {FACTS!r}", got=f"a {type(facts).__name__}")
    return tensors, facts


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly: every key and every shape must agree, and floating-point numbers stay such.

    Raises:
        Refused: listing what is missing, extra, of another shape, or of another kind.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in tensors]
    extra = [k for k in tensors if k not in own]
    both = [k for k in own if k in tensors]
    shapes = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}" for k in both if tensors[k].shape != own[k].shape
    ]
    kinds = [
        f"{k} {str(tensors[k].dtype).removeprefix('torch.')}"
        for k in both
        if tensors[k].is_floating_point() != own[k].is_floating_point()
        or tensors[k].is_complex() != own[k].is_complex()
    ]
    if missing or extra or shapes or kinds:
        got = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in (
                ("missing", missing),
                ("extra", extra),
                ("of another shape", shapes),
                ("of another kind", kinds),
            )
            if names
        )
        expected = f"the {len(own)} tensors of {type(module).__name__}"
        raise Refused(where, expected=expected, got=got, mend="is it another architecture?")
    module.load_state_dict(dict(tensors))


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes, kinds and bytes of all parameters and buffers, 64 hex digits."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The same of a state dict."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
