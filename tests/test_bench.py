"""The benchmark: what is counted, what alternates, what the record holds. No figure of time is judged."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmard.bench import measure
from mmard.bench import measure as steps
from mmard.bench.machine import Allowance, OutOfTime, Peak, Spread, alternate, ceiling_of, ceilings, counted, ratios
from mmard.bench.measure import benchmark, hours
from mmard.bench.records import default_folder
from mmard.bench.variants import (
    GROWN,
    GUEST,
    HOST,
    KNOWN,
    PARTS,
    SHARES,
    SIZES,
    Case,
    Networks,
    checked,
    size_for,
    variant,
    variants_of,
)
from mmard.cli import answer
from mmard.engine.twin import has_bf16
from mmard.errors import Refused
from mmard.files import weights_hash
from mmard.methods import METHODS

CPU = torch.device("cpu")
TINY = SIZES["tiny"]


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at

    def work(self, seconds: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        def run() -> None:
            self.at += seconds
            if log is not None:
                log.append(name)

        return run


# timing -----------------------------------------------------------------------------------------------------------
def test_variants_alternate_forward_and_backward() -> None:
    clock, log = Hand(), list[str]()
    runs = {name: clock.work(k + 1.0, log, name) for k, name in enumerate("abc")}
    found = alternate(runs, clock, repeats=3, allowance=Allowance(math.inf, clock))
    assert "".join(log) == "abc" + "cba" + "abc"
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (2.9, 1), (3.1, 1), (6.0, 2), (8.9, 2), (100.0, 5)])
def test_a_round_is_begun_only_where_it_is_expected_to_end_in_time(seconds: float, rounds: int) -> None:
    clock = Hand()
    runs = {"a": clock.work(1.0), "b": clock.work(2.0)}
    assert len(alternate(runs, clock, repeats=5, allowance=Allowance(seconds, clock))["a"]) == rounds


def test_an_allowance_runs_out_and_its_parts_are_shares_of_what_is_left() -> None:
    clock = Hand()
    whole = Allowance(10, clock)
    clock.at = 4.0
    assert (whole.left, whole.part(0.5).left) == (6.0, 3.0)
    clock.at = 11.0
    assert (whole.left, whole.part(0.5).left) == (-1.0, 0.0)


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0, 1)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 2)
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_nothing_is_begun_after_the_end_and_a_round_that_is_not_whole_is_dropped() -> None:
    clock = Hand()
    runs = {"a": clock.work(1.0), "b": clock.work(2.0)}
    found = alternate(runs, clock, repeats=9, allowance=Allowance(100, clock, end=4.5).part(1.0))
    assert found == {"a": [1.0], "b": [2.0]}, "in the second round b ends at 5, and a is not begun"
    clock.at = 0.0
    with pytest.raises(OutOfTime):
        alternate(runs, clock, repeats=9, allowance=Allowance(100, clock, end=0.5), least=3)
    assert clock.at == 1.0, "the step at work is ended"


def test_ratios_without_quartiles_and_ratios_of_noise_are_said() -> None:
    assert str(Spread.of([1.3])) == "1.30"
    assert str(Spread.of([1.3, 1.1])) == "1.20"
    assert str(Spread.of([1.1, 1.2, 1.3])) == "1.20 [1.15, 1.25]"
    assert str(Spread.of([0.9, 1.02, 1.3])) == "1.02 [0.96, 1.16], noise"
    assert str(Spread.of([1.0] * 5)) == "1.00 [1.00, 1.00]", "the host in its own steps"


# counting ---------------------------------------------------------------------------------------------------------
def test_operations_and_bytes_of_a_convolution_and_its_input_gradient() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False).requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    forward = 2 * 2 * 64 * 5 * 27
    operations, moved = counted(lambda: conv(x))
    assert operations == forward
    assert moved == 4 * (x.numel() + conv.weight.numel() + 2 * 5 * 64)
    at = x.clone().requires_grad_()
    operations, _ = counted(lambda: torch.autograd.grad(conv(at).sum(), at))
    assert operations == 2 * forward, (
        "the gradient by the input costs what the forward costs, that by weights is not asked"
    )


def test_views_move_nothing() -> None:
    x = torch.ones(4, 4)
    assert counted(lambda: x.t().reshape(16)[3:]) == (0, 2 * 64), (
        "the reshape of the transpose copies, the rest does not"
    )


def test_a_step_costs_more_operations_with_more_attack_steps() -> None:
    networks = Networks(TINY.image_shape, CPU)
    few, many = (counted(variant(TINY.price, "plain", networks, replace(TINY, attack_steps=n)))[0] for n in (1, 3))
    assert many > few > 0


def test_peak_sees_what_was_taken_and_given_back() -> None:
    torch.ones(4)
    peak = Peak(CPU)
    taken = torch.ones(32 * 2**20)
    size = taken.nbytes
    del taken
    assert peak.bytes is None or 0.9 * size < peak.bytes < 3 * size


def test_ceilings_are_of_this_device() -> None:
    found = ceilings(CPU, Hand(), 8, 64, 1)
    assert set(found) == {"fp32", "conv_fp32", "copy"} | ({"bf16", "conv_bf16"} if has_bf16(CPU) else set())
    rates = {"fp32": 1.0, "conv_fp32": 2.0, "bf16": 4.0, "conv_bf16": 3.0}
    assert (ceiling_of(rates, "fp32", CPU), ceiling_of(rates, "bf16", CPU)) == (2.0, 4.0)


# what is timed ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_every_method_is_timed_and_the_plain_step_first(size: Any) -> None:
    assert [case.spec for case in size.methods] == [*METHODS, *GROWN]
    assert all(variants_of(case, CPU)[0] == "plain" for case in (*size.methods, *size.pairs))
    assert any(case.known and case.spec == HOST for case in size.pairs)
    assert size.price.spec == HOST


def test_shares_are_of_all_parts_and_of_the_whole() -> None:
    assert tuple(SHARES) == PARTS
    assert sum(SHARES.values()) == pytest.approx(1)


def test_only_narrows_and_adds() -> None:
    assert [c.spec for c in TINY.only(["adaad"], PARTS).methods] == ["adaad"]
    assert TINY.only(["adaad"], PARTS).pairs == ()
    assert [c.spec for c in TINY.only(["saad+mmard"], PARTS).methods] == ["saad+mmard"]
    assert TINY.only([], PARTS) == TINY


def test_names_are_refused_early() -> None:
    for call in (
        lambda: checked(["rlsad"], []),
        lambda: checked([], ["speed"]),
        lambda: size_for("huge", CPU),
        lambda: benchmark("tiny", minutes=0),
        lambda: benchmark("tiny", threads=0),
    ):
        with pytest.raises(Refused):
            call()


@pytest.mark.parametrize("spec", ["rslad", "peeraid", "iad_i", "mtard", "b_mtard", "rslad+awp"])
def test_timing_a_step_changes_no_network(spec: str) -> None:
    networks = Networks(TINY.image_shape, CPU)
    case = Case(spec, "cnn-1", "cnn-2", 4)
    made = variant(case, "fp32", networks, TINY)
    before = {k: weights_hash(n) for k, n in made.step.nets.items()}
    weights = {k: [p.clone() for p in n.parameters()] for k, n in made.step.nets.items()}
    steps_of_attack = made.step.attack
    made.warm()
    assert made.step.attack is steps_of_attack
    made()
    for letter, net_ in made.step.nets.items():
        if letter not in made.step.trained:
            assert weights_hash(net_) == before[letter]
        assert all(torch.equal(a, b) for a, b in zip(weights[letter], net_.parameters(), strict=True))
    assert made.step.trained["S"] is not networks("S", "cnn-1"), "variants share the student"


def test_a_known_prediction_saves_the_teacher_a_pass() -> None:
    networks = Networks(TINY.image_shape, CPU)
    asked = list[int]()
    networks("T", "cnn-2").register_forward_hook(lambda *_: asked.append(1))
    name = next(n for n in variants_of(TINY.pairs[0], CPU) if n.endswith(KNOWN))
    made = variant(TINY.pairs[0], name, networks, TINY)
    asked.clear()
    made()
    assert asked == []
    variant(TINY.pairs[0], "plain", networks, TINY)()
    assert asked == [1]


def test_what_is_shipped_is_marked_in_the_price() -> None:
    found = steps.forms()
    assert sum("default" in text for text in found) == 1
    assert all(set(own) <= {"mmard.teacher_every", "mmard.guide", "mmard.own", "mmard.beta"} for own in found.values())


def test_memory_that_does_not_suffice_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Case, *given: Any) -> dict[str, Any]:
        if case.spec == "kd":
            raise steps.NoRoom
        return {"method": case.spec}

    monkeypatch.setattr(steps, "_step_row", fails)
    cases = [Case(spec, "cnn-1", "cnn-2", 4) for spec in ("ard", "kd", "rslad")]
    rows, notes = steps.timed(cases, TINY, Networks(TINY.image_shape, CPU), Hand(), Allowance(9.0), {}, print)
    assert [row["method"] for row in rows] == ["ard", "rslad"]
    assert len(notes) == 1
    assert "out of memory" in notes[0]


def test_rows_that_time_does_not_suffice_for_are_told() -> None:
    clock = Hand()
    cases = [Case(spec, "cnn-1", "cnn-2", 4) for spec in ("ard", "kd")]
    networks = Networks(TINY.image_shape, CPU)
    rows, notes = steps.timed(cases, TINY, networks, clock, Allowance(9, clock, end=-1), {}, print)
    assert rows == []
    assert notes == ["no time for ard, kd: give more --minutes, or narrow by --only"]


def test_the_main_table_comes_first_and_what_time_did_not_suffice_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hand()
    monkeypatch.setattr(measure.time, "monotonic", clock)
    seen = list[str]()

    def hears(text: str) -> None:
        seen.append(text)
        clock.at += 100.0

    found = benchmark("tiny", only=["natural"], minutes=5, device="cpu", progress=hears)
    assert seen == ["ceilings", "natural, cnn-1", "the price of rslad+mmard, cnn-1 / cnn-2"]
    assert [row["method"] for row in found["methods"]] == ["natural"]
    for part in ("price", "attacks", "data"):
        assert f"no time for {part}: give more --minutes, or narrow by --part" in found["notes"]


# the record -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench")
    return benchmark("tiny", only=[HOST, "adaad", "natural"], out=out, device="cpu")


def test_the_record_is_what_its_file_holds(record: dict[str, Any]) -> None:
    file = Path(record["files"][0])
    held = json.loads(file.read_text(encoding="utf-8"))
    assert held == {key: own for key, own in record.items() if key != "files"}
    assert (held["kind"], held["format"], held["size"]["name"], held["device"]) == ("bench", 2, "tiny", "cpu")
    assert file.name.startswith(f"bench-{held['environment']['written'][:10]}-tiny-cpu-")
    for key in ("commit", "versions", "cpu", "threads", "command"):
        assert key in held["environment"]
    assert set(held["machine"]) == {"load_before", "load_after", "cores", "process_share"}
    assert held["environment"]["threads"] == 1
    assert held["clock"] == "time of the process, one thread"


def test_every_row_has_every_figure(record: dict[str, Any]) -> None:
    assert [row["method"] for row in record["methods"]] == ["natural", HOST, "adaad"]
    assert [row["method"] for row in record["pairs"]] == [HOST]
    for row in (*record["methods"], *record["pairs"]):
        plain = row["variants"]["plain"]
        assert plain["ratio"] is None
        assert row["operations"] > 0
        assert row["bytes"] > 0
        for name, own in row["variants"].items():
            n = len(own["seconds"])
            assert n == own["step_seconds"]["n"] >= 1
            assert own["images_per_second"] == pytest.approx(row["batch"] * own["steps_per_second"])
            assert own["of_matmul"] > 0
            assert own["of_copy"] > 0
            if name != "plain":
                each = ratios(plain["seconds"], own["seconds"])
                assert own["ratio"] == Spread.of(each).as_record()
                assert set(own["engine"]) >= {"S"}
    assert record["pairs"][0]["variants"].keys() - record["methods"][1]["variants"].keys() != set()


def test_the_price_is_in_steps_of_the_host(record: dict[str, Any]) -> None:
    price = record["price"]
    first, *others = price["rows"]
    assert (first["method"], first["form"], first["hosts"]["median"]) == (HOST, HOST, 1.0)
    assert {row["method"] for row in others} == {GUEST}
    for row in others:
        host = [own / base for own, base in zip(row["seconds"], first["seconds"], strict=True)]
        assert row["hosts"]["median"] == pytest.approx(Spread.of(host).median)


def test_attacks_and_batches_are_there(record: dict[str, Any]) -> None:
    assert [row["attack"].split(",")[0].split(":")[0] for row in record["attacks"]] == [
        "PGD-20", "APGD-CE", "shortened AutoAttack",
    ]  # fmt: skip
    assert [row["augmentation"] for row in record["data"]] == ["crop-flip", "none"]


def test_hours_follow_from_images_a_second() -> None:
    ways = {"plain": {"images_per_second": 100.0}, "fp32": {"images_per_second": 200.0}}
    rows = {"price": None, "pairs": [{"method": HOST, "networks": "a / b", "batch": 8, "variants": ways}]}
    found = {row["variant"]: row["hours"] for row in hours(rows)}
    assert found == {
        "plain": pytest.approx(200 * 50_000 / 100 / 3600),
        "fp32": pytest.approx(200 * 50_000 / 200 / 3600),
    }


def test_a_busy_machine_is_told() -> None:
    def note(load: float, share: float) -> list[str]:
        return measure._busy({"load_before": load, "process_share": share, "cores": 2}, CPU)

    assert note(0.1, 0.99) == []
    assert "the machine was busy" in note(3.0, 0.99)[0]
    assert "40% of one core" in note(0.0, 0.4)[0]


def test_the_chart_stands_alone(record: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    text = Path(record["files"][1]).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    said = " ".join(each.text or "" for each in root.iter() if each.tag.endswith("text"))
    for word in ("natural", "adaad", "fp32", "times as fast as the plain path", "n = ", "one thread"):
        assert word in said
    assert "prefers-color-scheme: dark" in text
    assert 'href="http' not in text


def test_threads_and_random_state_are_put_back() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    benchmark("tiny", only=["natural"], part=["methods"], minutes=0.2, device="cpu")
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_where_records_go(tmp_path: Path) -> None:
    assert default_folder(tmp_path) == tmp_path
    for folder in ("src/mmard", "benchmarks", "deep/er"):
        (tmp_path / folder).mkdir(parents=True)
    assert default_folder(tmp_path / "deep" / "er") == tmp_path / "benchmarks" / "results"


# the command ------------------------------------------------------------------------------------------------------
def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(["bench", "--size", "tiny", "--only", HOST, "--device", "cpu", "--minutes", "1"]) == 0
    out = capsys.readouterr().out
    for told in ("a training step of every method", "the price of MMARD", "withstand", "batches", "hours of a run"):
        assert told in out
    assert "…" not in out, "figures are cut where they do not fit"
    assert len(list(tmp_path.glob("bench-*-tiny-cpu-1.*"))) in (1, 2)
    assert (
        answer(["bench", "--size", "tiny", "--only", "natural", "--part", "methods", "--device", "cpu", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["price"] is None


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["bench", "--run", "r"]) == 2
    assert "--agreement" in capsys.readouterr().err
    assert answer(["bench", "--size", "huge"]) == 2
    assert "laptop" in capsys.readouterr().err


def test_the_command_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "_measured", stopped)
    assert answer(["bench", "--size", "tiny", "--device", "cpu", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "mmard: stopped; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
