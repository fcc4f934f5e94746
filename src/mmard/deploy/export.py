"""A network as an ONNX file that does what the network does, and how far that was checked.

Images in [0, 1] go in and logits come out; normalisation is inside. The batch dimension is open. The file says in its
metadata what the network is, where its weights come from, and their hash.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmard.data.batches import Labelled, as_image_set
from mmard.data.image_set import ImageSet
from mmard.deploy.onnx import OnnxNetwork
from mmard.errors import Refused, cause, needs_extra
from mmard.evaluation.evaluate import Measured, Protocol
from mmard.evaluation.journal import Progress
from mmard.evaluation.score import wilson
from mmard.evaluation.transfer import Surrogate, transfer
from mmard.files import FACTS, weights_hash, write_whole
from mmard.models import check_logits
from mmard.modes import evaluating, gradients
from mmard.settings import EVALUATION_BATCH

OPSET = 20
"""Of the standard operators. onnxruntime reads it since 1.17."""
TOLERANCE = 1e-3
"""Largest difference of a logit that rounding explains, as a share of the largest logit."""


@dataclass(frozen=True)
class Parity:
    """What a file does beside the network that it was made from, on the same images.

    Attributes:
        n: images.
        difference: the largest difference of a logit.
        largest: the largest logit of the network by size, which the difference is to be seen against.
        flips: images whose predicted class differs.
        correct, correct_exported: images that the network and the file read rightly.
        images: a line on where the images come from.
    """

    n: int
    difference: float
    largest: float
    flips: int
    correct: int
    correct_exported: int
    images: str

    @property
    def holds(self) -> bool:
        """No class flips, and logits differ by rounding alone."""
        return self.flips == 0 and self.difference <= TOLERANCE * max(self.largest, 1.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the file's accuracy, over the choice of images."""
        return wilson(self.correct_exported, self.n)


@gradients()
def export_onnx(
    module: nn.Module,
    path: str | Path,
    image_shape: tuple[int, int, int],
    *,
    facts: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> None:
    """Write a network as an ONNX file, whole or not at all; the batch dimension is open.

    Args:
        module: images (B, C, H, W) in [0, 1] to logits (B, classes), on any device; exported in eval mode.
        path: the file; one that is there is replaced.
        image_shape: (C, H, W).
        facts: what a reader should know of the network, e.g. `networks.network_facts`.
        opset: version of the standard operators.

    Raises:
        Refused: if the packages of the extra `onnx` are missing, or the network cannot be exported.
    """
    path = Path(path)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise needs_extra(package, "onnx", f"export to {path.name}")
    if getattr(module, "black_box", False):
        raise Refused(f"export to {path.name}", expected="a PyTorch network", got="one without its operations")
    if not path.parent.is_dir():
        raise Refused(str(path), expected="a file in a folder that exists", got="no such folder")
    import onnx

    known = {**(facts or {}), "weights": weights_hash(module), "input": "images (B, C, H, W), float32 in [0, 1]"}
    state = next(iter(module.state_dict().values()), torch.empty(0))
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, *image_shape, device=state.device)
    try:
        with evaluating(module), torch.no_grad(), _quiet():
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: batch},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
            assert program is not None, "the exporter returns a program when it is given no file"
            model = program.model_proto
    except Refused:
        raise
    except Exception as error:  # the exporter wraps whatever the network's code raises in errors of its own
        inner = error.__cause__ if isinstance(error.__cause__, Exception) else error
        mend = "its forward must be plain tensor operations, the same for every input and batch size"
        raise Refused(
            f"export to {path.name}", expected="a network that can be traced", got=cause(inner), mend=mend
        ) from error
    onnx.helper.set_model_props(model, {FACTS: json.dumps(known)})
    write_whole(path, lambda temporary: onnx.save(model, str(temporary)))


@gradients()
def export_checked(
    module: nn.Module,
    path: str | Path,
    images: Labelled,
    *,
    facts: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> Parity:
    """As `export_onnx`, but only a file that does what the network does on these images gets its name.

    Args:
        images: a set, a DataLoader, or a tuple of images and labels.

    Raises:
        Refused: as `export_onnx`; and if a predicted class differs, or a logit by more than rounding.
    """
    path, images = Path(path), as_image_set(images, "images")
    if not getattr(module, "black_box", False):
        check_logits(module, images.image_shape, None, f"export to {path.name}")
    whole: list[Parity] = []

    def write(temporary: Path) -> None:
        export_onnx(module, temporary, images.image_shape, facts=facts, opset=opset)
        whole.append(parity(module, temporary, images))
        if not whole[0].holds:
            got = f"{whole[0].flips} others of {whole[0].n:,}, logits up to {whole[0].difference:.2g} off"
            mend = "nothing was written; does its forward depend on more than its input?"
            raise Refused(f"export to {path.name}", expected="the network's own predictions", got=got, mend=mend)

    if not path.parent.is_dir():
        raise Refused(str(path), expected="a file in a folder that exists", got="no such folder")
    write_whole(path, write)
    return whole[0]


def attacked_parity(
    module: nn.Module, path: Path, images: ImageSet, protocol: Protocol, progress: Progress | None = None
) -> tuple[Measured, Measured]:
    """Network and file under the same adversarial examples, which are made on the network.

    Returns:
        The figure of the network, and that of the file; their masks tell which verdicts differ.
    """
    targets = {"network": module, "file": OnnxNetwork(path)}
    which = dict.fromkeys(targets, path.name)
    surrogate = Surrogate(module, "the network itself")
    found = transfer(targets, surrogate, images, protocol, split="test", which=which, progress=progress)
    return found["network"], found["file"]


def parity(module: nn.Module, path: Path, images: ImageSet, batch_size: int = EVALUATION_BATCH) -> Parity:
    """Run a network and the file that was made from it on the same images, also alone and in odd batches.

    Args:
        module: the network, on any device; looked at in eval mode.
        path: the file.
        images: labelled images.
        batch_size: images at once; the last batch has what is left.

    Raises:
        Refused: if the file cannot be read.
    """
    exported = OnnxNetwork(path)
    state = next(iter(module.state_dict().values()), torch.empty(0))
    difference, largest, flips, right, right_exported = 0.0, 0.0, 0, 0, 0
    with evaluating(module), torch.no_grad():
        for first in range(0, len(images), batch_size):
            x = images.inputs(slice(first, first + batch_size))
            y = images.y[first : first + batch_size].numpy()
            own, other = (logits.double().cpu().numpy() for logits in (module(x.to(state.device)), exported(x)))
            if first == 0:
                # A file with a batch size burnt in passes on whole batches.
                other[:1] = exported(x[:1]).double().numpy()
            difference = max(difference, float(np.abs(own - other).max()))
            largest = max(largest, float(np.abs(own).max()))
            flips += int((own.argmax(1) != other.argmax(1)).sum())
            right += int((own.argmax(1) == y).sum())
            right_exported += int((other.argmax(1) == y).sum())
    return Parity(len(images), difference, largest, flips, right, right_exported, images.origin)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own warnings, log lines and cheers; what fails in it is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # PyTorch's exporter calls functions that PyTorch has deprecated.
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
