"""The catalogue: every method and plug-in by name, and how a name such as "rslad+mmard" is built.

Adding a method takes its file, one line here, and one golden test. The command line, the tables, the common tests and
the benchmark read these tables.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from mmard.errors import Refused, cause, unknown
from mmard.method import Method, halves
from mmard.methods.absld import absld as absld
from mmard.methods.adaad import adaad as adaad
from mmard.methods.adaad import adaiad as adaiad
from mmard.methods.adr import adr as adr
from mmard.methods.akd2 import akd2 as akd2
from mmard.methods.ard import ard as ard
from mmard.methods.awp import awp as awp
from mmard.methods.b_mtard import b_mtard as b_mtard
from mmard.methods.ciard import ciard as ciard
from mmard.methods.dgad import dgad as dgad
from mmard.methods.fair import fair as fair
from mmard.methods.fgsm_rs import fgsm_rs as fgsm_rs
from mmard.methods.hat import hat as hat
from mmard.methods.iad import iad_i as iad_i
from mmard.methods.iad import iad_ii as iad_ii
from mmard.methods.igdm import igdm as igdm
from mmard.methods.kd import kd as kd
from mmard.methods.lbgat import lbgat as lbgat
from mmard.methods.mart import mart as mart
from mmard.methods.mmard import mmard as mmard
from mmard.methods.mtard import mtard as mtard
from mmard.methods.n_fgsm import n_fgsm as n_fgsm
from mmard.methods.natural import natural as natural
from mmard.methods.peeraid import peeraid as peeraid
from mmard.methods.pgd_at import pgd_at as pgd_at
from mmard.methods.rslad import rslad as rslad
from mmard.methods.saad import saad as saad
from mmard.methods.temperature import temperature as temperature
from mmard.methods.trades import trades as trades
from mmard.names import read_method
from mmard.trust import import_code, is_code, refuse_untrusted

METHODS: dict[str, Callable[..., Method]] = {
    "natural": natural,
    "pgd_at": pgd_at,
    "trades": trades,
    "mart": mart,
    "fgsm_rs": fgsm_rs,
    "n_fgsm": n_fgsm,
    "lbgat": lbgat,
    "hat": hat,
    "kd": kd,
    "ard": ard,
    "akd2": akd2,
    "iad_i": iad_i,
    "iad_ii": iad_ii,
    "rslad": rslad,
    "mtard": mtard,
    "adaad": adaad,
    "adaiad": adaiad,
    "b_mtard": b_mtard,
    "absld": absld,
    "peeraid": peeraid,
    "dgad": dgad,
    "ciard": ciard,
    "saad": saad,
}
"""Name -> function of a method's own parameters, returning the method."""

PLUGINS: dict[str, Callable[..., Method]] = {
    "igdm": igdm,
    "mmard": mmard,
    "fair": fair,
    "awp": awp,
    "temperature": temperature,
    "adr": adr,
}
"""Name -> function of a host and the plug-in's own parameters, returning the grown method."""

Value = float | int | bool | str


def maker(name: str) -> Callable[..., Method]:
    """The function of a method or plug-in by name, or of `package.module:function` that a person has typed.

    Raises:
        Refused: for a name that is none, code that only a file names, or that cannot be imported or has a parameter
            without a default.
    """
    make = METHODS.get(name) or PLUGINS.get(name)
    if make is not None:
        return make
    if not is_code(name):
        raise unknown("method", name, (*METHODS, *PLUGINS))
    refuse_untrusted(name, f"method {name}")
    make = import_code(name, "method")
    for key, parameter in inspect.signature(make).parameters.items():
        if key != "host" and type(parameter.default) not in (float, int, bool, str):
            expected = "parameters whose defaults are numbers, texts, or true and false"
            raise Refused(f"method {name}", expected=expected, got=f"{key} without one")
    return make


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method or plug-in by name, with their defaults; a plug-in's host is not among them."""
    return {k: p for k, p in inspect.signature(maker(name)).parameters.items() if k != "host"}


def every_parameter(specs: Iterable[str], params: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """The parameters of all methods and plug-ins that these names hold, by full name: as said, or their defaults.

    Raises:
        Refused: for unknown names, parameters of something that no spec holds, or values of the wrong kind.

    >>> every_parameter(["rslad"], {"rslad.alpha": "0.5"})
    {'rslad.alpha': 0.5, 'rslad.scale': 1.0}
    """
    members = tuple(dict.fromkeys(part.strip() for spec in specs for part in spec.split("+")))
    said = _sorted_out(params or {}, members)
    return {f"{name}.{key}": said[name].get(key, p.default) for name in members for key, p in parameters(name).items()}


def build(spec: str, params: Mapping[str, Value] | None = None) -> Method:
    """The method that a name describes: "rslad", "rslad+mmard", "adaad+igdm+mmard".

    Plug-ins are applied from left to right.

    Args:
        spec: a method, then any number of plug-ins, joined by "+".
        params: values by full name, e.g. {"mmard.guide": 0.5}.

    Raises:
        Refused: for unknown names, parameters of something that `spec` does not hold, or values of the wrong kind.

    >>> build("rslad+mmard", {"mmard.measure": "kl"}).name
    'rslad+mmard'
    """
    host, plugins = read_method(spec, METHODS, PLUGINS)
    own = _sorted_out(params or {}, (host, *plugins))
    method = _made(host, **own[host])
    for plugin in plugins:
        method = _made(plugin, method, **own[plugin])
    return method


def _made(name: str, *host: Method, **own: Any) -> Method:
    """A method, or one grown by a plug-in; that of somebody's own code bears the name it was called by."""
    make = maker(name)
    if not is_code(name):
        return make(*host, **own)
    if ("host" in inspect.signature(make).parameters) != bool(host):
        kinds = ("a method, which takes no host", "a plug-in, whose first parameter is host")
        raise Refused(f"method {name}", expected=kinds[bool(host)], got=kinds[not host].split(",")[0])
    try:
        made = make(*host, **own)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"method {name}", expected="a call that makes a method", got=cause(error)) from error
    if not isinstance(made, Method):
        raise Refused(f"method {name}", expected="a Method from the call", got=f"a {type(made).__name__}")
    return replace(made, name="+".join([*(each.name for each in host), name]))


def compose(
    method: str, inner: str | None = None, outer: str | None = None, params: Mapping[str, Value] | None = None
) -> Method:
    """The method of a run: `method`, or with its attack or its loss exchanged for that of another.

    Args:
        method: as in `build`; stands for both halves.
        inner: whose attack to take instead, if any.
        outer: whose loss to take instead, if any.
        params: values by full name; each must belong to a method or plug-in that is named.
    """
    if inner is None and outer is None:
        return build(method, params)
    names = (inner or method, outer or method)
    params = params or {}
    known = {part.strip() for name in names for part in name.split("+")}
    _sorted_out(params, tuple(known))
    made = [
        build(name, {k: v for k, v in params.items() if k.rpartition(".")[0] in {p.strip() for p in name.split("+")}})
        for name in names
    ]
    return halves(*made)


def _sorted_out(params: Mapping[str, Value], members: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    own: dict[str, dict[str, Any]] = {name: {} for name in members}
    known = {f"{name}.{key}": p for name in members for key, p in parameters(name).items()}
    for full, value in params.items():
        if not known:
            name = " and ".join(members)
            raise Refused(f"parameter {full!r}", expected=f"none, since {name} has no parameter", got=repr(full))
        if full not in known:
            raise unknown("parameter", full, known)
        name, _, key = full.rpartition(".")
        own[name][key] = _as_kind_of(known[full].default, value, full)
    return own


def _as_kind_of(default: Value, value: Value, name: str) -> Value:
    """The value as the kind that the default has. Text from a command line is read; a kind is never guessed."""
    kind = type(default)
    if isinstance(value, str) and kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind is str:
        return value
    if isinstance(value, bool) and kind is bool:
        return value
    if kind in (int, float) and not isinstance(value, bool):
        number = _number(value)
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
    raise Refused(f"parameter {name}", expected=f"a {kind.__name__}, such as {default!r}", got=repr(value))


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan
