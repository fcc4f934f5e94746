"""`mmard export`: a network as an ONNX file, checked against the network before it gets its name."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from mmard.cli.options import command, hidden, option
from mmard.cli.targets import OneNetwork, images_of, network_of, run_of, settings_of
from mmard.errors import Refused
from mmard.progress import progress_shown
from mmard.screen import busy, commands, console, line, print_json
from mmard.words import as_fraction, percent, plural, points

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


@command(
    "Use",
    """
    mmard export runs/s --to student.onnx
    mmard export resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255 --to theirs.onnx
    """,
)
def export(request: Export) -> None:
    """Write a network as an ONNX file, normalisation inside and any batch size, and check it on real images."""
    to = request.to
    if to.suffix != ".onnx":
        raise Refused("--to", expected="a file name ending in .onnx", got=str(to))
    run = run_of(request.target)
    settings = settings_of(request, run)
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.deploy.export import attacked_parity, export_checked
        from mmard.evaluation.evaluate import Protocol
        from mmard.evaluation.transfer import transferable
        from mmard.models import parameter_count

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
        found = export_checked(network.module, to, images, facts=facts, opset=request.opset)
    with progress_shown() as tell:
        pairs = [attacked_parity(network.module, to, some, protocol, tell) for protocol in protocols]
    if request.as_json:
        attacked = [{"network": own.score.record(), "file": theirs.score.record()} for own, theirs in pairs]
        print_json({"file": str(to), **asdict(found), "attacked": attacked})
        return
    out = console()
    line(out, str(to), "strong")
    size = to.stat().st_size / 1e6
    shape = " x ".join(map(str, images.image_shape))
    weights = plural(parameter_count(network.module), "weight")
    line(out, f"  {network.source}, {weights}, {size:.1f} MB, opset {request.opset}")
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
    use = f"--data {settings.data} --eps {request.eps or as_fraction(settings.eps)} --norm {settings.norm}"
    use += f" --data-dir {shlex.quote(settings.data_dir)}" if settings.data_dir else ""
    commands(
        out,
        "next",
        [
            f"mmard evaluate {target} --attack square --first 100 {use}",
            f"mmard evaluate {target} --attack pgd-20,cw-30 --from {shlex.quote(request.target)} {use}",
        ],
    )
