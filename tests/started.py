"""Commands and functions in processes of their own, forked from a server that has imported torch already.

A fresh interpreter spends seconds of processor time on imports. Here they are paid once for all processes that a test
worker starts. The test process itself cannot be forked: autograd refuses to work in a fork of a process that used it.
What is asked about the launcher of PyTorch itself, or about what is imported, needs a real interpreter instead.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch.distributed", "mmard.cli", "mmard.api", "mmard.study.workers"])


class Started:
    """What `subprocess.Popen` offers to the tests, with standard output and error as text."""

    def __init__(self, work: Callable[..., Any], *arguments: Any, merged: bool = False, **environment: str) -> None:
        """`merged`: standard error goes where standard output goes."""
        out, ours = _FORKS.Pipe(duplex=False)
        err, theirs = (None, None) if merged else _FORKS.Pipe(duplex=False)
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        given = (ours, theirs, os.getcwd(), env, work, arguments)
        self._process = _FORKS.Process(target=_become, args=given)
        self._process.start()
        self.pid = self._process.pid
        ours.close()
        self.stdout = os.fdopen(os.dup(out.fileno()), encoding="utf-8")
        self.stderr = os.fdopen(os.dup(err.fileno()), encoding="utf-8") if err and theirs else None
        out.close()
        if err and theirs:
            theirs.close()
            err.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = 300) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a started process", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Whatever is left of it is ended, and nothing more of it is read."""
        self.kill()
        self.wait()
        self.stdout.close()
        if self.stderr:
            self.stderr.close()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """All that it says until it ends. Standard error is read last: it is short in every test."""
        with self.stdout:
            said = self.stdout.read()
        with self.stderr or io.StringIO() as stderr:
            errors = stderr.read()
        self.wait(timeout)
        return said, errors


def _become(
    out: Connection, err: Connection | None, folder: str, environment: Mapping[str, str], work: Any, arguments: Any
) -> None:
    import torch

    os.dup2(out.fileno(), 1)
    os.dup2((err or out).fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    work(*arguments)


def mmard(*arguments: str, **more: Any) -> Started:
    """The command line."""
    return Started(type_, arguments, **more)


def type_(arguments: Sequence[str]) -> None:
    from mmard.cli import answer

    raise SystemExit(answer(list(arguments)))


def ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Started]:
    """So many processes, each told which it is as PyTorch's launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    numbers = range(size)
    return [Started(work, *arguments, merged=True, **shared, RANK=str(k), LOCAL_RANK=str(k)) for k in numbers]


def said(processes: Sequence[Started], seconds: float = 240) -> str:
    """What all of them print, one after the other, once they have ended."""
    until = time.monotonic() + seconds
    try:
        return "".join(process.communicate(max(until - time.monotonic(), 1))[0] for process in processes)
    finally:
        for process in processes:
            process.end()
