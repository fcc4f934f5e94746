"""Networks from other people's code, named as `package.module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from mmard.errors import Refused, cause
from mmard.trust import import_code, trust_code


def foreign(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    """Import `package.module` and return `function`, ready to be called.

    It is called with those of `num_classes=...` and `image_shape=...` that its signature names, and with the first
    where it takes any keywords. Importing runs that
    module's code: the name is as trusted as the code that it points to.

    Raises:
        Refused: if the module or the function is not there, the import fails, or the function needs more arguments; and
            from the call, if that fails or returns something else than an `nn.Module`.
    """
    who = f"network {name!r}"
    trust_code(name)  # whoever comes here has typed it, or it was let in
    function = import_code(name, "network")
    if isinstance(function, nn.Module):
        got, mend = f"an object of type {type(function).__name__}", "wrap it in a function that returns a new network"
        raise Refused(who, expected="a function or class that makes a network", got=got, mend=mend)
    offered: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape}
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Some callables written in C show no signature.
        signature = inspect.Signature()
    taken = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    named = {p.name for p in taken}
    # A function that takes any keywords hands them on to a constructor, which knows num_classes and no image_shape.
    named |= {"num_classes"} if any(p.kind is p.VAR_KEYWORD for p in taken) else set()
    offered = {name: value for name, value in offered.items() if name in named}
    try:
        signature.bind(**offered)
    except TypeError as error:
        raise Refused(
            who,
            expected="a function that needs nothing but num_classes and image_shape",
            got=str(error),
            mend="wrap it in a function that fills in the rest",
        ) from error

    def make() -> nn.Module:
        try:
            net = function(**offered)
        except Exception as error:
            raise Refused(who, expected="a call that returns a network", got=cause(error)) from error
        if not isinstance(net, nn.Module):
            raise Refused(who, expected="an nn.Module from the call", got=f"a {type(net).__name__}")
        return net

    return make
