"""Every setting, under the one name that it has on the command line, in Python and in a run's config file.

A run is made of three layers, the later over the earlier: defaults, the preset's values for the method (and the data),
and what the user said. What results is written to the run folder, and from that file alone the run can be repeated.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mmard.errors import Refused, unknown

# config files ---------------------------------------------------------------------------------------------------------
# Settings as files say them: a user's own, a run's, and the presets of the package.


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


# config ---------------------------------------------------------------------------------------------------------------


Value = float | int | bool | str


def _radius(text: object) -> object:
    from mmard.balls import radius

    return radius(text) if isinstance(text, str) else text


Teachers = str | dict[str, str | list[str]]
"""One teacher, or teachers by the letter that formulas use; a list is an ensemble."""


def teachers_of(texts: Sequence[str]) -> Teachers:
    """Teachers as a command line says them: RUN for T, LETTER=RUN for another, the same letter twice for an ensemble.

    >>> teachers_of(["runs/t"])
    'runs/t'
    >>> teachers_of(["T=runs/a", "T=runs/b", "T_nat=runs/n"])
    {'T': ['runs/a', 'runs/b'], 'T_nat': 'runs/n'}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        named = re.fullmatch(r"(T(?:_[a-z]+)?)=(.+)", text)
        letter, spec = (named[1], named[2]) if named else ("T", text)
        found.setdefault(letter, []).append(spec)
    if list(found) == ["T"] and len(found["T"]) == 1:
        return found["T"][0]
    return {letter: specs[0] if len(specs) == 1 else specs for letter, specs in found.items()}


Radius = Annotated[float, BeforeValidator(_radius)]
"""A number, or a fraction such as "8/255"."""


def setting(default: Any, panel: str, text: str) -> Any:
    """A field with the sentence and the panel under which help texts show it."""
    return Field(default=default, description=text, json_schema_extra={"panel": panel})


class Settings(BaseModel):
    """What training with or without a teacher has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())

    method: str = setting("pgd_at", "Method", "Method and plug-ins, e.g. rslad+mmard; `mmard methods` lists them.")
    inner: str | None = setting(None, "Method", "Take the attack (inner objective) of this method instead.")
    outer: str | None = setting(None, "Method", "Take the loss (outer terms) of this method instead.")
    params: Annotated[dict[str, Value], BeforeValidator(flattened)] = setting(
        {}, "Method", "Parameters of methods and plug-ins by full name, e.g. mmard.guide=0.5."
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
    augment: str = setting("auto", "Data", "Augmentation: auto (by data set), none, crop-flip, idbh-strong ...")
    image_size: int | None = setting(
        None, "Data", "Bring images to squares of this many pixels (folder, parquet; cifar10 and cifar100: 16, 8 or 4)."
    )
    on_disk: bool = setting(False, "Data", "Keep decoded images in a memory-mapped file instead of memory.")
    normalise: Literal["none", "data"] = setting(
        "none", "Data", "Normalisation inside a network built here: none, or the data's mean and deviation."
    )

    eps: Radius = setting(8 / 255, "Attack", "Radius of the ball, in input units: 8/255 or 0.031.")
    norm: Literal["linf", "l2", "l1"] = setting("linf", "Attack", "Norm of the ball.")
    steps: int = setting(10, "Attack", "Steps of the training attack.")
    step_size: Radius | None = setting(None, "Attack", "Length of a step; a quarter of eps if not given.")
    start: str | None = setting(
        None, "Attack", "Start of the attack: gaussian, uniform or none; the method's own if not given."
    )

    attack: str | None = setting(
        None, "Attack", "Training attack: pgd, or noise-fgsm (one step, not projected); the method's own if not given."
    )

    epochs: int = setting(200, "Training", "Passes over the training images.")
    batch_size: int = setting(128, "Training", "Images per step.")
    lr: float = setting(0.1, "Training", "Largest learning rate.")
    momentum: float = setting(0.9, "Training", "Momentum of SGD.")
    nesterov: bool = setting(False, "Training", "Nesterov's form of momentum.")
    weight_decay: float = setting(5e-4, "Training", "Weight decay of SGD.")
    schedule: str = setting("step", "Training", "Learning rate: step, cosine, late-cosine, one-cycle or constant.")
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), "Training", "Drops of the step schedule (late-cosine falls from the first): epochs, or shares."
    )
    drop: float = setting(0.1, "Training", "Factor at each milestone.")
    peak: float = setting(0.3, "Training", "Share of the run at which one-cycle reaches lr.")
    warmup: float = setting(0.0, "Training", "Epochs of linear growth at the start.")
    average: str = setting("none", "Training", "Averaging of weights: none, ema or swa.")
    ema_decay: float = setting(0.995, "Training", "Weight of the past in ema.")
    swa_from: float = setting(0.5, "Training", "Share of the run from which swa averages.")
    grad_clip: float = setting(0.0, "Training", "Largest norm of the gradient; 0 for none.")
    accumulate: Annotated[int, Field(ge=1)] = setting(
        1, "Training", "Micro-batches that a batch is descended in; BatchNorm normalises each by itself."
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
    threads: int = setting(0, "Machine", "CPU threads; 0 leaves PyTorch's choice.")
    save_seconds: float = setting(60.0, "Machine", "Time between saves of the state.")
    engine: Literal["fast", "plain"] = setting(
        "fast", "Machine", "What attacks call: fast, twins of the networks, equal up to rounding; or plain, themselves."
    )
    precision: Literal["fp32", "bf16", "auto"] = setting(
        "fp32", "Machine", "Of twins: fp32, bf16 (attack and teacher, not the update), or auto, which times both."
    )
    attack_chunk: Annotated[int, Field(ge=0)] = setting(
        0, "Machine", "Attack so many images at a time; 0 for the batch, halved by itself when memory runs out."
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
        unknown_keys = [key for key in said if key not in cls.model_fields]
        if unknown_keys:
            raise _unknown_setting(unknown_keys[0], cls)
        bare = cls._checked(said)
        values = preset_values(bare.preset, bare.host, bare.data)
        params = {**values.pop("params", {}), **bare.params}
        if "epochs" in said and {"epochs", "milestones"} <= values.keys():
            values["milestones"] = [m / values["epochs"] if m >= 1 else m for m in values["milestones"]]
        return cls._checked({**values, **said, "params": params})

    @classmethod
    def _checked(cls, said: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(dict(said))
        except ValidationError as error:
            first = error.errors()[0]
            where, inner = f"setting {first['loc'][0]}", first.get("ctx", {}).get("error")
            if isinstance(inner, Refused):
                raise Refused(where, expected=inner.expected, got=inner.got, mend=inner.mend) from None
            expected = re.split(", (?:unable|got) ", first["msg"].removeprefix("Input should be "))[0]
            got = "nothing" if first["type"] == "missing" else repr(first["input"])
            raise Refused(where, expected=expected[:1].lower() + expected[1:], got=got) from None

    def as_config(self) -> dict[str, Any]:
        """All settings as JSON holds them; `resolve` gives the same settings back."""
        return self.model_dump(mode="json")


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], left_out: Collection[str] = ()) -> list[str]:
    """What one run's settings say otherwise than another's, parameters by full name, e.g. "lr 0.1 for 0.2".

    Args:
        held: settings as a run's config file has them.
        wanted: those that it should have; what only the run has is no difference.
        left_out: names that do not count.
    """
    mine, theirs = ({**said, **(said.get("params") or {})} for said in (held, wanted))
    names = [name for name in theirs if name not in (*left_out, "params") and mine.get(name) != theirs[name]]
    return [f"{name} {mine.get(name, 'unsaid')!s} for {theirs[name]!s}" for name in names]


class TrainSettings(Settings):
    """Training without a teacher."""

    model: str = setting(
        "resnet18", "Method", "Network to train, e.g. resnet18, wide_resnet-16-4, cnn-32, or package.module:function."
    )


class DistillSettings(Settings):
    """Training a student with a teacher."""

    method: str = setting("rslad+mmard", "Method", "Method and plug-ins, e.g. rslad+mmard; `mmard methods` lists them.")
    student: str = setting(
        "resnet18", "Method", "Network to train, e.g. resnet18, mobilenet_v2, cnn-8, or package.module:function."
    )
    teacher: Teachers = setting(
        ...,
        "Method",
        "A run folder, a file of weights that mmard wrote, or a network's name with --teacher-weights. Several: "
        "T=RUN T_nat=RUN, one for each; the same letter again is an ensemble.",
    )
    teacher_weights: str | dict[str, str] | None = setting(
        None, "Method", "Weights for a teacher given by its network's name (.safetensors, .pt); T_nat=FILE for T_nat."
    )
    teacher_mix: Literal["probs", "logits"] = setting(
        "probs", "Method", "What an ensemble of teachers averages: probabilities, or centred logits."
    )
    teacher_which: Literal["best", "last"] = setting("best", "Method", "Which weights of a teacher's run folder.")
    teacher_table: str = setting(
        "off", "Method", "Keep T(x) of every view: off, memory, cache (below ~/.cache), or a folder."
    )
    fill_table: bool = setting(False, "Method", "Fill the teacher table before the first step.")


def teachers_said(settings: DistillSettings) -> dict[str, tuple[str, ...]]:
    """What was said of every teacher, by letter; several members are an ensemble."""
    said = settings.teacher if isinstance(settings.teacher, dict) else {"T": settings.teacher}
    return {letter: (own,) if isinstance(own, str) else tuple(own) for letter, own in said.items()}


def weights_said(settings: DistillSettings) -> dict[str, str]:
    """Files of weights, by the letter of the teacher that they are for."""
    files = settings.teacher_weights
    return {"T": files} if isinstance(files, str) else files or {}


def _unknown_setting(key: str, kind: type[Settings]) -> Refused:
    near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.4)
    return Refused(
        f"setting {key!r}",
        expected=f"a name that {kind.__name__} has",
        got=repr(key),
        mend=f"did you mean {near[0]!r}?" if near else "`mmard distill --help` lists them",
    )
