"""Packages that only some forms of files need, imported when such a file is met."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmard.errors import needs_extra


def optional(module: str, purpose: str, package: str = "", extra: str = "data") -> Any:
    """The module, imported now.

    Raises:
        Refused: if it is not installed, naming `package` (by default the module's first name) and the extra.
    """
    try:
        return import_module(module)
    except ImportError:
        raise needs_extra(package or module.partition(".")[0], extra, purpose) from None
