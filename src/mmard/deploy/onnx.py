"""An ONNX file as a network: images in, logits out, no gradient.

What runs is the file, by onnxruntime on the CPU, so that what is measured is what is deployed. Attacks that need a
gradient have none here: they must be made on another network and transferred.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmard.errors import Refused, needs_extra
from mmard.files import FACTS


class OnnxNetwork(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits (B, classes), computed by onnxruntime on the CPU.

    A file with a fixed batch size is asked in batches of that size, the last one filled up with zeros. The digest of
    the file is a buffer, so that hashes over a network's state tell two files apart.

    Attributes:
        black_box: True: there is no gradient. Any network may say so of itself.
        facts: what mmard wrote into the file on export; {} for a foreign file.
        shape: (C, H, W) of the images, None where the file leaves a dimension open.
        batch: the fixed batch size, or None.

    Raises:
        Refused: for a file that is no ONNX model, or one that does not take one float32 image batch (B, C, H, W) and
            return one array; if onnxruntime is missing.
    """

    black_box = True
    digest: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        if find_spec("onnxruntime") is None:
            raise needs_extra("onnxruntime", "onnx", f"network {path}")
        if not path.is_file():
            raise Refused(f"network {path}", expected="an ONNX file", got="no such file")
        self._session = _session(path)
        self.facts = _facts(self._session)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            got = f"{_named(inputs)} -> {_named(outputs)}"
            mend = "export the network alone, with its logits as the only output"
            raise Refused(f"network {path}", expected="one input and one output", got=got, mend=mend)
        self._input, self._output = inputs[0].name, outputs[0].name
        self.batch, self.shape = _dimensions(path, inputs[0])
        self.register_buffer("digest", torch.tensor(list(_sha256(path)), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes), without a gradient.

        Raises:
            Refused: if the file cannot process images of this shape.
        """
        images = x.detach().to("cpu", torch.float32).contiguous()
        size = self.batch or len(images)
        logits = [self._asked(images[first : first + size]) for first in range(0, len(images), size)]
        return torch.cat(logits).to(x.device) if logits else x.new_zeros(0, 0)

    def _asked(self, images: Tensor) -> Tensor:
        rows = len(images)
        if self.batch is not None and rows < self.batch:
            images = torch.cat([images, images.new_zeros(self.batch - rows, *images.shape[1:])])
        (found,) = self._session.run([self._output], {self._input: images.numpy()})
        # A copy: onnxruntime may give the same memory to its next answer.
        return torch.from_numpy(found).clone()[:rows].float()


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has an error of its own for every way in which a file can be wrong
        lines = str(error).splitlines()
        got = lines[0][:300] if lines else type(error).__name__
        mend = "is it whole, and not newer than the installed onnxruntime?"
        raise Refused(
            f"network {path}", expected="an ONNX model that onnxruntime can load", got=got, mend=mend
        ) from None


def _facts(session: Any) -> dict[str, Any]:
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map.get(FACTS, "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _dimensions(path: Path, taken: Any) -> tuple[int | None, tuple[int, int, int] | None]:
    """The fixed batch size or None, and (C, H, W) or None; refuses what is not a float32 batch of images."""
    where = f"network {path}"
    if taken.type != "tensor(float)":
        mend = "export it with float32 images in [0, 1], and whatever it does to them inside"
        raise Refused(where, expected="float32 images in [0, 1]", got=f"an input of {taken.type}", mend=mend)
    sizes = [n if isinstance(n, int) and n > 0 else None for n in taken.shape]
    if len(sizes) != 4:
        raise Refused(where, expected="images (B, C, H, W)", got=f"an input of {len(sizes)} dimensions")
    batch, *rest = sizes
    if rest[2] in (1, 3) and None not in rest and min(rest[0] or 0, rest[1] or 0) > rest[2]:
        mend = "channels come last there: export it with (B, C, H, W), for example with a transpose in front"
        raise Refused(where, expected="images (B, C, H, W)", got=f"images {tuple(rest)}", mend=mend)
    c, h, w = rest
    return batch, None if c is None or h is None or w is None else (c, h, w)


def _named(values: Any) -> str:
    return ", ".join(value.name for value in values) or "none"


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
