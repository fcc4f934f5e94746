"""A run as others get it: weights, settings, figures, findings and a card, without what is of this machine alone.

    README.md          the card; its head is what the hub reads
    config.json        the settings, without folders of this machine
    best.safetensors, last.safetensors
    environment.json, epochs.jsonl, scores/, findings/   as in the run, likewise

It is a run folder itself, from which one evaluates, distils and compares. What a training would resume from stays
behind, and so does its log between the ends of epochs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmard.errors import Refused
from mmard.networks import GIVEN
from mmard.run import Run
from mmard.share.card import WEIGHTS, card
from mmard.storage import read_json, write_json, write_whole
from mmard.weights import load_tensors, save_tensors

SHARED = re.compile(
    r"README\.md|config\.json|environment\.json|pushed\.json|epochs\.jsonl|(?:best|last)\.safetensors"
    r"|(?:scores|findings)/[A-Za-z0-9.,@+_-]+\.(?:json|npy|npz)"
)
"""Files that a shared run has; nothing else is written, and nothing else is brought back."""

_FOLDERS = re.compile(r"(?<![\w.])(?<!:/)(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+")


def write_shared(run: Run, to: Path, name: str, licence: str | None = None) -> list[str]:
    """Write a run's shared form into a new or empty folder; the names of its files.

    Args:
        name: of the network on its card.
        licence: of the weights, by its short name at the hub, e.g. "mit"; None says nothing.

    Raises:
        Refused: if the run has no weights or a network that nobody else can build, or the folder is in use.
    """
    held = {which: load_tensors(run.weights_file(which)) for which in WEIGHTS if run.weights_file(which).is_file()}
    if not held:
        raise Refused(str(run.path), expected="a run with weights", got="none", mend="has it been trained?")
    for _, facts in held.values():
        refuse_code(str(facts.get("network", "")), str(run.path))
    Run.refuse_taken(to)
    to.mkdir(parents=True, exist_ok=True)
    for which, (tensors, facts) in held.items():
        save_tensors(to / f"{which}.safetensors", tensors, without_folders(facts))
    write_json(to / "config.json", shared_config(run.config))
    for file in _beside(run):
        target = to / file.relative_to(run.path)
        target.parent.mkdir(exist_ok=True)
        if file.suffix == ".json":
            write_json(target, without_folders(read_json(file)))
        else:
            content = file.read_bytes()
            write_whole(target, lambda temporary, content=content: _write(temporary, content))  # type: ignore[misc]
    epochs = [without_folders(event) for event in run.log() if event.get("kind") == "epoch"]
    if epochs:
        text = "".join(json.dumps(event) + "\n" for event in epochs)
        write_whole(to / "epochs.jsonl", lambda temporary: _write(temporary, text.encode()))
    shown = card(Run(to), name, licence)
    write_whole(to / "README.md", lambda temporary: _write(temporary, shown.encode()))
    names = sorted(str(file.relative_to(to).as_posix()) for file in to.rglob("*") if file.is_file())
    assert all(SHARED.fullmatch(each) for each in names), names
    return names


def shared_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings for others: where data and tables lay is left out, and folders before a name are."""
    left = {"data_dir": None, "teacher_table": "off"}
    found: dict[str, Any] = without_folders(dict(config))
    return {key: left.get(key, value) if key in left else value for key, value in found.items()}


def without_folders(value: Any) -> Any:
    """Any JSON, with absolute paths in its texts cut to their last name.

    >>> without_folders({"a": "mmard train --out /home/ada/runs/t --eps 8/255", "b": ["runs/t", 3]})
    {'a': 'mmard train --out t --eps 8/255', 'b': ['runs/t', 3]}
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return value


def refuse_code(network: str, where: str) -> None:
    """Refuse a network that only somebody's own code can build: reading it would import what a file names.

    Raises:
        Refused: for `package.module:function`, or an object that was handed over.
    """
    if ":" in network or network.startswith(GIVEN):
        mend = "`mmard models` lists those; share code of your own beside its weights, as a repository"
        raise Refused(where, expected="a network that mmard builds by name", got=network, mend=mend)


def _beside(run: Run) -> list[Path]:
    """Environment, and the records of figures and findings with their arrays."""
    named = [run.path / "environment.json"]
    for folder in (run.scores, run.findings_folder):
        named += [file for kind in ("json", "npy", "npz") for file in sorted(folder.glob(f"*.{kind}"))]
    return [file for file in named if file.is_file()]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
