"""What holds for every test: one thread, repeatable examples, no network."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
from hypothesis import settings

HERE = (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname())

# The same examples every time, so that a red run is red again; no clock, since two cores may be busy.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is collected, so that doctests and imports are held to it as well."""
    torch.set_num_threads(1)
    os.environ["MMARD_TRUST_CODE"] = "little:matcher,little:digits_matcher,little:plain_net,little:net"
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(sock: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            _stay_here(address[0])
        connect(sock, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _stay_here(host)
        return look_up(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.getaddrinfo = guarded_look_up


def _stay_here(host: Any) -> None:
    """Fail the test; an ordinary exception might be caught by the code under test, which then goes on."""
    if host not in HERE:
        pytest.fail(f"a test reached for the network: {host}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
