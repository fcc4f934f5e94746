"""The commands about networks of other people, and ours for them: teachers, push, pull."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from mmard.cli.options import (
    OneNetwork,
    Options,
    argument,
    command,
    hidden,
    images_of,
    network_of,
    option,
    run_of,
    settings_of,
)
from mmard.cli.screen import busy, commands, console, line, progress_shown
from mmard.errors import Refused
from mmard.words import percent, plural, points


class Teachers(Options):
    """What `mmard teachers` is asked for."""

    name: str | None = argument("NAME", "One of them, in detail.", None)
    as_json: bool = option(False, "Print records as JSON.", flag="--json")


@command(
    "Look",
    """
    mmard teachers
    mmard teachers Chen2021LTD_WRN34_10
    """,
)
def teachers(options: Teachers) -> None:
    """Robust networks of other people that can be named as a teacher: claimed accuracies, papers, licences, places.

    Their weights are a file of yours, given with --teacher-weights; `mmard fetch robustbench:NAME` brings most of them.
    """
    from mmard.cli.catalogue import show_teachers

    show_teachers(options.name, options.as_json)


class Push(Options):
    """What `mmard push` is asked for."""

    run: Path = argument("RUN", "A run folder.")
    repo: str = argument("USER/NAME", "The repository at the Hugging Face hub.")
    to: Path | None = option(None, "Write the folder here and send nothing.", "FOLDER")
    public: bool = option(False, "A repository that is made is for everybody.")
    licence: str | None = option(None, "Licence of the weights, as the hub names it: mit.", "NAME")


@command(
    "Share",
    """
    mmard push runs/s ada/resnet18-rslad --to shared
    mmard push runs/s ada/resnet18-rslad --public --licence mit
    """,
)
def push(options: Push) -> None:
    """Share a run at the Hugging Face hub: weights, settings, figures, findings, and a model card made from them.

    Folders of this machine are cut out of what is sent. Who you are the hub's client knows from `hf auth login`.
    """
    push_run(options.run, options.repo, options.to, options.public, options.licence)


class Pull(Options):
    """What `mmard pull` is asked for."""

    repo: str = argument("USER/NAME", "A repository at the hub, or a folder that push --to wrote.")
    to: Path = option(..., "Where the run goes.", "FOLDER")
    revision: str | None = option(None, "Branch, tag or commit.")


@command(
    "Share",
    """
    mmard pull ada/resnet18-rslad --to runs/pulled
    mmard pull shared --to runs/pulled
    """,
)
def pull(options: Pull) -> None:
    """Bring a shared run to a folder that evaluate, compare and --teacher take. Every file is checked."""
    pull_run(options.repo, options.to, options.revision)


def push_run(run: Path, repo: str, to: Path | None, public: bool, licence: str | None) -> None:
    """Share a run, and say what went.

    Raises:
        Refused: for anything that cannot be shared.
    """
    with busy("reading the run"):
        from mmard.share.hub import push
    with busy("writing" if to is not None else "writing and sending"):
        done = push(run, repo, to=to, public=public, licence=licence)
    out = console()
    line(out, str(done.folder) if done.folder is not None else done.address, "strong")
    line(out, f"  {plural(len(done.files), 'file')}, {done.size / 1e6:.1f} MB; the card is README.md")
    if done.suspicious:
        line(out, f"  suspicious: {', '.join(done.suspicious)}; the card says so above its table")
    if done.folder is not None:
        line(out, "  nothing was sent", "quiet")
    source = shlex.quote(str(done.folder)) if done.folder is not None else repo
    commands(out, "next", [f"mmard pull {source} --to runs/pulled"])


def pull_run(repo: str, to: Path, revision: str | None) -> None:
    """Bring a run, and say what to do with it.

    Raises:
        Refused: for anything that is no run that mmard shared.
    """
    with busy("starting"):
        from mmard.share.hub import pull
    out = console()
    folder = pull(repo, to, revision=revision, progress=lambda text: line(out, f"  {text}", "quiet"))
    line(out, f"complete and checked: {folder}", "strong")
    where = shlex.quote(str(folder))
    commands(out, "next", [f"mmard show {where}", f"mmard evaluate {where} --attack pgd-20", f"less {where}/README.md"])


# export ---------------------------------------------------------------------------------------------------------------
ATTACKED = 100
"""Images that are attacked for the check: enough to see a broken file, few enough to wait for."""


class Export(OneNetwork):
    """What `mmard export` is asked for."""

    to: Path = option(..., "The file to write; one that is there is replaced.", "FILE.onnx")
    attacks: str = option(
        "pgd-20", "Show the file examples of this attack, or none, made on the network.", "LIST", "--attack"
    )
    opset: int = option(20, "Version of the ONNX operators.", ge=1)
    split: Literal["test"] = hidden("test")
    first: int = option(1000, "Check on the first N test images.", ge=1)
    as_json: bool = option(False, "Print records as JSON.", flag="--json")


@command(
    "Use",
    """
    mmard export runs/s --to student.onnx
    mmard export resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255 --to theirs.onnx
    """,
)
def export(request: Export) -> None:
    """Write a network as an ONNX file, normalisation inside and any batch size, and check it on real images."""
    export_network(request, request.to, request.opset, request.as_json)


def export_network(request: Export, to: Path, opset: int, as_json: bool) -> None:
    """Export, check, print what was checked.

    Args:
        request: which network, and the images that it is checked on; its attack may be "none".
        to: the file.
        opset: version of the standard operators.

    Raises:
        Refused: for anything wrong; then nothing is written.
    """
    if to.suffix != ".onnx":
        raise Refused("--to", expected="a file name ending in .onnx", got=str(to))
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.deploy.export import attacked_parity, export_checked
        from mmard.evaluation.evaluate import Protocol
        from mmard.evaluation.transfer import transferable
        from mmard.models import parameter_count

        run = run_of(request.target)
        settings = settings_of(request, run)
        budget = Budget(settings.eps, settings.norm)
        specs = [] if request.attacks == "none" else [spec for spec in request.attacks.split(",") if spec.strip()]
        protocols = [Protocol((attack,), budget) for attack in transferable(specs, budget)]
        images = images_of(request, settings)
        network = network_of(request, images)
        some = images.take(slice(0, min(ATTACKED, len(images))), f"the first {ATTACKED} of {images.origin}")
    facts = {
        **network.facts,
        "source": network.source,
        "num_classes": images.num_classes,
        "image_shape": list(images.image_shape),
        "classes": list(images.classes),
    }
    with busy("exporting"):
        found = export_checked(network.module, to, images, facts=facts, opset=opset)
    pairs = []
    with progress_shown() as tell:
        for protocol in protocols:
            pairs.append(attacked_parity(network.module, to, some, protocol, tell))
    if as_json:
        attacked = [{"network": own.score.record(), "file": theirs.score.record()} for own, theirs in pairs]
        print(json.dumps({"file": str(to), **asdict(found), "attacked": attacked}, indent=2))
        return
    out = console()
    line(out, str(to), "strong")
    size = to.stat().st_size / 1e6
    shape = " x ".join(map(str, images.image_shape))
    line(out, f"  {network.source}, {plural(parameter_count(network.module), 'weight')}, {size:.1f} MB, opset {opset}")
    line(out, f"  images: float32 (batch, {shape}) in [0, 1], any batch; logits: (batch, {images.num_classes})")
    out.print()
    exported, own_accuracy = percent(found.correct_exported / found.n), percent(found.correct / found.n)
    line(out, f"Checked on {plural(found.n, 'image')} ({found.images}), run by onnxruntime on the CPU:")
    line(out, f"  logits differ by {found.difference:.1g} at most, the largest being {found.largest:.3g}")
    line(out, f"  predicted classes: {found.flips} of {found.n:,} differ")
    low, high = found.interval
    line(out, f"  accuracy {exported} (95% interval {points(low, high)}), of the network {own_accuracy}")
    for own, theirs in pairs:
        flips = int((own.mask != theirs.mask).sum())
        name, n = own.score.label.split(" (")[0], own.score.n
        both = f"{percent(theirs.score.accuracy)}, of the network {percent(own.score.accuracy)}"
        line(out, f"  under {name} at {budget}, made on the network, {n} images: {both}; {flips} verdicts differ")
    target = shlex.quote(str(to))
    use = f"--data {settings.data} --eps {request.eps or _fraction(settings.eps)} --norm {settings.norm}"
    use += f" --data-dir {shlex.quote(settings.data_dir)}" if settings.data_dir else ""
    commands(
        out,
        "next",
        [
            f"mmard evaluate {target} --attack square --first 100 {use}",
            f"mmard evaluate {target} --attack pgd-20,cw-30 --from {shlex.quote(request.target)} {use}",
        ],
    )


def _fraction(eps: float) -> str:
    from mmard.balls import as_fraction

    return as_fraction(eps)
