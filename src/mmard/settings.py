"""Every setting, under the one name that it has on the command line, in Python and in a run's config file.

A run is made of three layers, the later over the earlier: defaults, the preset's values for the method (and the data),
and what the user said. What results is written to the run folder, and from that file alone the run can be repeated.

    current_names     any file or record of settings, old or new, under today's names: the one place that knows old ones
    as_published      the same backwards, for the names of a study's cells, which are hashes of settings
    read_config       a user's file or a run's, unchecked
    Settings          all settings; `resolve` checks them and fills in the preset's values
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mmard.errors import Refused, unknown
from mmard.trust import code_in
from mmard.words import radius


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


ELSEWHERE = {"model": "network", "student": "network", "teacher": "teachers"}
"""Names that command lines have for two settings, as did files before these settings were one."""
GIVEN = "given:"
"""How the label of an object begins that was handed over in Python and that no name can bring back."""


def current_names(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by today's names, of a run's file or a record of any age, or of a file or a call of a user's own.

    What is not in it stays out, what is no setting stays in, and nothing is checked but that no name is said twice.

    >>> current_names({"student": "cnn-4", "teacher": "runs/t", "teacher_weights": None})
    {'network': 'cnn-4', 'teachers': {'T': ['runs/t']}, 'teacher_weights': {}}
    >>> current_names({"teacher": {"T": ["a", "b"], "T_nat": "n"}, "params": {"mmard": {"guide": 0.5}}})
    {'teachers': {'T': ['a', 'b'], 'T_nat': ['n']}, 'params': {'mmard.guide': 0.5}}

    Raises:
        Refused: for two names of one setting.
    """
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = ELSEWHERE.get(key, key)
        if name in found:
            raise Refused(f"setting {key!r}", expected="one name for it", got=f"{name!r} as well")
        found[name] = _SHAPES[name](value) if name in _SHAPES else value
    return found


def of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run's file by today's names, with what was not a setting yet when it was made."""
    return {**({"engine": "plain"} if "method" in config else {}), **current_names(config)}


def _by_letter(said: object) -> object:
    """Teachers in lists by letter, from a path, a list of them, or either by letter."""
    named = {} if said is None else said if isinstance(said, Mapping) else {"T": said}
    return {letter: list(own) if isinstance(own, list | tuple) else [own] for letter, own in named.items()}


def _one_by_letter(said: object) -> object:
    return {} if said is None else {"T": said} if not isinstance(said, Mapping) else said


_SHAPES: dict[str, Callable[[Any], Any]] = {
    "teachers": _by_letter,
    "teacher_weights": _one_by_letter,
    "teacher_mean": _one_by_letter,
    "teacher_std": _one_by_letter,
    "params": flattened,
}


def as_published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings in the names and shapes by which published cells of studies are called.

    >>> as_published({"network": "cnn-4", "teachers": {"T": ["t"]}, "lr": 0.1})
    {'teacher': 't', 'student': 'cnn-4', 'lr': 0.1}
    """
    found = dict(settings)
    if "network" in found:
        found = {"student" if "teachers" in found else "model": found.pop("network")} | found
    for name, ours in (("teacher", "teachers"), ("teacher_weights", "teacher_weights")):
        if ours in found:
            each = {
                letter: own if isinstance(own, str) or len(own) > 1 else own[0] for letter, own in found[ours].items()
            }
            del found[ours]
            found = {name: each["T"] if list(each) == ["T"] else each} | found
    return found


def handed_over(config: Mapping[str, Any]) -> frozenset[str]:
    """What of a run was handed over in Python: "network", "data", "method", and letters of teachers."""
    named = [(name, config.get(name)) for name in ("network", "data", "method")]
    named += [(letter, own) for letter, names in (config.get("teachers") or {}).items() for own in names]
    return frozenset(name for name, label in named if is_given(label))


def code_of(config: Mapping[str, Any]) -> list[str]:
    """Code of somebody's own that settings name: networks, methods and optimisers as `package.module:name`."""
    named = [config.get(name) or "" for name in ("network", "peer", "method", "inner", "outer", "optimizer")]
    return code_in([*named, *(each for names in (config.get("teachers") or {}).values() for each in names)])


def command_of(config: Mapping[str, Any]) -> str:
    """The command that makes such a training: with teachers it is a distillation."""
    return "distill" if config.get("teachers") else "train"


def given_label(thing: object) -> str:
    """The label of an object that stands for a setting.

    >>> given_label([]), is_given(given_label([])), is_given("cnn-4")
    ('given:list', True, False)
    """
    return f"{GIVEN}{type(thing).__name__}"


def is_given(label: object) -> bool:
    """Whether this is the label of an object, and no name."""
    return str(label).startswith(GIVEN)


def teachers_text(teachers: Mapping[str, Sequence[str]]) -> str:
    """Teachers as a command line says them.

    >>> teachers_text({"T": ["runs/t"]}), teachers_text({"T": ["a", "b"], "T_nat": ["n"]})
    ('runs/t', 'T=a T=b T_nat=n')
    """
    if list(teachers) == ["T"] and len(teachers["T"]) == 1:
        return teachers["T"][0]
    return " ".join(f"{letter}={own}" for letter, names in teachers.items() for own in names)


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
    except (ValueError, RecursionError) as error:
        raise Refused(str(path), expected=f"{path.suffix[1:].upper()}", got=str(error)) from None
    if not isinstance(found, dict):
        raise Refused(str(path), expected="settings by name", got=type(found).__name__)
    return current_names(found)


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


Value = float | int | bool | str
RATES: dict[str, dict[str, float]] = {
    "adam": {"lr": 1e-3, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "weight_decay": 0.01},
}
"""What PyTorch trains with by these optimisers where nothing is said, in place of a preset's numbers for SGD."""
MOST_THREADS = 512
"""No CPU is faster with more."""
EVALUATION_BATCH = 250
"""Images that an evaluation attacks at once where nothing else is said; random starts depend on it."""


def _radius(text: object) -> object:
    return radius(text) if isinstance(text, str) else text


def _listed(text: object) -> object:
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


Radius = Annotated[float, BeforeValidator(_radius)]
"""A number, or a fraction such as "8/255"."""

Numbers = Annotated[tuple[Radius, ...], BeforeValidator(_listed)]
"""Such numbers, in text with commas between them."""
ByLetter = dict[str, tuple[str, ...]]
"""Teachers by the letter that formulas use: run folders, files or names; several of one letter are an ensemble."""
DISTILLED = "rslad+mmard"
"""The method of a training with teachers, if none is said."""


def setting(
    default: Any, panel: str, text: str, *, ge: float | None = None, le: float | None = None, **shown: Any
) -> Any:
    """A field with its sentence in help, its bounds, and what a command line shows of it.

    Args:
        panel: the heading under which help shows it.
        shown: "flag", "metavar", "many" (may be said several times), "taught" (of trainings with teachers alone).
    """
    return Field(default=default, description=text, json_schema_extra={"panel": panel, **shown}, ge=ge, le=le)


def taught(default: Any, text: str, **shown: Any) -> Any:
    """A field that only a training with teachers has a use for."""
    return setting(default, "Method", text, taught=True, **shown)


_BOUNDS = {"greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}"}


def refusal_of(error: ValidationError, where: str, name: str = "") -> Refused:
    """The first fault that a model found in a value, in our words; with a name, one of its words is offered."""
    first = error.errors()[0]
    context, value = first.get("ctx", {}), first["input"]
    if isinstance(inner := context.get("error"), Refused):
        return Refused(where, expected=inner.expected, got=inner.got, mend=inner.mend)
    if name and first["type"] == "literal_error":
        return unknown(name, str(value), re.findall(r"'([^']+)'", context["expected"]))
    if first["type"] in _BOUNDS:
        return Refused(where, expected=_BOUNDS[first["type"]].format(**context), got=str(value))
    expected = re.split(", (?:unable|got) ", first["msg"].removeprefix("Input should be "))[0]
    got = "nothing" if first["type"] == "missing" else repr(value)
    return Refused(where, expected=expected[:1].lower() + expected[1:], got=got)


class Settings(BaseModel):
    """All settings of a training. One with teachers is a distillation, and `network` is its student."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=(), allow_inf_nan=False)

    network: str = setting(
        "resnet18",
        "Method",
        "Network to train, e.g. resnet18, wide_resnet-16-4, mobilenet_v2, cnn-8, or package.module:function.",
        flag="--model",
    )
    init: str | None = setting(
        None,
        "Method",
        "Begin from these weights of the same network, normalisation included: a run folder, whose best are taken, or "
        "a file (.safetensors, .pt).",
        metavar="RUN|FILE",
    )
    teachers: ByLetter = taught(
        {},
        "A run folder, a file of weights that mmard wrote, or a network's name with --teacher-weights. Several: "
        "T=RUN T_nat=RUN, one for each; the same letter again is an ensemble.",
        flag="--teacher",
        metavar="RUN|T=RUN",
        many=True,
    )
    teacher_weights: dict[str, str] = taught(
        {},
        "Weights for a teacher given by its network's name (.safetensors, .pt); T_nat=FILE for T_nat.",
        metavar="FILE|T=FILE",
        many=True,
    )
    teacher_mean: dict[str, Numbers] = taught(
        {},
        "What these weights want their input normalised with, where the file does not say it; T_nat=X,X,X for T_nat.",
        metavar="X,X,X|T=X,X,X",
        many=True,
    )
    teacher_std: dict[str, Numbers] = taught(
        {}, "The same: deviation of each channel.", metavar="X,X,X|T=X,X,X", many=True
    )
    teacher_mix: Literal["probs", "logits"] = taught(
        "probs", "What an ensemble of teachers averages: probabilities, or centred logits."
    )
    teacher_which: Literal["best", "last"] = taught("best", "Which weights of a teacher's run folder.")
    teacher_gate: bool = taught(
        True, "Refuse a teacher that guesses, or is far from what is claimed of it; without, it is noted."
    )
    teacher_table: str = taught("off", "Keep T(x) of every view: off, memory, cache (below ~/.cache), or a folder.")
    fill_table: bool = taught(False, "Fill the teacher table before the first step.")

    method: str = setting("pgd_at", "Method", "Method and plug-ins, e.g. rslad+mmard; `mmard methods` lists them.")
    inner: str | None = setting(None, "Method", "Take the attack (inner objective) of this method instead.")
    outer: str | None = setting(None, "Method", "Take the loss (outer terms) of this method instead.")
    params: dict[str, Value] = setting(
        {},
        "Method",
        "Parameters of methods and plug-ins by full name, e.g. mmard.guide=0.5.",
        flag="--param",
        metavar="NAME=VALUE",
        many=True,
    )
    peer: str | None = setting(
        None, "Method", "Network of the peer, for a method that trains one; the student's kind if not given."
    )
    preset: str = setting(
        "unified",
        "Method",
        "Values for what is not said: unified (one scale and schedule for all), official or replica.",
    )

    data: str = setting("digits", "Data", "Data set, e.g. digits, cifar10, folder; `mmard data` lists them.")
    data_dir: str | None = setting(None, "Data", "Folder that holds the data; digits need none.")
    val_share: float | None = setting(
        None, "Data", "Share of the training images held out for validation; a tenth, 5,000 at most, if not given."
    )
    split_seed: int = setting(0, "Data", "Which images are held out; teacher and student should agree on it.")
    limit_train: int | None = setting(None, "Data", "Use only this many training images.")
    balance: bool = setting(
        False, "Data", "Draw each class equally often in an epoch, images of small classes several times."
    )
    augment: str = setting("auto", "Data", "Augmentation: auto (by data set), none, crop-flip, idbh-strong ...")
    image_size: int | None = setting(
        None, "Data", "Bring images to squares of this many pixels (folder, parquet; cifar10 and cifar100: 16, 8 or 4)."
    )
    skip_bad: bool = setting(
        False, "Data", "Go on without images that cannot be read or are of another size; otherwise all are listed."
    )
    on_disk: bool = setting(False, "Data", "Keep decoded images in a memory-mapped file instead of memory.")
    normalise: Literal["none", "data"] = setting(
        "none", "Data", "Normalisation inside a network built here: none, or the data's mean and deviation."
    )

    eps: Radius = setting(8 / 255, "Attack", "Radius of the ball, in input units: 8/255 or 0.031.")
    norm: Literal["linf", "l2", "l1"] = setting("linf", "Attack", "Norm of the ball.")
    steps: int = setting(10, "Attack", "Steps of the training attack.", le=10_000)
    step_size: Radius | None = setting(None, "Attack", "Length of a step; a quarter of eps if not given.")
    start: str | None = setting(
        None, "Attack", "Start of the attack: gaussian, uniform or none; the method's own if not given."
    )

    attack: str | None = setting(
        None, "Attack", "Training attack: pgd, or noise-fgsm (one step, not projected); the method's own if not given."
    )

    epochs: int = setting(200, "Training", "Passes over the training images.", le=100_000)
    batch_size: int = setting(128, "Training", "Images per step.", le=1_000_000)
    lr: float = setting(0.1, "Training", "Largest learning rate.")
    optimizer: str = setting(
        "sgd",
        "Training",
        "sgd, adam, adamw, or package:Class, any torch optimiser; all but sgd have an lr of their own.",
    )
    optimizer_params: dict[str, Value] = setting(
        {},
        "Training",
        "Further arguments of that optimiser, e.g. eps=1e-6.",
        flag="--optimizer-param",
        metavar="NAME=VALUE",
        many=True,
    )
    momentum: float = setting(0.9, "Training", "Momentum of SGD.")
    nesterov: bool = setting(False, "Training", "Nesterov's form of momentum.")
    weight_decay: float = setting(5e-4, "Training", "Weight decay; coupled in sgd and adam, decoupled in adamw.")
    schedule: str = setting("step", "Training", "Learning rate: step, cosine, late-cosine, one-cycle or constant.")
    milestones: Numbers = setting(
        (0.5, 0.75), "Training", "Drops of the step schedule (late-cosine falls from the first): epochs, or shares."
    )
    drop: float = setting(0.1, "Training", "Factor at each milestone.")
    peak: float = setting(0.3, "Training", "Share of the run at which one-cycle reaches lr.")
    warmup: float = setting(0.0, "Training", "Epochs of linear growth at the start.")
    average: str = setting("none", "Training", "Averaging of weights: none, ema or swa.")
    ema_decay: float = setting(0.995, "Training", "Weight of the past in ema.")
    swa_from: float = setting(0.5, "Training", "Share of the run from which swa averages.")
    grad_clip: float = setting(0.0, "Training", "Largest norm of the gradient; 0 for none.")
    accumulate: int = setting(
        1,
        "Training",
        "Micro-batches that a batch is descended in; BatchNorm normalises each by itself.",
        ge=1,
        le=4096,
    )
    val_attack: str = setting(
        "pgd-10", "Training", "Attack on the validation images after every epoch; chooses the best weights."
    )

    best_by: Literal["auto", "robust", "clean"] = setting(
        "auto",
        "Training",
        "Which accuracy of it chooses; auto: clean for a method without an attack, robust for others.",
    )

    seed: int = setting(0, "Machine", "Seed of weights, order, augmentation and attacks.")
    device: str = setting("auto", "Machine", "cpu, cuda, cuda:1, or auto.")
    threads: int = setting(
        0, "Machine", "CPU threads; 0 takes one or all, whichever is faster at the start.", ge=0, le=MOST_THREADS
    )
    save_seconds: float = setting(60.0, "Machine", "Time between saves of the state.", ge=0)
    engine: Literal["fast", "plain"] = setting(
        "fast", "Machine", "What attacks call: fast, twins of the networks, equal up to rounding; or plain, themselves."
    )
    precision: Literal["fp32", "bf16", "auto"] = setting(
        "fp32", "Machine", "Of twins: fp32, bf16 (attack and teacher, not the update), or auto, which times both."
    )
    attack_chunk: int = setting(
        0,
        "Machine",
        "Attack so many images at a time; 0 for the batch, halved by itself when memory runs out.",
        ge=0,
    )
    sync_bn: bool = setting(
        False, "Machine", "With several processes on GPUs: BatchNorm normalises by the images of all of them."
    )
    cuda_graphs: bool = setting(True, "Machine", "Record the attack as one CUDA graph where there is a GPU.")
    compile: bool = setting(False, "Machine", "Compile the update's forwards by torch.compile; takes a minute or more.")
    autocast_update: bool = setting(
        False, "Machine", "The update's forwards in bfloat16 by autocast, which is not the methods' own arithmetic."
    )
    tensorboard: bool = setting(False, "Machine", "Write TensorBoard events into the run folder.")
    log: str = setting(
        "", "Machine", "Where else epochs go: csv (epochs.csv in the run folder), wandb, mlflow; with commas."
    )

    @property
    def given(self) -> frozenset[str]:
        """What was handed over in Python: "network", "data", "method", and letters of teachers."""
        return handed_over(dict(self))

    @property
    def command(self) -> str:
        """The command that such a training is made with."""
        return command_of({"teachers": self.teachers})

    def refuse_unless_of(self, command: str, where: str, mend: str = "") -> None:
        """Refuse a distillation in `train`, and a training without teachers in `distill`."""
        if self.command != command:
            got = f"one of mmard {self.command}"
            raise Refused(where, expected=f"a run of mmard {command}", got=got, mend=mend or f"use {self.command}")

    @property
    def host(self) -> str:
        """Name of the method under the plug-ins, whose preset applies: that of the outer half."""
        return (self.outer or self.method).split("+")[0].strip()

    @classmethod
    def resolve(cls, said: Mapping[str, Any]) -> Self:
        """The settings that result from what the user said, over the preset, over the defaults.

        A run of another length than the preset's has the preset's milestones at the same shares of it.

        Raises:
            Refused: for an unknown key, naming the nearest one, or a value of the wrong kind.
        """
        said = current_names(said)
        unknown_keys = [key for key in said if key not in cls.model_fields]
        if unknown_keys:
            raise _unknown_setting(unknown_keys[0])
        if said.get("teachers"):
            said = {"method": DISTILLED, **said}
        bare = cls._checked(said)
        values = preset_values(bare.preset, bare.host, bare.data)
        params = {**values.pop("params", {}), **bare.params}
        if "epochs" in said and {"epochs", "milestones"} <= values.keys():
            values["milestones"] = [m / values["epochs"] if m >= 1 else m for m in values["milestones"]]
        if "epochs" in said and {"epochs", "warmup"} <= values.keys():
            values["warmup"] *= bare.epochs / values["epochs"]
        if "optimizer" in said:  # the preset's rates are those of its own
            values |= RATES.get(bare.optimizer, {})
        return cls._checked({**values, **said, "params": params})

    @classmethod
    def _checked(cls, said: Mapping[str, Any], where: str = "") -> Self:
        try:
            return cls.model_validate(dict(said))
        except ValidationError as error:
            raise refusal_of(error, f"{where}setting {error.errors()[0]['loc'][0]}") from None

    @classmethod
    def checked(cls, config: dict[str, Any], file: str) -> dict[str, Any]:
        """A file's settings, as they are, if each is of its kind.

        Raises:
            Refused: naming the first that is not.
        """
        cls._checked(config, f"{file}, ")
        return config

    def as_config(self) -> dict[str, Any]:
        """All settings as JSON holds them; `resolve` gives the same settings back."""
        return self.model_dump(mode="json")


TAUGHT = frozenset(
    name
    for name, info in Settings.model_fields.items()
    if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("taught")
)
"""Settings that only a training with teachers has a use for."""
MACHINE = {
    "data_dir",
    "on_disk",
    "device",
    "threads",
    "save_seconds",
    "tensorboard",
    "log",
    "attack_chunk",
    "teacher_table",
}
"""Settings of where and how a run is made. They do not belong to what is studied: two runs that differ in them alone
are one cell of a study."""


def differences(held: Mapping[str, Any], expected: Mapping[str, Any], left_out: Collection[str] = ()) -> list[str]:
    """What one run's settings say otherwise than another's, parameters by full name, e.g. "lr 0.1 for 0.2".

    Args:
        held: settings as a run's config file has them.
        expected: those that it should have; what only the run has is no difference, and what it does not say, since
            that was no setting yet, is what has become the default.
        left_out: names that do not count.
    """
    whole = {**Settings().as_config(), **held}
    mine, theirs = ({**said, **(said.get("params") or {})} for said in (whole, expected))
    names = [name for name in theirs if name not in (*left_out, "params") and mine.get(name) != theirs[name]]
    return [f"{name} {mine.get(name, 'unsaid')!s} for {theirs[name]!s}" for name in names]


def _unknown_setting(key: str) -> Refused:
    near = difflib.get_close_matches(key, (*Settings.model_fields, *ELSEWHERE), n=1, cutoff=0.4)
    return Refused(
        f"setting {key!r}",
        expected="the name of a setting",
        got=repr(key),
        mend=f"did you mean {near[0]!r}?" if near else "`mmard distill --help` lists them",
    )
