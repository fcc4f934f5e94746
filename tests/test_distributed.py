"""Several processes compute what one does, agree, and say so when one is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank
import started
import torch
from laws import over
from nets import PAIRED, PLUGGED, SPECS

from mmard.errors import Refused
from mmard.methods import METHODS
from mmard.ranks import Lost, Ranks, joined, raising_lost
from mmard.run import Run
from mmard.training.step import synchronised

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent


def launched(*arguments: str) -> subprocess.Popen[str]:
    """`mmard` in two processes of this machine, by PyTorch's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
        "-m",
        "mmard",
    ]
    paths = os.pathsep.join([str(ROOT / "src"), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def said(process: subprocess.Popen[str], seconds: float = 240) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def specs() -> list[str]:
    """Every method, and every plug-in on some hosts."""
    plugged = [f"{host}{plug}" for host in (*PAIRED, "trades") for plug in PLUGGED if host + plug in SPECS and plug]
    return [*METHODS, *plugged]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes got out of a few steps of every method."""
    out = tmp_path_factory.mktemp("ranks")
    processes = started.ranks(2, rank.leave_steps, out, specs())
    text = started.said(processes)
    assert [each.returncode for each in processes] == [0, 0], text
    return [torch.load(out / f"{number}.pt", weights_only=True) for number in range(2)]


@over("spec", specs())
def test_two_processes_equal_one(two, spec):
    alone = rank.taken(spec, None)
    for each in two:
        assert each[spec].keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(each[spec][name], value, rtol=1e-12, atol=1e-12), (spec, name)


def test_rows_are_gathered_in_the_order_of_the_processes(two):
    drawn = [
        torch.rand(3, generator=rank.generator("cpu", 0, "spread", number), dtype=torch.float64) for number in (0, 1)
    ]
    assert torch.equal(two[0]["gathered"], torch.cat([drawn[0], drawn[1][:2]]))
    assert torch.equal(two[0]["gathered"], two[1]["gathered"])


@pytest.mark.parametrize(("n", "size"), [(8, 3), (7, 2), (5, 5), (128, 8)])
def test_shares_cover_the_batch_once(n, size):
    taken = [Ranks(number, size, 0, None, None).rows(n) for number in range(size)]
    assert [row for rows in taken for row in range(rows.start, rows.stop)] == list(range(n))
    lengths = [rows.stop - rows.start for rows in taken]
    assert lengths == Ranks(0, size, 0, None, None).shares(n)
    assert max(lengths) - min(lengths) <= 1


def test_one_process_is_none():
    with joined(on_gpus=False) as found:
        assert found is None


def test_only_errors_of_the_transport_are_called_a_loss():
    ranks = Ranks(0, 2, 0, None, None)
    with pytest.raises(Lost, match="go on with --resume"), raising_lost(ranks):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), raising_lost(ranks):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="Connection"), raising_lost(None):
        raise RuntimeError("Connection")


def test_synchronised_statistics_need_gpus():
    with pytest.raises(Refused, match="expected GPUs"):
        synchronised(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)))


def test_a_silent_run_writes_nothing(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0})
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    silent = Run(run.path, writes=False)
    with silent.lock():
        silent.note_environment()
        silent.note_engine({"S": {}})
        silent.append({"kind": "start"})
        silent.rewind_log(0, 0)
        silent.save_weights("last", {"w": torch.zeros(1)}, {})
        silent.save_state({"w": torch.zeros(1)}, {})
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


# the command line --------------------------------------------------------------------------------
TRAIN = (
    "train",
    "--model",
    "cnn-4",
    "--data",
    "digits",
    "--method",
    "trades",
    "--limit-train",
    "256",
    "--threads",
    "1",
)


def together(*arguments: str) -> tuple[list[int | None], str]:
    """The exit codes of two processes of one `mmard`, and what they said."""
    processes = started.ranks(2, started.type_, arguments)
    text = started.said(processes)
    return [each.returncode for each in processes], text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two processes that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, text = together(*TRAIN, "--epochs", "3", "--average", "ema", "--out", str(out))
    assert codes == [0, 0], text
    assert text.count("epoch 3/3") == 1, "both processes spoke"
    return out


def weights(folder: Path, which: str) -> dict[str, torch.Tensor]:
    return Run.open(folder).load_weights(which)[0]


def test_a_lost_process_ends_the_training_and_it_resumes_to_the_same_bits(whole, tmp_path):
    out = tmp_path / "run"
    arguments = (*TRAIN, "--epochs", "3", "--average", "ema", "--save-seconds", "0", "--out", str(out))
    process = launched(*arguments)
    try:
        deadline = time.monotonic() + 200
        while not (out / "state.safetensors").exists():
            assert process.poll() is None, said(process)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        began = time.monotonic()
        os.kill(int(children[1]), signal.SIGKILL)
        said(process)
        assert process.returncode != 0
        assert time.monotonic() - began < 60
    finally:
        process.kill()
    codes, text = together("train", "--resume", str(out))
    assert codes == [0, 0], text
    for which in ("last", "best"):
        expected, got = weights(whole, which), weights(out, which)
        assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_resuming_on_another_number_of_processes_is_refused(whole, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in whole.iterdir():
        if file.is_file() and file.name != ".lock":
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "epochs": 4}))
    tensors, facts = Run.open(copy).load_state()
    facts["position"]["finished"] = False
    Run.open(copy).save_state(tensors, facts)
    alone = started.mmard("train", "--resume", str(copy))
    _, err = alone.communicate()
    assert alone.returncode == 2
    assert "expected 2, as it began with, got 1" in err


def test_what_several_processes_cannot_do_is_refused_at_the_door(tmp_path):
    codes, text = together(*TRAIN, "--batch-size", "3", "--out", str(tmp_path / "run"))
    assert codes == [2, 2]
    assert "expected at least 4, two images for each of 2 processes, got 3" in text
    assert not (tmp_path / "run").exists()
