"""Options of commands, made from models; and the run, the data and the network that they mean.

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
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mmard.cli.app import Page, app
from mmard.errors import Refused, unknown
from mmard.settings import DISTILLED, TAUGHT, Settings, command_of, handed_over, read_config, refusal_of
from mmard.words import as_fraction, radius

if TYPE_CHECKING:
    from mmard.data import ImageSet
    from mmard.networks import Network
    from mmard.run import Run
    from mmard.training.checkpoint import Position


MOST_PROCESSES = max(16, 2 * (os.cpu_count() or 1))
"""More processes would only wait for each other, and each holds a copy of the network."""


class Options(BaseModel):
    """What a command line says. A model for each command, with a field for each option and argument."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """A field that is an option.

    Args:
        default: what holds where nothing is said; `...` for an option that must be.
        text: its sentence in help.
        metavar: what stands for its value; by the field's kind if not given.
        flag: by the field's name if not given.
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
    return [(name, fields[name]) for name in dict.fromkeys((*own, *fields)) if not _extra(fields[name]).get("hidden")]


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


def _option(
    name: str,
    info: FieldInfo,
    flag: str = "",
    shown: str = "",
    metavar: str = "",
    *,
    many: bool = False,
    negatable: bool = False,
) -> inspect.Parameter:
    """The option of one field. Its default is None, "not said", so that a preset or the model can speak."""
    extra = _extra(info)
    flags = [flag or _flag(name, info)]
    # Text, which the model reads, so that every refusal of a value looks alike.
    kind: Any = list[str] if many or extra.get("many") or get_origin(info.annotation) is list else str
    if info.annotation is bool:
        kind = bool
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"] if negatable else flags[0].split(",")
    described: dict[str, Any] = {
        "help": info.description,
        "rich_help_panel": extra.get("panel") or None,
        "show_default": shown or extra.get("shown") or _default_text(info) or False,
        "metavar": None if info.annotation is bool else metavar or extra.get("metavar") or _metavar(info),
    }
    if extra.get("argument"):
        described.pop("rich_help_panel")
        made: Any = typer.Argument(**described)
    else:
        made = typer.Option(*flags, **described)
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
    if isinstance(default, float):
        return "8/255" if default == 8 / 255 else f"{default:g}"
    return str(default)


# the options of train and distill: one for every setting -------------------------------------------------------------
Said = dict[str, Any]
"""What a user said: values by the name of the setting. What was not said is not in it."""

BY_LETTER = {"teachers": "RUN|T=RUN", "teacher_weights": "FILE|T=FILE"}
"""Settings that may be said once for each teacher, by its letter."""
FLAGS = {"train": {"network": "--model"}, "distill": {"network": "--student", "teachers": "--teacher"}}
"""What a command calls a setting, where it is not the setting's own name."""


def settings_options(command: str) -> dict[str, inspect.Parameter]:
    """An option for every setting that a command has."""
    flags = {**FLAGS[command], "params": "--param"}
    shown = {"method": DISTILLED} if command == "distill" else {}
    metavars = {**BY_LETTER, "params": "NAME=VALUE"}
    return {
        name: _option(
            name,
            info,
            flags.get(name, ""),
            shown.get(name, ""),
            metavars.get(name, ""),
            many=name in metavars,
            negatable=True,
        )
        for name, info in Settings.model_fields.items()
        if command == "distill" or name not in TAUGHT | {"teachers"}
    }


def read_flags(flags: Mapping[str, Any]) -> Said:
    """Flags as the settings take them: lists in one text, parameters by name.

    >>> read_flags({"milestones": "100,150", "params": ["mmard.guide=0.5"]})
    {'milestones': ['100', '150'], 'params': {'mmard.guide': '0.5'}}
    """
    said = dict(flags)
    if "milestones" in said:
        said["milestones"] = [part.strip() for part in said["milestones"].split(",") if part.strip()]
    for name in BY_LETTER.keys() & said.keys():
        said[name] = by_letter(said[name])
    if "teacher_weights" in said:
        said["teacher_weights"] = {letter: files[-1] for letter, files in said["teacher_weights"].items()}
    if "params" in said:
        said["params"] = dict(_parameter(text) for text in said["params"])
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
    return {full: value for full, value in found.get("params", {}).items() if full.split(".")[0] not in replaced}


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise Refused("--param", expected="NAME=VALUE, e.g. mmard.guide=0.5", got=repr(text))
    return name.strip(), value.strip()


# the run, the data and the network that are meant ---------------------------------------------------------------------
class Request(Options):
    """The images that networks are looked at on, and the ball; None where nothing was said."""

    eps: str | None = option(None, "Radius of the ball, in input units: 8/255; the run's if not given.", "X")
    norm: Literal["linf", "l2", "l1"] | None = option(None, "Norm of the ball; the run's if not given.")
    which: Literal["best", "last"] = option("best", "Which weights of a run.")
    data: str | None = option(None, "Data set; the run's if not given.", "NAME")
    data_dir: Path | None = option(None, "Folder that holds the data.", "FOLDER")
    split: Literal["test", "val", "train"] = option("test", "Which images.")
    first: int | None = option(None, "Only the first N of them.", ge=1)

    if TYPE_CHECKING:

        @property
        def target(self) -> str:
            """The network whose data and ball hold where nothing is said."""


class OneNetwork(Request):
    """A request that is about one network."""

    target: str = argument(
        "RUN|FILE|NAME", "A run, a file of weights that mmard wrote, or a network's name with --weights."
    )
    weights: Path | None = option(None, "Weights for a network given by name (.safetensors, .pt).", "FILE")
    mean: str | None = option(None, "What --weights want their input normalised with.", "X,X,X")
    std: str | None = option(None, "The same: deviation of each channel.", "X,X,X")


def run_of(target: str) -> Run | None:
    """The run that is meant, where a folder is."""
    from mmard.run import Run

    return Run.open(target) if Path(target).is_dir() else None


def settings_of(request: Request, run: Run | None) -> Settings:
    """The data and the budget: what was said, over the run's own.

    Raises:
        Refused: where neither says it, or nothing is where the target points.
    """
    from mmard.networks import refuse_nowhere

    said: dict[str, Any] = {
        "data": request.data,
        "data_dir": str(request.data_dir) if request.data_dir is not None else None,
        "eps": request.eps,
        "norm": request.norm,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if run is None:
        refuse_nowhere(request.target)
        for name, flag in (("data", "--data digits"), ("eps", "--eps 8/255")):
            if name not in said:
                raise Refused(
                    f"evaluate {request.target}",
                    expected=f"--{name}, since no run says it",
                    got="none",
                    mend=f"for example {flag}",
                )
        return Settings.resolve(said)
    config = run.config
    if "data" not in said and "data" in handed_over(config):
        raise Refused(
            f"evaluate {request.target}", expected="--data", got="a run on data that was handed over in Python"
        )
    if "data" in said and said["data"] != config.get("data"):
        # A folder, a size or a limit that was meant for other data means nothing for these.
        config = {
            name: value
            for name, value in config.items()
            if name not in ("data_dir", "image_size", "on_disk", "limit_train")
        }
    return Settings.resolve({**config, **said})


def images_of(request: Request, settings: Settings) -> ImageSet:
    """The images that are meant.

    Raises:
        Refused: for data that cannot be named here, or are not there.
    """
    from mmard.data import DATA
    from mmard.job import load_images

    if settings.data not in DATA:
        raise unknown("data", settings.data, DATA)
    if request.split != "train":
        # How many images trained says nothing about these, and another folder may hold fewer.
        settings = settings.model_copy(update={"limit_train": None})
    images = load_images(settings, request.split)
    if request.first is None or request.first >= len(images):
        return images
    return images.take(slice(0, request.first), f"the first {request.first:,} of {images.origin}")


def network_of(request: OneNetwork, images: ImageSet) -> Network:
    """The network that is meant, with its weights, for these images.

    Raises:
        Refused: for a network or weights that cannot be read, or do not fit.
    """
    from mmard.networks import load_network

    weights = str(request.weights) if request.weights is not None else None
    if weights is not None and Path(request.target).exists():
        raise Refused(
            "--weights",
            expected="a network's name before it",
            got=request.target,
            mend="a run or a file brings its own weights",
        )
    return load_network(
        request.target,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=request.which,
        weights=weights,
        mean=numbers(request.mean),
        std=numbers(request.std),
    )


def numbers(text: str | None) -> list[float] | None:
    """Numbers with commas between them, fractions too.

    >>> numbers("0.5,125/250"), numbers(None)
    ([0.5, 0.5], None)
    """
    return None if text is None else [radius(each.strip()) for each in text.split(",")]


def position_of(run: Run) -> Position | None:
    """Where a run stands; None before its first save."""
    from mmard.training.checkpoint import Position

    if not run.has_state:
        return None
    _, facts = run.load_state()
    if "position" not in facts:
        raise Refused(str(run.path), expected="the state of a training", got="a file without counters")
    return Position(**facts["position"])


def next_commands(run: Run, finished: bool) -> list[str]:
    """What to type next about a run; what was made of Python objects can only be looked at from here."""
    path, config = shlex.quote(str(run.path)), run.config
    if handed_over(config) & {"network", "data", "method"}:
        return [f"mmard show {path}"]
    if not finished:
        return [f"mmard {command_of(config)} --resume {path}", f"mmard show {path}"]
    lines = [f"mmard evaluate {path} --attack pgd-20,cw-30", f"mmard show {path}"]
    if command_of(config) == "train" and _teaches(run):
        use = f"--data {config['data']} --eps {as_fraction(config['eps'])}"
        if config.get("data_dir"):
            use += f" --data-dir {shlex.quote(config['data_dir'])}"
        lines.append(f"mmard distill --teacher {path} --student {_smaller(config['network'])} {use}")
    return lines


def _teaches(run: Run) -> bool:
    """Whether the gate in front of a distillation would let a trained network pass."""
    import torch

    from mmard.gate import GATE_IMAGES, guessing

    _, facts = run.load_weights("best")
    classes = len(facts["classes"])
    _, least = guessing(torch.full((classes,), GATE_IMAGES / classes))
    return float(facts["clean"]) > least


def _smaller(model: str) -> str:
    return "cnn-4" if model.startswith("cnn") else "resnet18"
