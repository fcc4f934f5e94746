"""`mmard doctor`: what this machine and this environment have for trainings and attacks."""

from __future__ import annotations

import os
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.text import Text

from mmard.cli.options import Json, command
from mmard.screen import busy, console, line, print_json, put, rich_table
from mmard.words import plural

FULL = 2 * 2**30
"""Bytes below which a disk is called full: a state of a large network and its best weights take about as much."""


@command("Look", "mmard doctor")
def doctor(options: Json) -> None:
    """PyTorch's build, the device, threads and load, bfloat16, installed extras, and room on disk."""
    with busy("looking"):
        found = examined()
    if options.as_json:
        print_json(found)
        return
    out = console()
    rows = rich_table("", "", fold=("",))
    rows.show_header = False
    cpu, memory = found["cpu"], found["disk"]
    device = ", ".join(f"{gpu['name']}, {gpu['gib']:.0f} GiB" for gpu in found["gpus"]) or "cpu; PyTorch sees no GPU"
    load = "unknown" if cpu["load"] is None else f"{cpu['load']:.1f}"
    for key, text in (
        ("mmard", f"{found['mmard']}, Python {found['python']}, {found['platform']}"),
        ("PyTorch", f"{found['torch']['version']}, {found['torch']['build']}"),
        ("device", device),
        ("CPU", f"{cpu['name']}, {plural(cpu['cores'], 'core')} for this process, code for {cpu['capability']}"),
        ("threads", f"{cpu['threads']}; load {load}"),
        ("bfloat16", "in hardware: --precision auto times it" if found["bf16"] else "none in hardware: fp32 is used"),
        *((f"disk, {where}", f"{free / 2**30:,.1f} GiB free in {path}") for where, (path, free) in memory.items()),
    ):
        rows.add_row(Text(key, "quiet"), text)
    put(out, rows)
    out.print()
    line(out, 'extras: pip install "mmard[NAME]"', "strong")
    rows = rich_table("name", "packages", fold=("packages",))
    for name, packages in found["extras"].items():
        parts = [
            f"{package} {version}" if version else f"{package} not installed" for package, version in packages.items()
        ]
        rows.add_row(Text(name, "command" if all(packages.values()) else "quiet"), ", ".join(parts))
    put(out, rows)
    for note in found["notes"]:
        out.print()
        line(out, f"note: {note}")


def examined() -> dict[str, Any]:
    """All of it, as JSON holds it."""
    import torch

    from mmard.engine.twin import has_bf16
    from mmard.networks import pick_device
    from mmard.run import environment

    known = environment()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    disk = {"here": str(Path.cwd()), "cache": str(Path.home() / ".cache")}
    free = {where: (path, _free(Path(path))) for where, path in disk.items()}
    notes = []
    if load is not None and load > cores:
        mend = ", and with --threads 1 possibly less so" if known["threads"] > 1 else ""
        notes.append(f"other processes use the CPU, load {load:.1f} on {plural(cores, 'core')}: all is slower{mend}")
    if known["threads"] > cores:
        notes.append(
            f"{known['threads']} threads for {plural(cores, 'core')}: set --threads {cores} or OMP_NUM_THREADS"
        )
    if torch.version.cuda and not gpus:
        notes.append(
            "this PyTorch is built for CUDA and sees no GPU: is its driver installed, CUDA_VISIBLE_DEVICES empty?"
        )
    notes += [f"little room in {path}: {room / 2**30:.1f} GiB" for path, room in free.values() if room < FULL]
    return {
        **{key: known[key] for key in ("mmard", "commit", "python", "platform", "versions")},
        "torch": {
            "version": torch.__version__,
            "build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        },
        "device": str(pick_device("auto")),
        "gpus": [{"name": gpu.name, "gib": gpu.total_memory / 2**30} for gpu in gpus],
        "cpu": {
            "name": known["cpu"],
            "cores": cores,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": known["threads"],
            "load": load,
        },
        "bf16": has_bf16(pick_device("auto")),
        "disk": free,
        "extras": extras(),
        "notes": notes,
    }


def _free(path: Path) -> int:
    """Bytes that are free where a path is, or would be."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free


def extras() -> dict[str, dict[str, str | None]]:
    """The packages of each extra of mmard's, with the installed version, or None."""
    found: dict[str, dict[str, str | None]] = {}
    try:
        asked = metadata.requires("mmard") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return found
    for text in asked:
        parts = re.fullmatch(r"([\w.-]+)[^;]*;.*extra\s*==\s*['\"]([\w-]+)['\"].*", text)
        if parts is None or parts[2] == "dev":
            continue
        try:
            version: str | None = metadata.version(parts[1])
        except metadata.PackageNotFoundError:
            version = None
        found.setdefault(parts[2], {})[parts[1]] = version
    return found
