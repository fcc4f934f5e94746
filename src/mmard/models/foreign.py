"""Networks from other people's code, named as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

from mmard.errors import Refused
from mmard.models.probe import cause


def foreign(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    """Import `package.module` and return `function`, ready to be called.

    It is called with those of `num_classes=...` and `image_shape=...` that its signature takes. Importing runs that
    module's code: the name is as trusted as the code that it points to.

    Raises:
        Refused: if the module or the function is not there, the import fails, or the function needs more arguments; and
            from the call, if that fails or returns something else than an `nn.Module`.
    """
    who = f"network {name!r}"
    function = _find(name)
    offered: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape}
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Some callables written in C show no signature.
        signature = inspect.Signature()
    taken = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    if not any(p.kind is p.VAR_KEYWORD for p in taken):
        offered = {p.name: offered[p.name] for p in taken if p.name in offered}
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


def _find(name: str) -> Callable[..., Any]:
    who = f"network {name!r}"
    path, _, attribute = name.partition(":")
    if not path or path.startswith(".") or not attribute.isidentifier():
        raise Refused(who, expected="package.module:function", got=repr(name))
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        absent = error.name is not None and (path == error.name or path.startswith(error.name + "."))
        raise Refused(
            who,
            expected=f"a module {path!r} that can be imported",
            got=str(error),
            mend="is its folder on PYTHONPATH?" if absent else f"{path} itself needs it: install it",
        ) from error
    except Exception as error:
        raise Refused(who, expected=f"a module {path!r} that can be imported", got=cause(error)) from error
    if not hasattr(module, attribute):
        near = get_close_matches(attribute, dir(module), n=1)
        raise Refused(
            who,
            expected=f"a function {attribute!r} in {path}",
            got="no such name there",
            mend=f"did you mean {path + ':' + near[0]!r}?" if near else "",
        )
    function: Callable[..., Any] = getattr(module, attribute)
    if isinstance(function, nn.Module) or not callable(function):
        raise Refused(
            who,
            expected="a function or class that makes a network",
            got=f"an object of type {type(function).__name__}",
            mend="wrap it in a function that returns a new network" if isinstance(function, nn.Module) else "",
        )
    return function
