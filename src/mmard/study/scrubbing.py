"""Records without the paths of the machine that they were made on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def scrubbed(command: str) -> str:
    """A command line in which every absolute path is its last name alone.

    >>> scrubbed("mmard study run all --runs /home/me/runs/S --data-dir=/data/cifar10 --jobs 2")
    'mmard study run all --runs S --data-dir=cifar10 --jobs 2'
    """
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        bare = Path(value).name if value.startswith((os.sep, "~")) else value
        words.append(option + equals + bare)
    if words and words[0] == "__main__.py":
        words[0] = "mmard"
    return shlex.join(words)


def without_paths(value: Any, places: Iterable[str | Path | None]) -> Any:
    """A JSON value in which no string names one of these folders, the home folder or the working folder.

    >>> without_paths({"got": ["file /data/x/y.bin"]}, ["/data/x"])
    {'got': ['file x/y.bin']}
    """
    named = {str(Path(place)) for place in (*places, Path.cwd(), Path.home()) if place is not None}
    absolute = {str(Path(each).resolve()) for each in named} | named
    return _replaced(value, sorted((each for each in absolute if len(Path(each).parts) > 1), key=len, reverse=True))


def _replaced(value: Any, places: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, places) for each in value]
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, Path(place).name)
    return value
