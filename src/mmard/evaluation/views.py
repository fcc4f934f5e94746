"""What a network said of every image, without attack and under each, gathered while figures are being measured.

An image that is misread without an attack is not attacked: for whoever wants errors it is good as it is. So what is
counted here agrees with the figures to the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmard.data.image_set import ImageSet
from mmard.ops import margin


class Views:
    """A witness of an evaluation (see `evaluate`), which remembers logits and, if told so, the images themselves.

    Args:
        images: the images of the evaluation.
        hold: keep the attacked images: four bytes a value for each attack.
    """

    def __init__(self, images: ImageSet, *, hold: bool = False) -> None:
        self.images, self._hold = images, hold
        self._clean: Tensor | None = None
        self._logits: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}

    def __call__(self, attack: str, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        """Remember one batch."""
        said = logits.detach().float().cpu()
        if attack == "clean":
            if self._clean is None:
                self._clean = torch.zeros(len(self.images), said.shape[1])
            self._clean[rows] = said
            return
        if attack not in self._logits:
            self._logits[attack] = self.clean.clone()
            if self._hold:
                self._inputs[attack] = self.images.x.float() / 255
        self._logits[attack][rows] = said
        if self._hold:
            self._inputs[attack][rows] = x.detach().float().cpu()

    @property
    def clean(self) -> Tensor:
        """Logits (n, C) without an attack."""
        assert self._clean is not None, "nothing has been seen yet"
        return self._clean

    def under(self, attack: str) -> Tensor:
        """Logits (n, C) under an attack."""
        return self._logits.get(attack, self.clean)

    def x_adv(self, attack: str) -> Tensor:
        """The attacked images (n, C, H, W), float32 in [0, 1]."""
        assert self._hold, "the attacked images were not to be kept"
        return self._inputs[attack] if attack in self._inputs else self.images.x.float() / 255


def read_rightly(logits: Tensor, y: Tensor) -> Tensor:
    """Who is right, (n, C) and (n,) -> (n,) bool; a tie with the true class is no decision, as in the figures."""
    return margin(logits, y) < 0


def predictions(logits: Tensor, y: Tensor) -> Tensor:
    """The predicted classes (n,): the true one where it is ahead of all others, else the first of the largest."""
    rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    return torch.where(read_rightly(logits, y), y, rival)
