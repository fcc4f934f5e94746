"""Files of weights: what a checkpoint holds, and which set of weights in it is meant.

Containers, {"state_dict": ...} and the like, are looked through; of several sets of weights in one file, such as raw
ones beside their average, FILE::KEY says which is meant. Nothing in a file is executed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmard.data.pickles import NUMPY_NUMBERS
from mmard.errors import Refused
from mmard.files import load_tensors

KEY = "::"
"""Between a file and the set of weights in it that is meant."""
STATISTICS = ("mean", "std", "mu", "sigma")

Sets = dict[str, dict[str, Tensor]]
"""State dicts by their place in a file, "" for one that is the file itself."""


def open_weights(path: str | Path, prefer: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict out of a safetensors file or of a foreign checkpoint (.pt, .pth), and its facts ({} of others).

    Foreign files are opened tensors-only, so nothing in them is executed; numbers of NumPy beside the tensors are read
    by code of ours.

    Args:
        path: the file, or FILE::KEY for one of several sets of weights in it: the key of a container, or what the names
            of its tensors begin with.
        prefer: the key that is taken of several, where nothing is said.

    Raises:
        Refused: if the file is missing, unreadable, holds other objects than tensors, holds no tensor, or holds several
            sets of weights and nothing says which is meant.
    """
    file, _, key = (str(path), "", "") if Path(path).exists() else str(path).partition(KEY)
    if file.endswith(".safetensors"):
        tensors, facts = load_tensors(Path(file))
        return (_chosen({"": tensors}, key, file), {}) if key else (tensors, facts)
    if not Path(file).is_file():
        got = "a folder" if Path(file).is_dir() else "no such file"
        raise Refused(file, expected="a file of weights", got=got)
    try:
        with warnings.catch_warnings(record=True) as said, torch.serialization.safe_globals(NUMPY_NUMBERS):
            # PyTorch warns of old and of unusual pickles; what it cannot read, it refuses.
            warnings.simplefilter("always")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise _unreadable(Path(file), error, " ".join(str(each.message) for each in said)) from None
    sets = _sets(found)
    return _chosen(sets, key or (prefer if prefer in sets else ""), file, found), {}


def _sets(found: Any, at: str = "") -> Sets:
    """The sets of weights in what a file held; those in containers go before the tensors beside these."""
    if not isinstance(found, Mapping) or "param_groups" in found:
        return {}
    inner: Sets = {}
    for name, held in found.items():
        if isinstance(name, str):
            inner |= _sets(held, f"{at}.{name}" if at else name)
    own = {name: held for name, held in found.items() if isinstance(name, str) and isinstance(held, Tensor)}
    if any(value.ndim > 1 for tensors in inner.values() for value in tensors.values()):
        inner = {name: tensors for name, tensors in inner.items() if any(t.ndim > 1 for t in tensors.values())}
    if not inner:
        return {at: own} if any(value.ndim for value in own.values()) else {}
    beside = {name: value for name, value in own.items() if name in STATISTICS and value.ndim}
    return {name: {**beside, **tensors} for name, tensors in inner.items()}


def _chosen(sets: Sets, key: str, file: str, found: Any = None) -> dict[str, Tensor]:
    """The set of weights that is meant.

    Raises:
        Refused: if there is none, several, or none of this key.
    """
    if key:
        named = [tensors for name, tensors in sets.items() if f"{name}.".startswith(f"{key}.")]
        for tensors in () if named else sets.values():
            part = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
            named += [part] if part else []
        if len(named) == 1:
            return named[0]
        got = f"{len(named)} of them" if named else f"none, but {', '.join(filter(None, sets)) or 'one without a key'}"
        raise Refused(file, expected=f"one set of weights under {key!r}", got=got)
    different: Sets = {}
    for name, tensors in sets.items():
        if not any(same_tensors(tensors, other) for other in different.values()):
            different[name] = tensors
    if len(different) > 1:
        mend = f"say which is meant: {file}{KEY}{list(different)[-1]}"
        raise Refused(file, expected="one set of weights", got=" and ".join(different), mend=mend)
    if not different:
        kind = type(found).__name__
        while isinstance(found, Mapping):
            kind = f"a mapping with the keys {', '.join(map(str, list(found)[:6]))}"
            found = next((held for held in found.values() if isinstance(held, Mapping)), None)
        raise Refused(file, expected="a state dict, alone or under a key such as state_dict", got=kind)
    return next(iter(different.values()))


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights have the same names and values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _unreadable(path: Path, error: Exception, said: str) -> Refused:
    expected = "a checkpoint that holds tensors alone"
    beginning = path.read_bytes()[:64].lstrip().lower()
    if beginning.startswith((b"<!doctype", b"<html")):
        return Refused(str(path), expected=expected, got="an HTML page, a failed download", mend="download it again")
    if "TorchScript" in str(error):
        mend = "save the state_dict() of the network that it was made of"
        return Refused(str(path), expected=expected, got="a TorchScript archive", mend=mend)
    called = re.search(r"GLOBAL ([\w.]+)", str(error))
    protocol = re.search(r"Detected pickle protocol ([4-9])", said)
    if called is None and protocol is not None:
        mend = "have its maker save it as torch.save does without pickle_protocol, or as safetensors"
        return Refused(str(path), expected=expected, got=f"a pickle of protocol {protocol[1]}", mend=mend)
    if called is None:
        return Refused(str(path), expected=expected, got="a damaged file, or one of another kind", mend="is it whole?")
    mend = "nothing is unpickled without restriction; save its tensors alone where you trust it, as safetensors"
    return Refused(str(path), expected=expected, got=f"a pickle that calls {called[1]}", mend=mend)
