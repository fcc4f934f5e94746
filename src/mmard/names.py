"""How methods and networks are named: what a name means, or the refusal of one that means nothing.

Nothing here needs PyTorch or the tables themselves, so that a command line can be refused before it is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from mmard.errors import Refused, require, unknown
from mmard.trust import is_code


def read_method(spec: str, methods: Collection[str], plugins: Collection[str]) -> tuple[str, list[str]]:
    """The method and the plug-ins that a name such as "rslad+mmard" holds; each may be code of somebody's own.

    >>> read_method("rslad + mmard", ["rslad"], ["mmard"])
    ('rslad', ['mmard'])

    Raises:
        Refused: for a name that no table holds, a plug-in without a method, or one that is said twice.
    """
    host, *found = (part.strip() for part in spec.split("+"))
    if host in plugins:
        where, got = f"method {spec!r}", f"the plug-in {host!r}"
        raise Refused(where, expected="a method first", got=got, mend=f"write e.g. rslad+{host}")
    if host not in methods and not is_code(host):
        raise unknown("method", host, methods)
    for plugin in found:
        if plugin not in plugins and not is_code(plugin):
            raise unknown("plug-in", plugin, plugins)
    twice = [name for name in found if found.count(name) > 1]
    require(not twice, f"method {spec!r}", expected="each plug-in once", got=f"{''.join(twice[:1])} twice")
    return host, found


@dataclass(frozen=True)
class Spelling:
    """How the networks of one family are spelt.

    Attributes:
        numbers: what the numbers in a name are, e.g. ("depth", "width").
        usual: the sizes in common use.
        form: what stands behind the numbers, such as "swish".
    """

    numbers: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    form: str = ""

    def spelt(self, key: str, *numbers: object) -> str:
        """The name of a network of the family that this key has."""
        stem = key.removesuffix(f"-{self.form}") if self.form else key
        return "-".join([stem, *map(str, numbers), *([self.form] if self.form else [])])


def network_names(families: Mapping[str, Spelling]) -> tuple[str, ...]:
    """Every network, families in their usual sizes."""
    found: list[str] = []
    for key, family in families.items():
        found += [family.spelt(key, size) for size in family.usual] or [family.spelt(key)]
    return tuple(found)


def read_network(name: str, families: Mapping[str, Spelling]) -> tuple[str, tuple[int, ...]]:
    """The key of a family and the numbers that a network's name holds; case does not matter, nor "-" or "_".

    >>> read_network("Wide-ResNet-40-2", {"wide_resnet": Spelling(("depth", "width"))})
    ('wide_resnet', (40, 2))

    Raises:
        Refused: for a name that is none, or a family's without its sizes.
    """
    for key, family in families.items():
        form = f"-{family.form}" if family.form else ""
        stem = _plain(key).removesuffix(form)
        match = re.fullmatch(re.escape(stem) + r"((?:-[0-9]+)*)" + re.escape(form), _plain(name))
        if match is None:
            continue
        numbers = tuple(map(int, match[1].split("-")[1:]))
        if len(numbers) != len(family.numbers):
            raise Refused(
                f"network {name!r}",
                expected=family.spelt(key, *(f"<{number}>" for number in family.numbers)),
                got=repr(name),
                mend=f"for example {family.spelt(key, family.usual[0])}" if family.usual else "",
            )
        return key, numbers
    # `wrn-40-2` is best answered by `wide_resnet-40-2`, a size that no list holds.
    found = re.findall("[0-9]+", name)
    spelt = [f.spelt(key, *found) for key, f in families.items() if 0 < len(f.numbers) == len(found)]
    known = network_names(families)
    some = network_names({key: replace(family, usual=family.usual[:2]) for key, family in families.items()})
    raise unknown("network", name.lower(), {*some, *get_close_matches(name.lower(), [*known, *spelt], 1, 0.5)})


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")
