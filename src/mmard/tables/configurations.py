"""Configurations: run folders that differ in their seed alone; how they are told apart, and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmard.run import Run
from mmard.settings import TAUGHT, Settings, teachers_text
from mmard.words import as_fraction

NO_MATTER = frozenset(
    {"seed", "preset", "data_dir", "on_disk", "device", "threads", "save_seconds", "tensorboard", "log"}
)
"""Settings by which runs may differ and still be repetitions of each other. What a preset says stands in the others."""
NAMED_BY = ("method", "inner", "outer", "network")
"""Settings that a row's name begins with; `Configuration.method` and `.network` have them."""
RADII = ("eps", "step_size")


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed alone.

    Attributes:
        name: short, and different from that of every other configuration beside it.
        method: with plug-ins, e.g. "trades"; "" for a network that was not trained here.
        network: the name of the network.
        settings: what the runs share, parameters of methods under their full names; what does not matter is left out.
        runs: their folders, by seed.
        seeds: their seeds of training, in the same order.
    """

    name: str
    method: str
    network: str
    settings: Mapping[str, Any]
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]


def configurations(runs: Sequence[Run]) -> tuple[list[Configuration], list[str]]:
    """Group runs, in the order in which their configurations first occur.

    Students of several seeds whose teacher was trained for each seed anew (teacher-0, teacher-1, ...) are repetitions
    as well: the teacher then counts as a part of what is repeated.

    Returns:
        The configurations, and a line for each run that is left out because another one repeats it to the seed.
    """
    groups: dict[str, list[tuple[Run, int]]] = {}
    shared: dict[str, dict[str, Any]] = {}
    refused = []
    configs = [run.config for run in runs]
    own_teacher = _teachers_by_seed(configs)
    for run, config, own in zip(runs, configs, own_teacher, strict=True):
        settings = _settings(config, own)
        key = repr(sorted(settings.items()))
        seed = int(config.get("seed", 0))
        twin = next((other for other, theirs in groups.get(key, []) if theirs == seed), None)
        if twin is not None:
            if twin.path.resolve() != run.path.resolve():
                refused.append(f"{run.path}: has the settings and the seed of {twin.path}, and is left out")
            continue
        shared.setdefault(key, settings)
        groups.setdefault(key, []).append((run, seed))
    names = _names([shared[key] for key in groups], [found[0][0] for found in groups.values()])
    made = []
    for name, (key, found) in zip(names, groups.items(), strict=True):
        ordered = sorted(found, key=lambda pair: pair[1])
        paths, seeds = tuple(run.path for run, _ in ordered), tuple(seed for _, seed in ordered)
        settings = shared[key]
        made.append(Configuration(name, _method(settings), _network(settings), settings, paths, seeds))
    return made, refused


def differing(found: Sequence[Configuration]) -> dict[str, dict[str, str]]:
    """Settings beside the method in which configurations differ: setting -> name of the configuration -> value."""
    keys = dict.fromkeys(key for each in found for key in each.settings)
    rest: dict[str, dict[str, str]] = {}
    for key in keys:
        # A parameter belongs to a method, which the rows name; teachers are what students alone have.
        with_it = [each for each in found if key in each.settings]
        values = {each.name: shown(key, each.settings[key]) for each in with_it}
        if key not in NAMED_BY and "." not in key and len(set(values.values())) > 1:
            rest[key] = values
    return rest


def shown(key: str, value: Any) -> str:
    """A setting's value as people read it."""
    if key == "teachers":
        return teachers_text(value)
    if key in RADII and isinstance(value, float):
        return as_fraction(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={shown(name, each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(shown("", each) for each in value)
    return "none" if value is None else str(value)


def _settings(config: Mapping[str, Any], own_teacher: bool) -> dict[str, Any]:
    """What matters of a config, flat; settings that a config is too old to know have their default."""
    trained = "method" in config
    usual = {name: field.default for name, field in Settings.model_fields.items()}
    whole = {**(_plain(usual) if trained else {}), **_plain(config)}
    nobody = NO_MATTER | {"params"} | (TAUGHT if not whole.get("teachers") else set())
    found = {key: value for key, value in whole.items() if key not in nobody}
    found |= dict(whole.get("params") or {})
    if trained and found.get("step_size") is None and isinstance(found.get("eps"), float):
        found["step_size"] = found["eps"] / 4
    if own_teacher:
        (teacher,) = config["teachers"]["T"]
        found["teachers"] = {"T": [teacher.removesuffix(str(config["seed"])) + "<seed>"]}
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _teachers_by_seed(configs: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a run's teacher bears the run's own seed, and teaches no other run of the same settings."""
    ends = [
        "seed" in c
        and len(t := c.get("teachers") or {}) == len(t.get("T", ())) == 1
        and t["T"][0].endswith(f"-{c['seed']}")
        for c in configs
    ]
    with_whom = [repr(sorted(_settings(config, False).items())) for config in configs]
    taught: dict[str, int] = {}
    for settings in with_whom:
        taught[settings] = taught.get(settings, 0) + 1
    return [end and taught[settings] == 1 for end, settings in zip(ends, with_whom, strict=True)]


def _method(settings: Mapping[str, Any]) -> str:
    halves = [f"{half} {settings[half]}" for half in ("inner", "outer") if settings.get(half)]
    return ", ".join(halves) if len(halves) == 2 else ", ".join([str(settings.get("method", "")), *halves])


def _network(settings: Mapping[str, Any]) -> str:
    return str(settings.get("network") or "")


def _names(found: Sequence[Mapping[str, Any]], first: Sequence[Run]) -> list[str]:
    """The method; the network where there are several; then whatever else tells a row from others of that name."""
    one_network = len({_network(settings) for settings in found}) == 1
    plain = []
    for settings, run in zip(found, first, strict=True):
        parts = [_method(settings), "" if one_network and _method(settings) else _network(settings)]
        plain.append(" on ".join(part for part in parts if part) or run.path.name)
    names = []
    for name, settings in zip(plain, found, strict=True):
        like = [other for other, theirs in zip(found, plain, strict=True) if theirs == name]
        keys = dict.fromkeys(key for other in like for key in other if key not in NAMED_BY)
        telling = [key for key in keys if len({repr(other.get(key)) for other in like}) > 1]
        values = [f"{key} {shown(key, settings[key])}" for key in telling if key in settings]
        names.append(", ".join([name, *values]))
    return names
