"""Settings as files say them: a user's own, a run's, and the presets of the package."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from mmard.errors import Refused, unknown


def flattened(params: object) -> object:
    """Parameters by full name, from tables by method as a TOML file may have them.

    >>> flattened({"mmard": {"guide": 0.5}, "rslad.alpha": 0.8})
    {'mmard.guide': 0.5, 'rslad.alpha': 0.8}
    """
    if not isinstance(params, Mapping):
        return params
    flat: dict[str, object] = {}
    for name, value in params.items():
        flat |= {f"{name}.{key}": own for key, own in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings out of a TOML or JSON file, unchecked.

    Raises:
        Refused: if there is no such file, or it cannot be read as what its ending says.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    elif not path.suffix and not path.exists():
        raise Refused(str(path), expected="a run folder or a file of settings", got="no such path")
    if path.suffix not in (".toml", ".json"):
        raise Refused(str(path), expected="a .toml or .json file of settings", got=f"a file ending in {path.suffix!r}")
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise Refused(str(path), expected="a file of settings", got=str(error.strerror or error)) from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(str(path), expected=f"{path.suffix[1:].upper()}", got=str(error)) from None
    if not isinstance(found, dict):
        raise Refused(str(path), expected="settings by name", got=type(found).__name__)
    return {**found, "params": flattened(found["params"])} if "params" in found else found


@cache
def _preset_file(name: str) -> dict[str, Any]:
    folder = resources.files("mmard") / "presets"
    known = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    if name not in known:
        raise unknown("preset", name, known)
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))


def preset_values(preset: str, host: str, data: str) -> dict[str, Any]:
    """What a preset says for a method on a data set: its defaults, the method's values, then the method's on this data.

    Raises:
        Refused: for an unknown preset, or one that has nothing for this method.
    """
    tables = _preset_file(preset)
    if "every" not in tables and host not in tables:
        expected = "a method of " + ", ".join(tables)
        raise Refused(f"preset {preset}", expected=expected, got=repr(host), mend="use --preset unified")
    merged: dict[str, Any] = {}
    for table in (tables.get("every", {}), tables.get(host, {})):
        for layer in (table, table.get("on", {}).get(data, {})):
            params = {**merged.get("params", {}), **layer.get("params", {})}
            merged = {**merged, **{k: v for k, v in layer.items() if k != "on"}, "params": params}
    return merged
