"""Options of commands, made from models.

    class Look(Options):
        run: Path = argument("RUN", "A run.")
        first: int = option(5, "So many.", ge=1)

    @command("Look", "mmard look runs/s --first 10")
    def look(options: Look) -> None: ...

A field's name is its flag, unless it says another one. Values come as text, and the model reads and refuses them.
"""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mmard.cli.app import Page, app
from mmard.errors import Refused
from mmard.settings import DISTILLED, TAUGHT, Settings, command_of, read_config, refusal_of
from mmard.words import as_fraction, number

MOST_PROCESSES = max(16, 2 * (os.cpu_count() or 1))
"""More processes would only wait for each other, and each holds a copy of the network."""


class Options(BaseModel):
    """What a command line says. A model for each command, with a field for each option and argument."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Json(Options):
    """A command whose findings a program can read as well."""

    as_json: bool = Field(False, description="Print records as JSON.", json_schema_extra={"flag": "--json"})


def option(
    default: Any,
    text: str,
    metavar: str = "",
    flag: str = "",
    *,
    panel: str = "",
    shown: str = "",
    many: bool = False,
    **bounds: Any,
) -> Any:
    """A field that is an option; `...` for one that must be said.

    Args:
        default, text: what holds where nothing is said, and the sentence in help.
        metavar, flag: by the field's kind and name if not given.
        panel: the heading over it.
        shown: the default in words, where it is not the value.
        many: whether it may be said several times.
        bounds: of the value, as pydantic calls them: ge, le, gt, lt.
    """
    extra: dict[str, Any] = {"metavar": metavar, "flag": flag, "panel": panel, "shown": shown, "many": many}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def argument(metavar: str, text: str, default: Any = ...) -> Any:
    """A field that is said by its place on the command line; the last one may be a list."""
    return Field(default, description=text, json_schema_extra={"metavar": metavar, "argument": True})


def hidden(default: Any) -> Any:
    """A field that a command has, and no option sets."""
    return Field(default, json_schema_extra={"hidden": True})


Work = TypeVar("Work", bound=Callable[..., None])


def command(panel: str, examples: str, name: str | None = None, *, of: typer.Typer = app) -> Callable[[Work], Work]:
    """Make a function of a model of options a command; its docstring is its help.

    A parameter `said` gets the settings of a training that were said, each of which is an option too.
    """

    def registered(work: Work) -> Work:
        made: dict[str, inspect.Parameter] = {}
        models: dict[str, type[Options]] = {}
        for each in inspect.signature(work, eval_str=True).parameters.values():
            if each.name == "said":
                made |= settings_options(work.__name__)
            else:
                models[each.name] = each.annotation
                made |= {n: _option(n, info) for n, info in _in_order(each.annotation)}

        def run(**values: Any) -> None:
            known = {key: value for key, value in values.items() if value not in (None, [])}
            given: dict[str, Any] = {key: _read(model, known) for key, model in models.items()}
            if "said" in inspect.signature(work).parameters:
                given["said"] = read_flags({key: value for key, value in known.items() if key in Settings.model_fields})
            work(**given)

        parameters = sorted(made.values(), key=lambda p: not isinstance(_meta(p), typer.models.ArgumentInfo))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__, run.__name__ = work.__doc__, work.__name__
        of.command(name, cls=Page, rich_help_panel=panel, epilog=examples)(run)
        return work

    return registered


def _meta(parameter: inspect.Parameter) -> Any:
    return get_args(parameter.annotation)[1]


def _in_order(model: type[Options]) -> list[tuple[str, FieldInfo]]:
    """Fields, those that a command adds to what several share first."""
    own = [name for name in model.__annotations__ if name in model.model_fields]
    fields = model.model_fields
    names = sorted(dict.fromkeys((*own, *fields)), key=lambda name: name == "as_json")
    return [(name, fields[name]) for name in names if not _extra(fields[name]).get("hidden")]


def _read(model: type[Options], known: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate({key: value for key, value in known.items() if key in model.model_fields})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise refusal_of(error, _flag(name, model.model_fields[name]), name) from None


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _flag(name: str, info: FieldInfo) -> str:
    return _extra(info).get("flag") or "--" + name.replace("_", "-")


def _option(name: str, info: FieldInfo, **other: Any) -> inspect.Parameter:
    """The option of one field, with what a command says otherwise of it.

    Its default is None, "not said", so that a preset or the model can speak.
    """
    extra = {**_extra(info), **other}
    flags = [extra.get("flag") or _flag(name, info)]
    # Text, which the model reads, so that every refusal of a value looks alike.
    kind: Any = list[str] if extra.get("many") or get_origin(info.annotation) is list else str
    if info.annotation is bool:
        kind = bool
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"] if extra.get("negatable") else flags[0].split(",")
    described: dict[str, Any] = {
        "help": info.description,
        "show_default": extra.get("shown") or _default_text(info) or False,
        "metavar": None if info.annotation is bool else extra.get("metavar") or _metavar(info),
    }
    if extra.get("argument"):
        made: Any = typer.Argument(**described)
    else:
        made = typer.Option(*flags, rich_help_panel=extra.get("panel") or None, **described)
    default = inspect.Parameter.empty if info.is_required() else None
    annotation: Any = Annotated[kind if info.is_required() else kind | None, made]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kinds(info: FieldInfo) -> list[Any]:
    """The kinds that a setting may have, without None and without validators."""
    kinds = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds if kind is not type(None)]


_NUMBERS = {int: "N", float: "X", bool: ""}


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
    return as_fraction(default) if isinstance(default, float) else str(default)


Said = dict[str, Any]
"""What a user said: values by the name of the setting. What was not said is not in it."""


def settings_options(command: str) -> dict[str, inspect.Parameter]:
    """An option for every setting that a command has; bool ones can be negated, since a preset may say them."""
    other: dict[str, Any] = {"network": {"flag": "--student"}, "method": {"shown": DISTILLED}}
    return {
        name: _option(name, info, negatable=True, **(other.get(name, {}) if command == "distill" else {}))
        for name, info in Settings.model_fields.items()
        if command == "distill" or name not in TAUGHT
    }


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return _flag(name, Settings.model_fields[name])


def read_flags(flags: Said) -> Said:
    """Flags as the settings take them: what may be said several times, by letter of the teacher or by parameter.

    >>> read_flags({"lr": "0.1", "teacher_weights": ["a.pt", "T_nat=b.pt"], "params": ["mmard.guide=0.5"]})
    {'lr': '0.1', 'teacher_weights': {'T': 'a.pt', 'T_nat': 'b.pt'}, 'params': {'mmard.guide': '0.5'}}
    """
    said = dict(flags)
    pairs = ("params", "optimizer_params")
    for name in [name for name, value in flags.items() if name not in pairs and isinstance(value, list)]:
        said[name] = by_letter(said[name])
        if name != "teachers":
            said[name] = {letter: values[-1] for letter, values in said[name].items()}
    if "params" in said:
        said["params"] = dict(_parameter(text) for text in said["params"])
    if "optimizer_params" in said:
        own = dict(_parameter(text, "--optimizer-param", "eps=1e-6") for text in said["optimizer_params"])
        said["optimizer_params"] = {name: number(value) for name, value in own.items()}
    return said


def by_letter(texts: Sequence[str]) -> dict[str, list[str]]:
    """What was said for each teacher: RUN for T, LETTER=RUN for another, the same letter twice for an ensemble.

    >>> by_letter(["runs/t"]), by_letter(["T=runs/a", "T=runs/b", "T_nat=runs/n"])
    ({'T': ['runs/t']}, {'T': ['runs/a', 'runs/b'], 'T_nat': ['runs/n']})
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        named = re.fullmatch(r"(T(?:_[a-z]+)?)=(.+)", text)
        letter, spec = (named[1], named[2]) if named else ("T", text)
        found.setdefault(letter, []).append(spec)
    return found


def with_file(command: str, config: Path | None, flags: Said) -> Said:
    """Settings of a file, if one is given, with what was said on the command line over them.

    Raises:
        Refused: for a file that cannot be read, of the other command, or with a key that is no setting.
    """
    if config is None:
        return flags
    found = read_config(config)
    if (command == "train" and found.get("teachers")) or (command == "distill" and found.get("teachers") == {}):
        theirs = command_of(found)
        mend = f"run it with: mmard {theirs} --config {config}"
        raise Refused(str(config), expected=f"settings of mmard {command}", got=f"those of mmard {theirs}", mend=mend)
    for key in [key for key in found if key not in Settings.model_fields][:1]:
        try:
            Settings.resolve({key: found[key]})
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
    return {full: value for full, value in found.get("params", {}).items() if full.rpartition(".")[0] not in replaced}


def _parameter(text: str, flag: str = "--param", example: str = "mmard.guide=0.5") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise Refused(flag, expected=f"NAME=VALUE, e.g. {example}", got=repr(text))
    return name.strip(), value.strip()
