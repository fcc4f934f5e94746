"""A training over two hosts, which are two network namespaces of this machine joined by a virtual cable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmard.run import Run

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {"mmard-one": "10.77.0.1", "mmard-two": "10.77.0.2"}
TRAIN = (
    "train", "--model", "cnn-4", "--data", "digits", "--method", "trades",
    "--limit-train", "256", "--epochs", "2", "--threads", "1",
)  # fmt: skip

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Names and addresses of two hosts."""
    if shutil.which("ip") is None:
        pytest.skip("no ip command (iproute2)")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        one, two = HOSTS
        ip("link", "add", "mm0", "netns", one, "type", "veth", "peer", "name", "mm1", "netns", two)
        for (name, address), cable in zip(HOSTS.items(), ("mm0", "mm1"), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield HOSTS
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_hosts_train_what_two_processes_of_one_host_do(hosts, tmp_path):
    base = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    command = ["-m", "mmard", *TRAIN, "--out"]

    def started(number: int, name: str, cable: str) -> subprocess.Popen[str]:
        where = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
        where += ["--master-addr", HOSTS["mmard-one"], "--master-port", "29577"]
        return subprocess.Popen(
            ["ip", "netns", "exec", name, *launcher, *where, *command, str(tmp_path / "hosts")],
            env={**base, "GLOO_SOCKET_IFNAME": cable},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    both = [started(n, name, cable) for n, (name, cable) in enumerate(zip(hosts, ("mm0", "mm1"), strict=True))]
    texts = [each.communicate(timeout=240)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], texts
    local = ["--nproc-per-node", "2", "--master-port", "29578"]
    subprocess.run([*launcher, *local, *command, str(tmp_path / "one")], env=base, check=True, capture_output=True)
    expected, _ = Run.open(tmp_path / "one").load_weights("last")
    got, _ = Run.open(tmp_path / "hosts").load_weights("last")
    assert all(torch.equal(got[name], value) for name, value in expected.items())
