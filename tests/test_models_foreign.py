"""Networks from other people's code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from laws import over
from settled import images

from mmard.errors import Refused
from mmard.models import Normalised, build, parameter_count

STRANGERS = """
import torch
from torch import nn

def both(num_classes, image_shape):
    c, h, w = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))

def anything(**settings):
    return Net(**settings)

def classes(num_classes):
    return nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))

def alone():
    return both(10, (1, 8, 8))

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

def softmax():
    return nn.Sequential(alone(), nn.Softmax(1))

def hundred():
    return both(100, (1, 8, 8))

def demanding(depth):
    return alone()

def broken():
    raise KeyError("weights.pt")

def nothing():
    pass

ready = alone()
number = 3
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "strangers.py").write_text(STRANGERS)
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has")
    (tmp_path / "faulty.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for module in ("strangers", "needy", "faulty"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("function", ["both", "anything", "alone", "Net"])
def test_a_function_of_somebody_elses_code_makes_a_network(strangers: None, function: str) -> None:
    name = f"strangers:{function}"
    net = build(name, num_classes=10, image_shape=(1, 8, 8), seed=0, mean=(0.5,), std=(0.5,)).eval()
    assert isinstance(net, Normalised)
    assert net(images((1, 8, 8))).shape == (3, 10)
    again = build(name, num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


@over(
    ("name", "words"),
    [
        ("no_such_package.part:f", "got No module named 'no_such_package'; is its folder on PYTHONPATH?"),
        ("needy:f", "got No module named 'a_package_that_nobody_has'; needy itself needs it: install it"),
        ("faulty:f", "expected a module 'faulty' that can be imported, got ZeroDivisionError: division by zero"),
        ("strangers:bothh", "expected a function 'bothh' in strangers, got no such name there; did you mean"),
        ("strangers:number", "expected a function or class that makes a network, got an object of type int"),
        ("strangers:ready", "got an object of type Sequential; wrap it in a function that returns a new network"),
        ("strangers:demanding", "got missing a required argument: 'depth'; wrap it in a function"),
        ("strangers:broken", "expected a call that returns a network, got KeyError: 'weights.pt'"),
        ("strangers:nothing", "expected an nn.Module from the call, got a NoneType"),
        ("strangers:softmax", "got softmax outputs"),
        ("strangers:hundred", "network 'strangers:hundred': expected logits (B, 10), got (2, 100)"),
        (":f", "expected package.module:function, got ':f'"),
        ("strangers:", "expected package.module:function, got 'strangers:'"),
    ],
)
def test_a_wrong_stranger_is_refused_with_its_cause(strangers: None, name: str, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        build(name, num_classes=10, image_shape=(1, 8, 8))


def test_a_lazy_network_is_made_whole_by_the_probe(strangers: None) -> None:
    net = build("strangers:classes", num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert parameter_count(net) == 2 + 65 * 10
    again = build("strangers:classes", num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert torch.equal(net[2].weight, again[2].weight)
