"""What can be named, with the facts that lists of it show: methods, networks, data sets, attacks; read without PyTorch.

`make docs` writes catalogue.json from the tables of the code, and beside each kind of fact a hash of the source that it
follows from. Where that source has changed since, the facts are made anew, which takes PyTorch and some seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmard.errors import Refused, unknown
from mmard.names import Spelling, read_method, read_network
from mmard.settings import Settings, is_given
from mmard.teachers import is_teacher, without_prefix

if TYPE_CHECKING:
    from mmard.method import Method
    from mmard.passes import Passes

Fact = dict[str, Any]
STEPS = 10
"""Steps of the attack for which passes are counted."""
HOST = "rslad"
"""The method on which plug-ins are shown."""
FILES = (".safetensors", ".pt", ".pth", ".onnx")
"""How files of networks end."""
_FILE = "catalogue.json"


def facts(kind: str) -> list[Fact]:
    """The rows of "methods" (plug-ins among them), "networks", "families" (of networks), "data" or "attacks"."""
    held = _held(kind)
    return _MADE[kind]() if held is None else held


def written_anew() -> str:
    """The text of catalogue.json as today's code has it."""
    return json.dumps({kind: {"source": _source(kind), "facts": made()} for kind, made in _MADE.items()}, indent=1)


@cache
def _held(kind: str) -> list[Fact] | None:
    """The rows of a kind out of the file; None where it is stale."""
    file = resources.files("mmard") / _FILE
    held = json.loads(file.read_text(encoding="utf-8")).get(kind, {}) if file.is_file() else {}
    return held["facts"] if held.get("source") == _source(kind) else None


def _source(kind: str) -> str:
    """A hash of the files that a kind of fact follows from."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _SOURCES[kind] for file in package.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def refuse_unknown_names(settings: Settings) -> None:
    """Refuse methods, networks and data that no table holds, before PyTorch is imported.

    Where the file is stale, nothing is refused here; what reads the names with PyTorch refuses the same.

    Raises:
        Refused: for a name that is none.
    """
    methods, data = _held("methods"), _held("data")
    if methods is not None and not is_given(settings.method):
        hosts, plugins = ([row["name"] for row in methods if row["kind"] == kind] for kind in ("method", "plug-in"))
        for spec in dict.fromkeys((settings.inner or settings.method, settings.outer or settings.method)):
            read_method(spec, hosts, plugins)
    if _held("families") is not None:
        for name in (settings.network, settings.peer):
            if name is not None and ":" not in name:
                read_network(name, families())
    if data is not None and not is_given(settings.data):
        refuse_unknown_data(settings.data)


def refuse_unknown_data(name: str) -> None:
    """Refuse data that no table holds.

    Raises:
        Refused: offering the nearest name.
    """
    known = [row["name"] for row in facts("data")]
    if name not in known:
        raise unknown("data", name, known)


def refuse_nowhere(spec: str, who: str = "network") -> None:
    """Refuse what is neither there nor a name, before any data are asked for; nothing is read.

    Raises:
        Refused: for a path that is not there, a name that no table holds, or that of a teacher without its prefix.
    """
    if is_teacher(spec) or ":" in spec or Path(spec).exists():
        return
    meant = without_prefix(spec)
    if meant is not None:
        got = "the bare name of a teacher"
        raise Refused(f"{who} {spec}", expected="a network, a run or a file", got=got, mend=f"write {meant}")
    if "/" in spec or spec.endswith(FILES):
        raise Refused(f"{who} {spec}", expected="a run folder or a file", got="no such path")
    try:
        read_network(spec, families())
    except Refused as error:
        expected = f"a run folder, a file, or {error.expected}"
        raise Refused(f"{who} {spec}", expected=expected, got="nothing of that name", mend=error.mend) from None


def families() -> dict[str, Spelling]:
    """How networks are spelt, by family."""
    return {row["key"]: Spelling(tuple(row["numbers"]), tuple(row["usual"]), row["form"]) for row in facts("families")}


# made anew, with PyTorch
def host_of(plugin: str) -> str:
    """The host that lists show a plug-in on: `HOST`, or PGD-AT for one that needs labels in the attack."""
    from mmard.methods import build

    try:
        return build(f"{HOST}+{plugin}").name.removesuffix(f"+{plugin}")
    except Refused:
        return "pgd_at"


def _methods() -> list[Fact]:
    from mmard.methods import METHODS, PLUGINS, build, parameters
    from mmard.passes import count_passes

    def row(name: str, kind: str, method: Method, passes: dict[str, Passes]) -> Fact:
        return {
            "name": name,
            "kind": kind,
            "source": method.source,
            "attack": method.says[0],
            "loss": method.says[1],
            "passes": {net: asdict(passes[net]) for net in method.nets if net in passes},
            "parameters": {f"{name}.{key}": parameter.default for key, parameter in parameters(name).items()},
        }

    rows = [row(name, "method", build(name), count_passes(build(name), STEPS)) for name in METHODS]
    for name in PLUGINS:
        host = build(host_of(name))
        grown, passes = build(f"{host.name}+{name}"), count_passes(host, STEPS)
        more = {net: own - passes.get(net) for net, own in count_passes(grown, STEPS).items()}
        added = row(name, "plug-in", grown, more)
        added["source"] = grown.source.removeprefix(f"{host.source}; ").split(": ", 1)[-1]
        for key, whole in (("attack", host.says[0]), ("loss", host.says[1])):
            if added[key].startswith(whole):
                added[key] = f"host{added[key].removeprefix(whole)}"
        rows.append(added)
    return rows


def _networks() -> list[Fact]:
    import torch

    from mmard.models import build, names, parameter_count

    with torch.device("meta"):
        nets = {name: build(name, num_classes=10, image_shape=(3, 32, 32)) for name in names()}
    return [{"name": name, "weights": parameter_count(net)} for name, net in nets.items()]


def _families() -> list[Fact]:
    from mmard.models import MODELS

    return [
        {"key": key, "numbers": list(f.numbers), "usual": list(f.usual), "form": f.form} for key, f in MODELS.items()
    ]


def _data() -> list[Fact]:
    from mmard.data import DATA
    from mmard.data.fetch import REPOSITORIES

    return [
        {"name": name, "title": source.title, "bundled": source.bundled, "fetched": name in REPOSITORIES}
        for name, source in DATA.items()
    ]


def _attacks() -> list[Fact]:
    from mmard.attacks import spellings

    return [{"spelling": spelling, "says": says} for spelling, says in spellings().items()]


_MADE: dict[str, Callable[[], list[Fact]]] = {
    "methods": _methods,
    "networks": _networks,
    "families": _families,
    "data": _data,
    "attacks": _attacks,
}
_SOURCES = {
    "methods": ("methods/[!_]*.py",),
    "networks": ("models/*.py",),
    "families": ("models/__init__.py",),
    "data": ("data/__init__.py", "data/fetch.py"),
    "attacks": ("attacks/*.py",),
}
