"""Asking a network in slices: the same answers and gradients, for any batch."""

from __future__ import annotations

import pytest
import torch
from nets import conv, images
from torch import Tensor, nn

from mmard.attacks import queries as asking
from mmard.attacks.queries import FEWEST, Sliced, ascent, sliced, slices


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 100])
def test_slices_are_even_and_make_up_the_batch(n: int) -> None:
    model = Sliced(nn.Identity(), 16)
    parts = slices(model, n)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = {len(range(n)[part]) for part in parts}
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1
    assert slices(nn.Identity(), n) == [slice(0, n)]


def test_the_same_logits_and_gradients() -> None:
    model, x = conv().eval(), images(50)
    y = torch.arange(50) % 3
    whole = ascent(model, x, lambda logits, part: logits.gather(1, y[part, None])[:, 0])
    parts = ascent(Sliced(model, 16), x, lambda logits, part: logits.gather(1, y[part, None])[:, 0])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        assert not other.requires_grad
    torch.testing.assert_close(Sliced(model, 16)(x), model(x), rtol=0, atol=1e-12)


def test_a_slice_is_as_large_as_the_caches_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = conv().eval(), images(4)  # its largest layer puts out 4 x 3 x 3 doubles
    calls: list[int] = []
    model.register_forward_hook(lambda module, taken, given: calls.append(len(taken[0])))
    monkeypatch.setattr(asking, "CACHE", 100 * 36 * 8)
    made = sliced(model, x)
    assert isinstance(made, Sliced)
    assert made.most == 100
    assert calls == [1], "one look, and no hook stays"
    assert not any(m._forward_hooks for m in model.modules() if m is not model)
    monkeypatch.setattr(asking, "CACHE", 1)
    assert sliced(model, x).most == FEWEST
    monkeypatch.setattr(asking, "prompt", lambda x: False)
    assert sliced(model, x) is model


def test_a_network_of_no_layers_is_asked_as_well() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    assert torch.equal(sliced(Plain(), images(3))(images(3)), Plain()(images(3)))
