"""What options of the commands have in common."""

from __future__ import annotations

import inspect
import re
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from mmard.errors import Refused, unknown
from mmard.settings import DISTILLED, TAUGHT, Settings, command_of, handed_over, read_config

if TYPE_CHECKING:
    import torch

    from mmard.data import ImageSet
    from mmard.evaluation.transfer import Source
    from mmard.networks import Network
    from mmard.run import Run
    from mmard.training.checkpoint import Position


def option(text: str, metavar: str | None = None, *flags: str, panel: str | None = None, shown: str = "") -> Any:
    """An option: its help, what stands for its value, its flags, the heading over it, its default in words."""
    return typer.Option(*flags, help=text, metavar=metavar, rich_help_panel=panel, show_default=shown or False)


AsJson = Annotated[bool, option("Print records as JSON.", None, "--json")]


# flags ----------------------------------------------------------------------------------------------------------------
# The options of `train` and `distill`: one for every setting, made from its name, its panel and its sentence.


Said = dict[str, Any]
"""What a user said: values by the name of the setting. What was not said is not in it."""

BY_LETTER = {"teachers": "RUN|T=RUN", "teacher_weights": "FILE|T=FILE"}
"""Settings that may be said once for each teacher, by its letter."""
FLAGS = {"train": {"network": "--model"}, "distill": {"network": "--student", "teachers": "--teacher"}}
"""What a command calls a setting, where it is not the setting's own name."""
_NUMBERS = {int: "N", float: "X", bool: ""}


def with_settings(command: str, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every setting that it has; those that were said arrive together as `name`."""

    def grown(work: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(work, eval_str=True).parameters.values() if p.name != name]
        fields = {
            n: f for n, f in Settings.model_fields.items() if command == "distill" or n not in TAUGHT | {"teachers"}
        }
        made = [_option(field, info, command) for field, info in fields.items()]

        def run(**values: Any) -> None:
            said = {p.name: value for p in made if (value := values.pop(p.name)) not in (None, [])}
            work(**values, **{name: read_flags(said)})

        run.__doc__ = work.__doc__
        run.__name__ = work.__name__
        run.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return run

    return grown


def _option(name: str, info: FieldInfo, command: str) -> inspect.Parameter:
    """The option of one setting. Its default is None, "not said", so that the preset can speak."""
    extra = info.json_schema_extra
    shown: Any = {
        "help": info.description,
        "rich_help_panel": extra.get("panel") if isinstance(extra, dict) else None,
        "show_default": DISTILLED if (name, command) == ("method", "distill") else _default_text(info) or False,
    }
    # Text, which the settings read, so that every refusal of a value looks alike.
    annotation: Any = str | None
    flag = FLAGS[command].get(name) or "--" + name.replace("_", "-")
    if info.annotation is bool:
        annotation, flag = bool | None, f"{flag}/--no-{flag[2:]}"
    elif name in BY_LETTER:
        annotation = list[str] | None
        shown["metavar"] = BY_LETTER[name]
    elif name == "params":
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


def _kinds(info: FieldInfo) -> list[Any]:
    """The kinds that a setting may have, without None and without validators."""
    kinds = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds if kind is not type(None)]


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


# request --------------------------------------------------------------------------------------------------------------
# What was asked of a network on the command line, and the run, data and network that it means.


SPLITS = ("test", "val", "train")
WHICH = ("best", "last")


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None where it said nothing."""

    target: str
    attacks: str
    eps: str | None
    norm: str | None
    which: str
    weights: Path | None
    data: str | None
    data_dir: Path | None
    split: str
    first: int | None
    batch_size: int
    seed: int
    device: str
    made_on: str | None = None
    made_on_weights: Path | None = None
    out: Path | None = None
    also: str = ""
    teacher: str | None = None
    mean: str | None = None
    std: str | None = None
    processes: int = 1
    engine: str = "fast"


def check(request: Request) -> None:
    """Refuse words and counts that no network, run or data could make right."""
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS)
    if request.which not in WHICH:
        raise unknown("which", request.which, WHICH)
    counts = (("--first", request.first), ("--batch-size", request.batch_size), ("--processes", request.processes))
    for name, value in counts:
        if value is not None and value < 1:
            raise Refused(name, expected="at least 1", got=str(value))


def refuse_apart(request: Request) -> None:
    """Refuse what the processes of a launch cannot do together."""
    if request.processes > 1:
        mend = "torchrun has started several: leave --processes out"
        raise Refused("--processes", expected="1", got=str(request.processes), mend=mend)
    if request.made_on is not None:
        raise Refused("--from", expected="one process", got="several", mend="leave torchrun out")


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


def network_of(request: Request, images: ImageSet) -> Network:
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


def source_of(request: Request, images: ImageSet, device: torch.device) -> Source | None:
    """The network on which the attacks are made, where that is another one."""
    from mmard.evaluation.transfer import Source
    from mmard.networks import load_network

    weights = str(request.made_on_weights) if request.made_on_weights is not None else None
    if request.made_on is None:
        if weights is not None:
            raise Refused("--from-weights", expected="--from NAME before it", got="none")
        return None
    found = load_network(
        request.made_on,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=request.which if Path(request.made_on).is_dir() else "best",
        weights=weights,
        who="source",
    )
    return Source(found.module.to(device), found.source)


def record_folder(out: Path, run: Run | None, network: Network, settings: Settings) -> Run:
    """A folder for the records of a network that has no run, to be compared with runs.

    Raises:
        Refused: if the network has a run, or the folder holds a run or the records of another network.
    """
    from mmard.run import Run

    if run is not None:
        raise Refused("--out", expected="a network without a run", got=str(run.path), mend="its records go there")
    config = {"network": network.source, "data": settings.data, "eps": settings.eps, "norm": settings.norm, "seed": 0}
    if not (out / "config.json").is_file():
        return Run.create(out, config)
    held = Run.open(out)
    if "method" in held.config or held.config.get("network") != network.source:
        got = f"those of {held.config.get('network', 'a run')}"
        raise Refused(str(out), expected=f"records of {network.source}", got=got, mend="choose another --out")
    return held


def numbers(text: str | None) -> list[float] | None:
    """Numbers with commas between them, fractions too.

    >>> numbers("0.5,125/250"), numbers(None)
    ([0.5, 0.5], None)
    """
    from mmard.balls import radius

    return None if text is None else [radius(each.strip()) for each in text.split(",")]


# next steps -----------------------------------------------------------------------------------------------------------
# Which command made a run, where it stands, and what to type next about it.


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
    if command_of(config) == "train":
        use = f"--data {config['data']} --eps {_radius(config['eps'])}"
        if config.get("data_dir"):
            use += f" --data-dir {shlex.quote(config['data_dir'])}"
        lines.append(f"mmard distill --teacher {path} --student {_smaller(config['network'])} {use}")
    return lines


def _smaller(model: str) -> str:
    return "cnn-4" if model.startswith("cnn") else "resnet18"


def _radius(eps: float) -> str:
    from mmard.balls import as_fraction

    return as_fraction(eps)
