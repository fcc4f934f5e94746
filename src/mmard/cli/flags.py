"""The options of `train` and `distill`: one for every setting, made from its name, its panel and its sentence."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from mmard.config import DistillSettings, Settings, TrainSettings, teachers_of
from mmard.config_files import read_config
from mmard.errors import Refused

Said = dict[str, Any]
"""What a user said: values by the name of the setting. What was not said is not in it."""

COMMANDS: dict[type[Settings], str] = {TrainSettings: "train", DistillSettings: "distill"}
BY_LETTER = {"teacher": "RUN|T=RUN", "teacher_weights": "FILE|T=FILE"}
"""Settings that may be said once for each teacher, by its letter."""
_NUMBERS = {int: "N", float: "X", bool: ""}


def with_settings(kind: type[Settings], name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every setting of this kind; those that were said arrive together as `name`."""

    def grown(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != name]
        # What this kind of training adds to the settings comes first in its help.
        first = [field for field in kind.model_fields if field not in Settings.model_fields]
        made = [_option(field, kind.model_fields[field]) for field in dict.fromkeys((*first, *kind.model_fields))]

        def run(**values: Any) -> None:
            said = {p.name: value for p in made if (value := values.pop(p.name)) not in (None, [])}
            command(**values, **{name: read_flags(said)})

        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        run.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return run

    return grown


def _option(name: str, info: FieldInfo) -> inspect.Parameter:
    """The option of one setting. Its default is None, "not said", so that the preset can speak."""
    extra = info.json_schema_extra
    shown: Any = {
        "help": info.description,
        "rich_help_panel": extra.get("panel") if isinstance(extra, dict) else None,
        "show_default": _default_text(info) or False,
    }
    # Text, which the settings read, so that every refusal of a value looks alike.
    annotation: Any = str | None
    flag = "--" + name.replace("_", "-")
    if info.annotation is bool:
        annotation, flag = bool | None, f"{flag}/--no-{flag[2:]}"
    elif name in BY_LETTER:
        annotation = list[str] | None
        shown["metavar"] = BY_LETTER[name]
    elif _is(info, dict):
        annotation, flag = list[str] | None, "--param"
        shown["metavar"] = "NAME=VALUE"
    else:
        shown["metavar"] = _metavar(info)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, typer.Option(flag, **shown)],
    )


def read_flags(flags: Mapping[str, Any]) -> Said:
    """Flags as the settings take them: lists in one text, parameters by name.

    >>> read_flags({"milestones": "100,150", "params": ["mmard.guide=0.5"]})
    {'milestones': ['100', '150'], 'params': {'mmard.guide': 0.5}}
    """
    said = dict(flags)
    if "milestones" in said:
        said["milestones"] = [part.strip() for part in said["milestones"].split(",") if part.strip()]
    for name in BY_LETTER.keys() & said.keys():
        said[name] = teachers_of(said[name])
    if "params" in said:
        said["params"] = dict(_parameter(text) for text in said["params"])
    return said


def with_file(kind: type[Settings], config: Path | None, flags: Said) -> Said:
    """Settings of a file, if one is given, with what was said on the command line over them.

    Raises:
        Refused: for a file that cannot be read, of the other command, or with a key that is no setting.
    """
    if config is None:
        return flags
    found = read_config(config)
    for other, command in COMMANDS.items():
        only = [key for key in found if key in other.model_fields and key not in kind.model_fields]
        if only:
            mend = f"run it with: mmard {command} --config {config}"
            raise Refused(
                str(config),
                expected=f"settings of mmard {COMMANDS[kind]}",
                got=f"{only[0]!r}, one of mmard {command}",
                mend=mend,
            )
    for key in [key for key in found if key not in kind.model_fields][:1]:
        try:
            kind.resolve({key: found[key]})
        except Refused as error:
            raise Refused(f"{config}, {error.where}", expected=error.expected, got=error.got, mend=error.mend) from None
    params = {**_still_named(found, flags), **flags.get("params", {})}
    return {**found, **flags, **({"params": params} if params else {})}


def _still_named(found: Said, flags: Said) -> Said:
    """Parameters of a file, less those of its methods and plug-ins that the command line replaces by others."""

    def named(said: Said) -> set[str]:
        specs = (said.get(key) or "" for key in ("method", "inner", "outer"))
        return {part.strip() for spec in specs for part in spec.split("+")}

    replaced = named(found) - named({**found, **flags})
    return {full: value for full, value in found.get("params", {}).items() if full.split(".")[0] not in replaced}


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise Refused("--param", expected="NAME=VALUE, e.g. mmard.guide=0.5", got=repr(text))
    return name.strip(), _value(value.strip())


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kinds(info: FieldInfo) -> list[Any]:
    """The kinds that a setting may have, without None and without validators."""
    kinds = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds if kind is not type(None)]


def _is(info: FieldInfo, kind: type) -> bool:
    return any(get_origin(each) is kind for each in _kinds(info))


def _metavar(info: FieldInfo) -> str:
    kind = _kinds(info)[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "X,X"
    return _NUMBERS.get(kind, "TEXT")


def _default_text(info: FieldInfo) -> str:
    default = info.default
    if info.is_required() or default is None or default is False or default in ({}, ""):
        return ""
    if isinstance(default, tuple):
        return ",".join(f"{each:g}" for each in default)
    if isinstance(default, float):
        return "8/255" if default == 8 / 255 else f"{default:g}"
    return str(default)
