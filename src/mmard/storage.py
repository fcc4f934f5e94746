"""Files that are either whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.errors import Refused


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`. A failure leaves what was there before.

    Raises:
        Refused: if there is no space left or no permission to write.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _refusal(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refusal(path, error) from error
        # safetensors wraps a full disk in an error of its own, which keeps the words of the system.
        if "No space left" in str(error) or "File too large" in str(error):
            raise _refusal(path, OSError(errno.ENOSPC, "No space left on device")) from error
        raise


def temporaries(name: str) -> str:
    """What the temporary files of a file of this name are called, as a pattern."""
    return f".{name}.*"


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
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        Refused: if the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise Refused(str(path), expected="a JSON file", got=got) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(str(path), expected="JSON", got=str(error), mend="is it another kind of file?") from None


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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
