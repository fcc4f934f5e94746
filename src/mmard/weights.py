"""Weights in files: safetensors with readable facts in the header, and foreign checkpoints opened tensors-only."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmard.errors import Refused
from mmard.storage import write_whole

FACTS = "mmard"
"""Key of the header entry that holds what is known about the tensors, as JSON."""

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "ema", "last", "best")
PREFIXES = ("module.", "_orig_mod.", "model.")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts (anything JSON holds) into one safetensors file, whole or not at all."""
    ready = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    write_whole(path, lambda temporary: save_file(ready, temporary, metadata={FACTS: json.dumps(facts)}))


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
            return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(header.get(FACTS, "{}"))  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise Refused(str(path), expected="a whole safetensors file", got=str(error), mend="is it truncated?") from None


def open_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict out of a safetensors file or of a foreign checkpoint (.pt, .pth), and its facts.

    Foreign files are opened tensors-only, so nothing in them is executed. Usual containers are looked through.

    Raises:
        Refused: if the file is missing, unreadable, holds other objects than tensors, or holds no tensor.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise Refused(str(path), expected="a file of weights", got=got)
    try:
        with warnings.catch_warnings():
            # PyTorch warns of old and of unusual pickles; what it cannot read, it refuses.
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise _unreadable(path, error) from None
    return _state_dict_in(found, path), {}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly: every key and every shape must agree, once usual prefixes are taken off.

    Raises:
        Refused: listing what is missing, extra, or of another shape.
    """
    own = module.state_dict()
    tensors = _without_prefix(tensors, own)
    missing = [k for k in own if k not in tensors]
    extra = [k for k in tensors if k not in own]
    both = [k for k in own if k in tensors]
    shapes = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}" for k in both if tensors[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        got = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in (("missing", missing), ("extra", extra), ("of another shape", shapes))
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
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> Refused:
    expected = "a checkpoint that holds tensors alone"
    if path.read_bytes()[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return Refused(str(path), expected=expected, got="an HTML page, a failed download", mend="download it again")
    called = re.search(r"GLOBAL ([\w.]+)", str(error))
    if called is None:
        return Refused(str(path), expected=expected, got="a damaged file, or one of another kind", mend="is it whole?")
    mend = "nothing is unpickled without restriction; save its tensors alone where you trust it, as safetensors"
    return Refused(str(path), expected=expected, got=f"a pickle that calls {called[1]}", mend=mend)


def _state_dict_in(found: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(found, Mapping):
        inside = [k for k in CONTAINERS if isinstance(found.get(k), Mapping)]
        if not inside:
            break
        # Before the tensors beside it, which are counters and accuracies.
        found = found[inside[0]]
    if isinstance(found, Mapping):
        tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            return tensors
        kind = f"a mapping with the keys {', '.join(map(str, list(found)[:6]))}"
    else:
        kind = type(found).__name__
    raise Refused(str(path), expected="a state dict, alone or under " + ", ".join(CONTAINERS), got=kind)


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the prefixes that wrappers add, as long as no name is lost that the network itself has."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            bare = {name.removeprefix(prefix): t for name, t in tensors.items()}
            if len(own.keys() & bare.keys()) >= len(own.keys() & tensors.keys()):
                return _without_prefix(bare, own)
    return tensors
