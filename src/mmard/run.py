"""The run folder: all that a training leaves on disk.

    config.json        every setting, defaults included; a run can be repeated from this file alone
    engine.json        what stood for each network in the attack, in which precision; a resumed run takes the same
    environment.json   versions, commit, hardware and command of every process that worked on the run
    log.jsonl          one object a line: steps, epochs, resumptions; a torn last line is dropped on reading
    state.safetensors  where training stands: weights, optimiser, averages, memory; counters as JSON in the header
    last.safetensors   weights at the end of an epoch       best.safetensors   weights that validation liked best
                       last-P, best-P and so on: of the same epochs, networks that are trained beside the student
    scores/            one JSON record and one mask of verdicts for each figure that was measured on these weights;
                       in scores/aa/ the verdicts so far of AutoAttack, from which a killed evaluation goes on
    findings/          what else an evaluation found: curves, classes, calibration, images; one JSON record each, arrays
                       beside it

From it a training resumes and reports are printed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mmard._version import __version__
from mmard.errors import Refused, require
from mmard.files import (
    append_line,
    foreign_files,
    load_tensors,
    read_json,
    save_tensors,
    write_array,
    write_arrays,
    write_json,
    write_text,
    writing_into,
)
from mmard.settings import Settings, of_run

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("torch", "numpy", "safetensors", "pydantic")
INSTRUCTIONS = frozenset(
    (
        *("sse4_1", "avx", "avx2", "avx_vnni", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2", "sme"),
    )
)
"""Instruction sets, as Linux calls them, by which the libraries under PyTorch choose their kernels."""
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that keep these libraries from instruction sets which the processor has."""


def environment() -> dict[str, Any]:
    """Versions, commit, hardware, thread count and command line of this process, as JSON holds them.

    "kernels" is what decides, beside versions and threads, in which order a CPU adds: the same training ends in the
    same bits only where all of it is the same.
    """
    import torch

    program = Path(sys.argv[0]).name
    return {
        "mmard": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu().get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": shlex.join(["mmard" if program == "__main__.py" else program, *sys.argv[1:]]),  # python -m mmard
        "written": now(),
    }


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The commit of this package's checkout; None where it is no checkout.

    With "+dirty" where tracked files differ from it, or the package holds files that it does not know.
    """
    here = Path(__file__).resolve().parent
    head = _git(here, "rev-parse", "HEAD")
    if head is None or _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    differs = changed or _git(here, "status", "--porcelain", "--", ".")
    return head + ("+dirty" if differs else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    if package == "torch":  # its own word names the build, 2.13.0+cu130, which a wheel's metadata may not
        import torch

        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def kernels() -> dict[str, Any]:
    """What the kernels of a CPU are chosen by: the processor, its instruction sets, limits on them, and the build."""
    import torch

    cpu, build = _cpu(), torch.__config__.show().splitlines()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    parts = [cpu[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in cpu]
    libraries = [line.strip(" -") for line in build if "Math Kernel Library" in line or "MKL-DNN" in line]
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": " ".join(parts),
        "instructions": " ".join(sorted(INSTRUCTIONS.intersection(flags))),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "onednn": torch.backends.mkldnn.is_available(),
        "build": "; ".join([f"PyTorch {torch.version.git_version}", *libraries]),
    }


def _cpu() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


P = ParamSpec("P")


def only_where_it_writes(act: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
    """A method of `Run` that does nothing in a process for which another one writes."""

    @wraps(act)
    def perhaps(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if run.writes:
            act(run, *args, **kwargs)

    return perhaps


Event = dict[str, Any]
"""One line of the log: a "kind" and numbers. Displays and trackers see the same events as the file."""
REMOVE = "remove it: the networks are then looked at anew, which is no longer the same run to the bit"
LOGGED = frozenset(
    ("kind", "step", "epoch", "epoch_step", "seconds", "lr", "loss", "images", "reach", "clean", "robust", "best")
)
"""What an event has beside the terms of the loss."""


def terms_of(event: Event) -> Event:
    """The terms of the loss in an event, by name.

    >>> terms_of({"kind": "step", "step": 3, "loss": 2.0, "adv": 1.5, "nat": 0.5})
    {'adv': 1.5, 'nat': 0.5}
    """
    return {name: value for name, value in event.items() if name not in LOGGED}


def _is_choice(record: object) -> bool:
    """Whether this says what stood for a network in the attack."""
    if not isinstance(record, dict) or not isinstance(twin := record.get("twin"), bool):
        return False
    numbers = ("folded", "norms", "packed", "convs", "traced") if twin else ()
    return all(isinstance(record.get(key), str) for key in ("precision", "why")) and all(
        isinstance(record.get(key), int) for key in numbers
    )


class Run:
    """A run folder that exists. Make one with `Run.create`, come back to it with `Run.open`.

    Args:
        path: of the folder.
        writes: whether a training in this process writes into it; of several processes the first one does.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.log_file = path / "log.jsonl"
        self.scores = path / "scores"
        self.autoattack = self.scores / "aa"
        self.findings_folder = path / "findings"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> Run:
        """A new folder with its config.

        Raises:
            Refused: if the folder holds a run or other files already, or cannot be written.
        """
        path = Path(path)
        cls.refuse_taken(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(str(path), expected="to make this folder", got=str(error.strerror or error)) from error
        run = cls(path)
        write_json(path / "config.json", dict(config))
        run.note_environment()
        return run

    @staticmethod
    def refuse_taken(path: str | Path) -> None:
        """Refuse an output folder that is in use."""
        path = Path(path)
        if (path / "config.json").exists():
            mend = f"resume it with --resume {path}, or choose another --out"
            raise Refused(str(path), expected="a new folder", got="one that holds a run", mend=mend)
        if path.exists() and (not path.is_dir() or foreign_files(path)):
            got = "one with other files" if path.is_dir() else "a file"
            raise Refused(str(path), expected="a new or empty folder", got=got, mend="choose another --out")

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A folder that holds a run.

        Raises:
            Refused: if there is none.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            got = "a folder without config.json" if path.is_dir() else "no such folder"
            mend = "mmard train and mmard distill make one with --out"
            raise Refused(str(path), expected="a run folder", got=got, mend=mend)
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that made this run."""
        loaded = read_json(self.path / "config.json")
        if not isinstance(loaded, dict):
            raise Refused(str(self.path / "config.json"), expected="an object of settings", got=type(loaded).__name__)
        found = of_run(loaded)
        return Settings.checked(found, str(self.path / "config.json")) if "method" in found else found

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Put other settings in the place of those that made this run; who calls this says why in the log."""
        write_json(self.path / "config.json", dict(config))

    @property
    def environment_file(self) -> Path:
        """Where the machines and versions of every start are kept."""
        return self.path / "environment.json"

    @only_where_it_writes
    def note_environment(self) -> None:
        """Add this process to environment.json."""
        file = self.environment_file
        earlier = read_json(file) if file.exists() else []
        require(isinstance(earlier, list), str(file), expected="a list of environments", got=type(earlier).__name__)
        write_json(file, [*earlier, environment()])

    @property
    def engine(self) -> dict[str, Any] | None:
        """What stood for each network in the attack, by letter; None for a run that has not said."""
        file = self.path / "engine.json"
        if not file.exists():
            return None
        found = read_json(file)
        holds = isinstance(found, dict) and all(map(_is_choice, found.values()))
        require(holds, str(file), expected="twin, precision and why of each network", got="something else", mend=REMOVE)
        assert isinstance(found, dict)
        return found

    @only_where_it_writes
    def note_engine(self, record: Mapping[str, Any]) -> None:
        """Keep what stands for each network, so that the run goes on with the same."""
        write_json(self.path / "engine.json", dict(record))

    def lock(self) -> AbstractContextManager[object]:
        """Taken here, given back by `with`: two processes never write one run. The system lets go if the process dies.

        Raises:
            Refused: if another process holds it.
        """
        if not self.writes:
            return nullcontext()
        with writing_into(self.path):
            try:
                # What acquire returns, not the lock itself: entering a lock would count it as taken twice.
                return FileLock(self.path / ".lock").acquire(timeout=0)
            except Timeout:
                got = "one that another process is training"
                raise Refused(str(self.path), expected="a run that nobody works on", got=got) from None

    @only_where_it_writes
    def append(self, event: Event) -> None:
        """Add one line to the log."""
        append_line(self.log_file, json.dumps(event))

    def log(self) -> list[Event]:
        """The events so far, oldest first."""
        if not self.log_file.exists():
            return []
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise Refused(str(self.log_file), expected="a log", got=str(error.strerror or error)) from None
        events = []
        for line in lines:
            # A process may have died while writing this line; whatever follows was written by a later one.
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                counted = isinstance(event, dict) and all(isinstance(event.get(k, 0), int) for k in ("step", "epoch"))
                if counted and isinstance(event.get("kind"), str):
                    events.append(event)
        return events

    @only_where_it_writes
    def rewind_log(self, step: int, epoch: int) -> None:
        """Drop what was logged after so many steps and finished epochs, so that resuming does not tell it twice."""
        kept = [json.dumps(e) + "\n" for e in self.log() if (e.get("step", 0), e.get("epoch", 0)) <= (step, epoch)]
        write_text(self.log_file, "".join(kept))

    def weights_file(self, which: str) -> Path:
        """Path of "last" or "best" weights."""
        return self.path / f"{which}.safetensors"

    @only_where_it_writes
    def save_weights(self, which: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write "last" or "best" weights with what a reader must know to use them."""
        save_tensors(self.weights_file(which), tensors, facts)

    def load_weights(self, which: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and facts of "last" or "best".

        Raises:
            Refused: if the run has not saved any.
        """
        file = self.weights_file(which)
        if not file.is_file():
            mend = "has it been trained? see mmard show"
            raise Refused(str(self.path), expected=f"{which} weights", got="a run without any", mend=mend)
        return load_tensors(file)

    @property
    def has_state(self) -> bool:
        """Whether training can resume from here rather than start."""
        return (self.path / "state.safetensors").is_file()

    @only_where_it_writes
    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write where training stands."""
        save_tensors(self.path / "state.safetensors", tensors, facts)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where training stood at the last save."""
        return load_tensors(self.path / "state.safetensors")

    def save_score(self, slug: str, record: Mapping[str, Any], mask: NDArray[np.bool_]) -> None:
        """Write one record and its mask; the mask first, so that a record never lacks it."""
        self.scores.mkdir(parents=True, exist_ok=True)
        write_array(self.scores / f"{slug}.npy", mask)
        write_json(self.scores / f"{slug}.json", dict(record))

    def score_records(self) -> list[dict[str, Any]]:
        """All records, by file name."""
        return [read_json(file) for file in sorted(self.scores.glob("*.json"))]

    def save_finding(
        self, slug: str, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Write one finding, and the arrays that it speaks of first, so that a record never lacks them."""
        self.findings_folder.mkdir(parents=True, exist_ok=True)
        if arrays:
            write_arrays(self.findings_folder / f"{slug}.npz", arrays)
        write_json(self.findings_folder / f"{slug}.json", dict(record))

    def findings(self) -> list[dict[str, Any]]:
        """All findings, by file name, each with its "slug"."""
        return [read_json(file) | {"slug": file.stem} for file in sorted(self.findings_folder.glob("*.json"))]

    def finding_arrays(self, slug: str) -> dict[str, NDArray[Any]]:
        """The arrays beside a finding, by name; none where it has none."""
        file = self.findings_folder / f"{slug}.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as held:
            return dict(held)
