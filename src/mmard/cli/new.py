"""`mmard new method`: a file with a method of one's own, and its test, to be trained by name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from mmard.catalogue import facts
from mmard.cli.options import Options, argument, command, option
from mmard.errors import Refused
from mmard.screen import commands, console, line

METHOD = '''"""{name}: one sentence on what is new in it.

Authors. "Title", venue and year.

    x'   = argmax over the ball of   KL(T(x) || S(x'))
    loss = alpha KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y)
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.method import Method, said
from mmard.ops import ce, kl


def {name}(alpha: float = 0.5) -> Method:
    """What --param sets: keyword arguments with numbers or texts as defaults.

    Args:
        alpha: weight of the teacher's term under attack, 1 - alpha that of the labels.
    """

    def inner(b: Batch) -> Tensor:
        # Climbed over x' by the attack, (B,). S the student, T the teacher; b.adv is x', b.x the clean image.
        return kl(b.T(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        # Descended over the student's weights: each term (B,), already weighted; the loss is the sum of their means.
        return {{
            "adv": alpha * kl(b.T(b.x), b.S(b.adv)),
            "nat": (1 - alpha) * ce(b.S(b.x), b.y),
        }}

    return Method(
        "{name}",
        inner,
        outer,
        source="Authors, venue and year",
        says=("KL(T(x) || S(x'))", said((alpha, "KL(T(x) || S(x'))"), (1 - alpha, "CE(S(x), y)"))),
        forwards={{"S": ("x_adv", "x")}},  # where the student is asked in the loss, in this order
    )
'''
PLUGIN = '''"""{name}: a plug-in, one sentence on what it adds to any method.

    loss = that of the host + beta |softmax S(x') - softmax S(x)|^2
"""

from __future__ import annotations

from dataclasses import replace

from mmard.batch import Batch, Terms
from mmard.method import Method, said


def {name}(host: Method, beta: float = 1.0) -> Method:
    """What --param sets: keyword arguments with numbers or texts as defaults.

    Args:
        host: the method that this is added to; --method rslad+{name}:{name} hands it over.
        beta: weight of the term.
    """

    def outer(b: Batch) -> Terms:
        # The host's terms, and one more, (B,), already weighted.
        apart = b.S(b.adv).softmax(1) - b.S(b.x).softmax(1)
        return {{**host.outer(b), "{name}": beta * apart.square().sum(1)}}

    says = (host.says[0], f"{{host.says[1]}} + " + said((beta, "|softmax S(x') - softmax S(x)|^2")))
    grown = replace(host, name=f"{{host.name}}+{name}", outer=outer, says=says)
    return grown.with_view("x_adv", "x")  # where the term asks the student, where the host does not already
'''
TEST = '''"""{name}: its terms are what the formula says, and a student learns by it."""

from __future__ import annotations

import torch
from {name} import {name}
from torch import nn

import mmard
from mmard.batch import Batch, Net, Point

SHAPE, CLASSES = (1, 4, 4), 3


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def test_the_terms_are_what_the_formula_says() -> None:
    student, teacher = linear(0), linear(1)
    x, x_adv, y = torch.rand(8, *SHAPE), torch.rand(8, *SHAPE), torch.arange(8) % CLASSES
    nets = {{"S": Net(student), "T": Net(teacher)}}
    terms = {made}.outer(Batch(Point("x", x), Point("x_adv", x_adv), y, nets))
{expected}

def test_a_student_learns_by_it() -> None:
    student, teacher = linear(0), linear(1)
    x = torch.rand(32, *SHAPE)
    y = teacher(x).argmax(1)
    step = mmard.training_step(student, teacher, method={whole}, budget=0.05, steps=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        loss, _ = step(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
'''
OF_METHOD = """    p, log_q = teacher(x).softmax(1), student(x_adv).log_softmax(1)
    robust = (p * (p.log() - log_q)).sum(1)
    label = -student(x).log_softmax(1)[torch.arange(8), y]
    torch.testing.assert_close(terms["adv"], 0.25 * robust)
    torch.testing.assert_close(terms["nat"], 0.75 * label)
"""
OF_PLUGIN = """    apart = student(x_adv).softmax(1) - student(x).softmax(1)
    torch.testing.assert_close(terms["{name}"], 0.25 * (apart * apart).sum(1))
    bare = mmard.rslad().outer(Batch(Point("x", x), Point("x_adv", x_adv), y, nets))
    assert terms.keys() == {{*bare, "{name}"}}
"""


class New(Options):
    """What `mmard new` is asked for."""

    kind: Literal["method", "plug-in"] = argument("method|plug-in", "What to begin.")
    name: str = argument("NAME", "Of the method, and of its file.")
    to: Path = option(Path(), "Where the two files go.", "FOLDER", shown="here")


@command(
    "Use",
    """
    mmard new method mine
    mmard new plug-in smooth --to research
    """,
)
def new(options: New) -> None:
    """Begin a method or a plug-in of your own: a file with two formulas, and its test. No fork is needed.

    It is trained by its name, --method NAME:NAME, as a plug-in --method rslad+NAME:NAME.
    """
    name, plugin = options.name, options.kind == "plug-in"
    if not name.isidentifier() or name != name.lower():
        expected = "a name of small letters, digits and _, as a Python file may have"
        raise Refused(f"new {options.kind}", expected=expected, got=repr(name))
    if name in [row["name"] for row in facts("methods")]:
        where, mend = f"new {options.kind} {name}", f"mmard methods {name} shows it"
        raise Refused(where, expected="a name that is free", got="one of mmard's own", mend=mend)
    code, test = options.to / f"{name}.py", options.to / f"test_{name}.py"
    for file in (code, test):
        if file.exists():
            raise Refused(
                str(file), expected="no such file", got="one that is there", mend="choose another name or --to"
            )
    made = f"{name}(mmard.rslad(), beta=0.25)" if plugin else f"{name}(alpha=0.25)"
    whole = f"{name}(mmard.rslad())" if plugin else f"{name}()"
    expected = (OF_PLUGIN if plugin else OF_METHOD).format(name=name)
    texts = {
        code: (PLUGIN if plugin else METHOD).format(name=name),
        test: TEST.format(name=name, made=made, whole=whole, expected=expected),
    }
    from mmard.files import writing_into

    with writing_into(options.to):
        options.to.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8")
    out = console()
    for file in (code, test):
        line(out, str(file), "strong")
    spec = f"rslad+{name}:{name}" if plugin else f"{name}:{name}"
    move = f"cd {shlex.quote(str(options.to))} && " if options.to != Path() else ""
    trial = "--teacher RUN --student cnn-4 --data digits"
    lines = [f"python -m pytest {test.name}", f"mmard methods {spec}", f"mmard distill --method {spec} {trial}"]
    commands(out, "next", [f"{move}{each}" for each in lines])
