"""Threads that nobody said: one or all, whichever is faster, and kept with the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from little import net, picture_splits

from mmard.api import train
from mmard.cli import answer
from mmard.engine import threads
from mmard.engine.threads import faster, take_threads
from mmard.run import Run

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "steps": 1, "val_attack": "pgd-1", "budget": 0.05}


class Clock:
    """A clock that a pass moves on, by as much as that number of threads takes."""

    def __init__(self, takes: dict[int, float]) -> None:
        self.takes, self.now = takes, 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += self.takes[torch.get_num_threads()]


@pytest.fixture
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("takes", "expected", "gain"),
    [({1: 1.0, 3: 0.5}, 3, 2.0), ({1: 1.0, 3: 4.0}, 1, 0.25), ({1: 1.0, 3: 1.0}, 1, 1.0), ({1: 1.04, 3: 1.0}, 1, 1.04)],
)
def test_several_are_taken_where_they_are_faster(
    takes: dict[int, float], expected: int, gain: float, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(takes)
    monkeypatch.setattr(threads, "time", clock)
    assert faster(clock.work, 3) == (expected, pytest.approx(gain))
    assert torch.get_num_threads() == 3, "put back"


def test_the_network_and_its_draws_are_left_as_they_were(three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = net(dropout=0.5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    drawn = torch.get_rng_state()
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    found, notes = take_threads(network, (1, 4, 4), 16)
    assert found in (1, 3)
    assert [words in note for words, note in zip(("as fast as one", "load 1000.0 on"), notes, strict=True)] == [
        True
    ] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in network.parameters())


def test_what_was_chosen_stays_with_the_run(three: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(threads, "faster", lambda work, most: (1, 0.5))

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] != "start":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(net(), data=picture_splits(), out=tmp_path / "run", observers=[stop], **QUICK)
    run = Run.open(tmp_path / "run")
    assert run.config["threads"] == 1
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "faster", lambda work, most: pytest.fail("a resumed run chooses nothing"))
    train(net(), data=picture_splits(), out=tmp_path / "run", resume=True)
    assert torch.get_num_threads() == 1


def test_what_is_said_is_done(three: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(threads, "faster", lambda work, most: pytest.fail("nothing is to be chosen"))
    train(net(), data=picture_splits(), out=tmp_path / "run", threads=2, **QUICK)
    assert (torch.get_num_threads(), Run.open(tmp_path / "run").config["threads"]) == (2, 2)


def test_evaluations_take_what_suits_them_or_what_is_said(
    three: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(train("cnn-2", data="digits", limit_train=32, threads=1, out=tmp_path / "run", **QUICK).run.path)
    monkeypatch.setattr(threads, "faster", lambda work, most: (1, 0.5))
    for command in ("evaluate", "transfer"):
        asked = [command, run, *([run] if command == "transfer" else []), "--attack", "fgsm", "--first", "4"]
        torch.set_num_threads(3)
        assert answer(asked) == 0
        assert torch.get_num_threads() == 1
        assert "1 thread: 3 are 0.50 times as fast as one; --threads says another number" in capsys.readouterr().out
        assert answer([*asked, "--threads", "2"]) == 0
        assert torch.get_num_threads() == 2
        assert "times as fast as one" not in capsys.readouterr().out
