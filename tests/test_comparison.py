"""One table over runs: what is a repetition, what may share a column, what is left out, and what is bold."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import PGD, N, folder, record

from mmard.errors import Refused
from mmard.evaluation.score import wilson
from mmard.files import read_json, tensors_hash, write_json
from mmard.run import Run
from mmard.tables.comparison import Accuracy, Comparison, comparison
from mmard.tables.figures import Column
from mmard.tables.paper import remarks
from mmard.tables.records import findings_of, present

HERE = Path(__file__).resolve().parents[1] / "results" / "cifar10-jpeg"


def titles(made: Comparison) -> list[str]:
    return [column.title for column in made.columns]


def cell(made: Comparison, row: str, title: str) -> Accuracy:
    r = [each.name for each in made.rows].index(row)
    return made.cells[r, titles(made).index(title)]


def two_methods(tmp_path: Path, first: list[int], second: list[int]) -> list[Path]:
    """Runs of two methods, a seed for each figure; nested verdicts, so that differences are sharp."""
    made = []
    for method, figures in (("trades", first), ("pgd_at", second)):
        for seed, correct in enumerate(figures):
            run = folder(tmp_path / f"{method}-{seed}", method, seed)
            record(run, correct)
            record(run, 90 + seed, "clean")
            made.append(run.path)
    return made


# rows -----------------------------------------------------------------------------------------------------------------
def test_runs_that_differ_in_their_seed_are_one_row(tmp_path: Path) -> None:
    made = comparison(two_methods(tmp_path, [40, 42, 47], [30, 31, 32]))
    assert [row.name for row in made.rows] == ["trades", "pgd_at"]
    found = cell(made, "trades", "PGD-20")
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(0.43)
    assert found.deviation == pytest.approx(statistics.stdev([0.40, 0.42, 0.47]))
    low, high = found.interval
    half = 4.302653 * statistics.stdev([0.40, 0.42, 0.47]) / math.sqrt(3)
    assert (low, high) == (pytest.approx(0.43 - half, abs=1e-5), pytest.approx(0.43 + half, abs=1e-5))


def test_machine_settings_do_not_make_another_row_but_others_do_and_name_it(tmp_path: Path) -> None:
    runs = [
        folder(tmp_path / "a", "trades", 0, threads=1, data_dir="x"),
        folder(tmp_path / "b", "trades", 1, threads=2, device="cpu", tensorboard=True),
        folder(tmp_path / "c", "trades", 0, epochs=7),
        folder(tmp_path / "d", "trades", 0, params={"trades.beta": 3.0}),
    ]
    for run in runs:
        record(run, 50)
    made = comparison([run.path for run in runs])
    assert [row.configuration.seeds for row in made.rows] == [(0, 1), (0,), (0,)]
    names = [row.name for row in made.rows]
    assert len(set(names)) == 3
    assert "epochs 7" in names[1]
    assert "trades.beta 3" in names[2]
    usual = str(runs[0].config["epochs"])
    assert made.settings["epochs"] == {names[0]: usual, names[1]: "7", names[2]: usual}
    assert any("epochs" in text for text in remarks(made))


def test_a_config_from_before_a_setting_existed_has_its_default(tmp_path: Path) -> None:
    old, new = folder(tmp_path / "old", "trades", 0), folder(tmp_path / "new", "trades", 1)
    config = old.config
    del config["grad_clip"]
    write_json(old.path / "config.json", config)
    for run in (old, new):
        record(run, 50)
    assert len(comparison([old.path, new.path]).rows) == 1


def test_students_of_several_seeds_may_have_a_teacher_each(tmp_path: Path) -> None:
    runs = [folder(tmp_path / f"s-{seed}", seed=seed, teacher=f"runs/teacher-{seed}") for seed in range(3)]
    one_teacher = [folder(tmp_path / f"o-{seed}", seed=seed, teacher="runs/teacher-0", epochs=9) for seed in range(3)]
    for run in (*runs, *one_teacher):
        record(run, 50)
    made = comparison([run.path for run in (*runs, *one_teacher)])
    assert [row.configuration.seeds for row in made.rows] == [(0, 1, 2), (0, 1, 2)]


def test_a_twin_is_no_repetition(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name, "trades", 0) for name in ("a", "b")]
    for run, correct in zip(runs, (50, 60), strict=True):
        record(run, correct)
    made = comparison([run.path for run in (*runs, runs[0])])
    assert cell(made, "trades", "PGD-20").mean == 0.5
    assert len(made.refused) == 1
    assert f"{runs[1].path}: has the settings and the seed of" in made.refused[0]


def test_best_and_last_are_apart(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 50, which="best", weights="w1")
    record(run, 40, which="last", weights="w2")
    made = comparison([run])
    assert [(row.name, cell(made, row.name, "PGD-20").mean) for row in made.rows] == [
        ("trades (best)", 0.5),
        ("trades (last)", 0.4),
    ]
    assert [row.name for row in comparison([run], which=["last"]).rows] == ["trades"]


# columns --------------------------------------------------------------------------------------------------------------
OTHER_PROTOCOLS: list[dict[str, Any]] = [
    {"label": "PGD-20 (CE, step 0.003, uniform start, 1 restart)"},
    {"eps": 4 / 255},
    {"norm": "l2"},
    {"split": "val"},
    {"data": "e" * 64},
    {"n": 50},
    {"made_on": "a teacher", "made_on_weights": "t1"},
]


@pytest.mark.parametrize("change", OTHER_PROTOCOLS, ids=lambda change: next(iter(change)))
def test_two_protocols_never_share_a_column(tmp_path: Path, change: dict[str, Any]) -> None:
    a, b = folder(tmp_path / "a", "trades"), folder(tmp_path / "b", "pgd_at")
    record(a, 40)
    record(b, 30, **change)
    made = comparison([a, b])
    assert len(made.columns) == 2
    assert sorted(c for _, c in made.cells) == [0, 1]
    for sample in made.samples:
        assert len({made.columns[c].title for c in sample.columns}) == len(sample.columns)
    with pytest.raises(Refused, match="expected one protocol"):
        comparison([a, b], strict=True)


def test_the_titles_of_one_attack_say_what_differs(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 40)
    record(run, 30, "pgd-20@0.003", label="PGD-20 (CE, step 0.003, uniform start, 1 restart)")
    assert sorted(titles(comparison([run]))) == ["PGD-20, step 0.003", "PGD-20, step 2/255"]


def test_labels_are_shown_and_never_read(tmp_path: Path) -> None:
    """Brackets and commas of a label cut no title; what two spellings alike do not tell, their labels do."""
    run = folder(tmp_path / "a", "trades")
    record(run, 40, "aa", label="AutoAttack (standard)")
    record(run, 45, "aa.fab-t", label="right after FAB-T (margin, 100 steps), in AutoAttack (standard)")
    record(run, 50, "mine", label="My attack (a, b)")
    record(run, 41, label="first, of mine")
    record(run, 42, label="second, of mine")
    assert sorted(titles(comparison([run], parts=True))) == [
        "AutoAttack (standard)", "My attack (a, b)", "after FAB-T", "first, of mine", "second, of mine",
    ]  # fmt: skip


def test_classes_have_columns_where_records_hold_them(tmp_path: Path) -> None:
    """The worst class of each seed, and the mean over classes where these are unequal; both of the same verdicts."""
    runs = [folder(tmp_path / str(seed), "trades", seed) for seed in range(2)]
    for run, right in zip(runs, ([10, 30], [16, 24]), strict=True):
        record(run, 80, "clean")
        record(run, 40)
        head = json.loads(next(run.scores.glob("*pgd*.json")).read_text())
        found = {"kind": "classes", "classes": ["a", "b"], "count": [20, 80], "clean": [10, 70], "attacked": right}
        run.save_finding("best-classes", head | found, {})
    made = comparison(runs)
    assert titles(made) == [
        "clean", "clean: balanced", "clean: worst class", "PGD-20", "PGD-20: balanced", "PGD-20: worst class",
    ]  # fmt: skip
    assert cell(made, "trades", "PGD-20: worst class").mean == pytest.approx((30 / 80 + 24 / 80) / 2)
    assert cell(made, "trades", "PGD-20: balanced").mean == pytest.approx((0.5 + 0.375 + 0.8 + 0.3) / 4)
    assert cell(made, "trades", "PGD-20").mean == pytest.approx(0.4)
    one = comparison(runs[:1])
    assert cell(one, "trades", "clean: worst class").interval == pytest.approx(wilson(10, 20))
    low, high = cell(one, "trades", "clean: balanced").interval
    assert (low + high) / 2 == pytest.approx((0.5 + 0.875) / 2)
    assert high - low == pytest.approx(2 * 1.959964 * (0.25 / 20 + 0.875 * 0.125 / 80) ** 0.5 / 2)
    # Counts that do not add up to the verdicts are of others.
    record(runs[0], 41)
    assert "PGD-20: worst class" not in titles(comparison(runs[:1]))


def test_a_strict_comparison_of_one_protocol_is_the_same_table(tmp_path: Path) -> None:
    runs = two_methods(tmp_path, [40, 42], [30, 31])
    assert comparison(runs, strict=True).cells.keys() == comparison(runs).cells.keys()


def test_seeds_of_the_attack_share_a_column_where_runs_differ_in_them(tmp_path: Path) -> None:
    runs = [folder(tmp_path / str(seed), "trades", seed) for seed in range(2)]
    for seed, run in enumerate(runs):
        record(run, 40, seed=seed)
    made = comparison(runs)
    assert len(made.columns) == 1
    assert made.columns[0].seeds == (0, 1)
    assert any("different seeds 0, 1" in note for note in made.notes)
    with_both = record(runs[0], 39, seed=1)
    assert with_both
    made = comparison(runs)
    assert sorted(titles(made)) == ["PGD-20, attack seed 0", "PGD-20, attack seed 1"]
    assert [len(cell.figures) for cell in made.cells.values()] == [1, 2]


def test_a_clean_figure_does_not_depend_on_seed_and_batch_size(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 90, "clean", seed=0, batch_size=250)
    record(run, 90, "clean", seed=1, batch_size=100)
    made = comparison([run])
    assert titles(made) == ["clean"]
    assert made.refused == ()


def test_verdicts_on_the_way_are_shown_when_asked_for(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 40, "aa", label="AutoAttack (standard)")
    record(run, 50, "aa.apgd-ce", label="right after APGD-CE, 100 steps, in AutoAttack (standard)")
    record(run, 45, "pgd-20@0.003", label="PGD-20 (CE, step 0.003, uniform start, 1 restart)")
    assert titles(comparison([run])) == ["PGD-20", "AutoAttack (standard)"]
    assert titles(comparison([run], parts=True)) == ["PGD-20", "after APGD-CE", "AutoAttack (standard)"]


def test_an_autoattack_with_fewer_targets_is_not_called_autoattack(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 40, "aa", label="AutoAttack, 4 targets")
    assert titles(comparison([run])) == ["AutoAttack, 4 targets"]


# what is left out -----------------------------------------------------------------------------------------------------
def test_figures_of_outgrown_weights_are_left_out(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 70, weights="earlier", written="1")
    record(run, 80, "clean", weights="earlier", written="1")
    record(run, 85, "clean", weights="now", written="2", batch_size=100)
    made = comparison([run])
    assert titles(made) == ["clean"]
    assert cell(made, "trades", "clean").mean == 0.85
    assert "2 figures of weights that the run has outgrown" in made.refused[0]


def test_the_later_of_two_different_results_counts_and_is_told(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 90, "clean", batch_size=100, written="2")
    record(run, 91, "clean", batch_size=250, written="1")
    made = comparison([run])
    assert cell(made, "trades", "clean").mean == 0.9
    assert "another result" in made.refused[0]


def test_a_missing_seed_is_told(tmp_path: Path) -> None:
    runs = two_methods(tmp_path, [40, 42, 44], [30, 31, 32])
    for file in (runs[1] / "scores").glob("*pgd-20*"):
        file.unlink()
    made = comparison(runs)
    assert cell(made, "trades", "PGD-20").seeds == (0, 2)
    assert any("no figure of seed 1 under PGD-20" in note for note in made.notes)


def test_figures_on_validation_images_are_told(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "trades")
    record(run, 70, split="val")
    assert any("validation" in note for note in comparison([run]).notes)


def test_raised_suspicions_stand_beside_every_figure_of_the_weights(tmp_path: Path) -> None:
    run, other = folder(tmp_path / "a", "trades"), folder(tmp_path / "b", "pgd_at")
    findings = [
        {"check": "softmax-outputs", "verdict": "suspicious", "says": "", "figures": {}},
        {"check": "randomised", "verdict": "passed", "says": "", "figures": {}},
    ]
    for each in (run, other):
        record(each, 70)
    (run.path / "findings").mkdir()
    head = {"kind": "checks", "which": "best", "split": "test", "n": N, "seed": 0, "weights": "wa"}
    write_json(run.path / "findings" / "c.json", head | {"findings": findings})
    made = comparison([run, other])
    assert cell(made, "trades", "PGD-20").suspicious == ("softmax-outputs",)
    assert cell(made, "pgd_at", "PGD-20").suspicious == ()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"attacks": ["pgd-2"]}, "did you mean 'pgd-20'"),
        ({"n": 7}, "none of them"),
        ({"against": "tradse"}, "did you mean 'trades'"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    runs = two_methods(tmp_path, [40], [30])
    with pytest.raises(Refused, match=says):
        comparison(runs, **asked)


def test_runs_without_records_are_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="mmard evaluate"):
        comparison([folder(tmp_path / "a", "trades")])
    with pytest.raises(Refused, match="expected run folders"):
        comparison([])


# differences and bold -------------------------------------------------------------------------------------------------
def test_differences_are_paired_by_seed_and_by_image(tmp_path: Path) -> None:
    made = comparison(two_methods(tmp_path, [50, 53, 55], [40, 42, 45]), against="pgd_at")
    (gap,) = [d for (r, c), d in made.differences.items() if titles(made)[c] == "PGD-20"]
    gains = [0.10, 0.11, 0.10]
    assert gap.mean == pytest.approx(statistics.fmean(gains))
    assert gap.over_seeds == pytest.approx(4.302653 * statistics.stdev(gains) / math.sqrt(3), rel=1e-4)
    ours = np.mean([np.arange(N) < k for k in (50, 53, 55)], axis=0)
    theirs = np.mean([np.arange(N) < k for k in (40, 42, 45)], axis=0)
    assert gap.over_images == pytest.approx(1.959964 * (ours - theirs).std(ddof=1) / 10, rel=1e-4)
    assert gap.clear
    assert cell(made, "trades", "PGD-20").best
    assert not cell(made, "trades", "clean").best


def test_nothing_is_bold_with_one_seed(tmp_path: Path) -> None:
    made = comparison(two_methods(tmp_path, [90], [10]), against="pgd_at")
    assert not any(cell.best for cell in made.cells.values())
    assert [gap.over_seeds for gap in made.differences.values()] == [None, None]


def test_nothing_is_bold_within_the_spread_of_seeds(tmp_path: Path) -> None:
    made = comparison(two_methods(tmp_path, [60, 40, 80], [30, 39, 31]))
    assert not any(cell.best for cell in made.cells.values())


def test_a_larger_network_is_no_rival(tmp_path: Path) -> None:
    runs = two_methods(tmp_path, [50, 53, 55], [40, 42, 45])
    for seed in range(3):
        big = folder(tmp_path / f"big-{seed}", "trades", seed, model="cnn-32")
        record(big, 80)
        runs.append(big.path)
    made = comparison(runs)
    assert cell(made, "trades on cnn-4", "PGD-20").best
    assert not cell(made, "trades on cnn-32", "PGD-20").best


def test_a_lost_mask_costs_the_interval_over_images_alone(tmp_path: Path) -> None:
    runs = two_methods(tmp_path, [50, 53, 55], [40, 42, 45])
    for file in (runs[0] / "scores").glob("*.npy"):
        file.unlink()
    made = comparison(runs, against="pgd_at")
    (gap,) = [d for (r, c), d in made.differences.items() if titles(made)[c] == "PGD-20"]
    assert gap.over_images is None
    assert gap.over_seeds is not None


@pytest.mark.parametrize("name", ["trades", "trades-1"])
def test_a_row_is_named_by_its_method_or_one_of_its_runs(tmp_path: Path, name: str) -> None:
    made = comparison(two_methods(tmp_path, [50, 53], [40, 42]), against=name)
    assert made.reference == "trades"


def test_the_trial_on_cifar10_is_read_as_its_page_has_it() -> None:
    """Figures of docs/results/cifar10-jpeg.md, written there by another program."""
    runs = [HERE / name for name in ("rslad-0", "rslad-1", "rslad+mmard-0", "rslad+mmard-1", "teacher")]
    made = comparison(runs, against="rslad")
    assert [len(row.configuration.runs) for row in made.rows] == [2, 2, 1]
    by_n = {
        made.columns[c].n: round(100 * gap.mean, 2)
        for (r, c), gap in made.differences.items()
        if made.columns[c].attack == "aa" and "mmard" in made.rows[r].name
    }
    assert by_n == {500: pytest.approx((4.2 + 2.6) / 2)}
    assert {column.n for column in made.columns} == {500, 1000, 1017}


def test_columns_hold_what_they_say() -> None:
    column = Column("pgd-20", "", PGD, "linf", 8 / 255, "test", N, "d", "x", (0,), (250,), None)
    assert column.budget == "linf 8/255"


# records --------------------------------------------------------------------------------------------------------------
def weighed(path: Path) -> Run:
    """A run with weights and a figure and a check on them."""
    run = folder(path, "trades")
    run.save_weights("best", {"w": torch.zeros(3)}, {})
    weights = tensors_hash({"w": torch.zeros(3)})
    record(run, 40, weights=weights, written="1")
    head = {"kind": "checks", "which": "best", "split": "test", "n": N, "seed": 0, "weights": weights}
    run.save_finding("c", head | {"findings": [{"check": "more-steps", "verdict": "suspicious", "says": "x"}]})
    return run


def test_figures_of_weights_that_were_trained_on_are_not_the_runs_own(tmp_path: Path) -> None:
    run = weighed(tmp_path / "a")
    assert comparison([run.path]).cells[0, 0].mean == pytest.approx(0.4)
    run.save_weights("best", {"w": torch.ones(3)}, {})
    with pytest.raises(Refused, match="1 figure of weights that the run has outgrown"):
        comparison([run.path])
    assert present(run, findings_of(run)) == ([], 1)
    record(run, 45, "cw-30", weights=tensors_hash({"w": torch.ones(3)}), written="0")
    made = comparison([run.path])
    assert made.cells[0, 0].mean == pytest.approx(0.45), "whatever the clock says that wrote it"
    assert made.cells[0, 0].suspicious == ()
    assert any("outgrown" in line for line in made.refused)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"correct": "40"}, "correct: expected int"),
        ({"correct": True}, "correct: expected int"),
        ({"correct": 101}, "correct: expected 0 to 100"),
        ({"correct": 41, "accuracy": 0.41}, "as its record says"),
        ({"n": 0}, "at least one image"),
        ({"n": 50}, "expected"),
        ({"accuracy": 0.9}, "accuracy: expected 40 of 100"),
        ({"interval": [0.5, 0.6]}, "interval: expected one around 0.4"),
        ({"interval": [0.3]}, "interval: expected two numbers"),
        ({"norm": "l3"}, "linf"),
        ({"norm": None}, "a norm and a radius"),
        ({"eps": -1.0}, "a radius"),
        ({"weights": None}, "weights: expected str"),
        ({"label": 3}, "label: expected str"),
    ],
)
def test_a_record_that_cannot_be_true_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run = weighed(tmp_path / "a")
    (file,) = run.scores.glob("*.json")
    write_json(file, read_json(file) | change)
    with pytest.raises(Refused) as caught:
        comparison([run.path])
    assert says in str(caught.value)
    assert str(file.with_suffix("")) in str(caught.value)


@pytest.mark.parametrize("change", [{"findings": [{"check": "a"}]}, {"findings": None}, {"kind": "what"}, {"which": 1}])
def test_a_finding_that_cannot_be_read_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = weighed(tmp_path / "a")
    file = run.findings_folder / "c.json"
    write_json(file, read_json(file) | change)
    with pytest.raises(Refused, match=r"c\.json"):
        comparison([run.path])


def test_records_that_are_no_objects_and_torn_verdicts_are_refused(tmp_path: Path) -> None:
    run = weighed(tmp_path / "a")
    (file,) = run.scores.glob("*.json")
    whole = file.with_suffix(".npy").read_bytes()
    file.with_suffix(".npy").write_bytes(whole[:50])
    with pytest.raises(Refused, match="verdicts"):
        comparison([run.path])
    file.with_suffix(".npy").write_bytes(whole)
    write_json(file, [1, 2])
    with pytest.raises(Refused, match="expected a record"):
        comparison([run.path])
