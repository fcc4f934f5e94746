"""The report: whole and safe HTML, the records' own numbers, and what is missing said as missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import invented_runs as invented
import numpy as np
import pytest

from mmard.cli import answer
from mmard.errors import Refused
from mmard.evaluation.checks import CHECKS
from mmard.report import page as writing
from mmard.report.findings import EXPLAINED
from mmard.report.page import Live, default_out, page, write_report
from mmard.report.runs import read_runs

pytest.importorskip("matplotlib")
VOID = {"meta", "link", "img", "input", "br"}
NASTY = "<script>alert('$x$')</script>"


class Page(HTMLParser):
    """Elements with their attributes and text, and what is out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> out of place")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(*folders: Path, live: Live | None = None) -> str:
    return page(read_runs(folders), live)


@pytest.fixture(scope="module")
def four_by_three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    runs = invented.comparison(tmp_path_factory.mktemp("runs"), methods=("rslad", "rslad+mmard", "adaad", "ard"))
    return runs, made(*runs)


def test_the_page_is_well_formed(four_by_three: tuple[list[Path], str]) -> None:
    found = Page(four_by_three[1])
    assert found.faults == []
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert [name for name, n in ids.items() if n > 1] == []
    targets = [a["href"][1:] for _, a in found.elements if a.get("href", "").startswith("#")]
    targets += [a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a]
    assert targets
    assert [target for target in targets if target not in ids] == []
    assert all("scope" in head for head in found.all("th"))
    assert len(found.all("h1")) == len(found.all("main")) == 1
    plots = [svg for svg in found.all("svg") if svg.get("class") == "plot"]
    assert len(plots) > 40
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 30 for svg in plots)
    assert all(image["alt"] for image in found.all("img"))
    # A table of its numbers goes with every plot.
    assert len([d for d in found.all("details") if d.get("class") == "numbers"]) == len(plots)


def test_nothing_on_the_page_comes_from_elsewhere(four_by_three: tuple[list[Path], str]) -> None:
    found = Page(four_by_three[1])
    sources = [(tag, a[key]) for tag, a in found.elements for key in ("src", "href", "action", "data") if key in a]
    assert [source for source in sources if not source[1].startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)|@import|@font-face", four_by_three[1]) == []
    (policy,) = (m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_a_dozen_runs_stay_small(four_by_three: tuple[list[Path], str]) -> None:
    assert len(four_by_three[1].encode()) < 1_500_000


def test_equal_records_give_equal_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        for seed in (0, 1):
            kinds = ("checks", "eps", "classes", "examples")
            invented.run(tmp_path / name / f"r-{seed}", "rslad", seed, epochs=4, kinds=kinds)
    pages = []
    for name in ("one", "other"):
        monkeypatch.chdir(tmp_path / name)
        pages.append(made(Path("r-0"), Path("r-1")))
    assert pages[0] == pages[1]
    # Nor do they depend on the order of sets and of hashes, which differ between processes.
    code = "import sys; from mmard.report.page import write_report; write_report(['r-0', 'r-1'], 'page.html')"
    place = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": place}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    assert Path("page.html").read_text(encoding="utf-8") == pages[0]


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / NASTY.replace("/", "")
    invented.run(folder, "rslad", 0, epochs=3, teacher=NASTY, student=NASTY, data=NASTY)
    for file in folder.glob("findings/*.json"):
        record = json.loads(file.read_text())
        record["images"] = record["label"] = NASTY
        if "classes" in record:
            record["classes"] = [f"{NASTY}{i}" for i in range(10)]
        for each in record.get("findings", []):
            each |= {"says": NASTY, "verdict": "suspicious"}
        file.write_text(json.dumps(record))
    file = folder / "environment.json"
    file.write_text(json.dumps([invented.environment(f"mmard train {NASTY}", 1)]))
    text = made(folder)
    found = Page(text)
    assert found.faults == []
    assert len(found.all("script")) == 1
    assert "<script>alert" not in text
    assert found.text.count("<script>alert('$x$')</script>") > 20


def test_the_numbers_are_those_of_the_records(four_by_three: tuple[list[Path], str]) -> None:
    runs, text = four_by_three
    plain = Page(text).text
    for run in (runs[0], runs[-1]):
        for file in run.glob("scores/*.json"):
            record = json.loads(file.read_text())
            low, high = (f"{100 * bound:.1f}" for bound in record["interval"])
            assert f"{100 * record['accuracy']:.1f} {low} to {high}" in plain
        curve = json.loads((run / "findings" / "best-eps.json").read_text())
        for point in curve["points"]:
            assert f"{100 * point['correct'] / point['n']:.1f}" in plain
    assert "± 0.0" not in plain
    assert len(re.findall(r"3 seeds", plain)) >= 4


def test_the_result_comes_first_and_settings_are_folded(four_by_three: tuple[list[Path], str]) -> None:
    """A sentence, clean against robust accuracy, the table; and what says how it was made opens when asked for."""
    text = four_by_three[1]
    results = text[text.index('<section id="results"') :]
    plain = Page(results[: results.index("</section>")]).text
    assert "Most robust: rslad+mmard, " in plain
    assert "% under AutoAttack (standard) at linf 8/255" in plain
    places = [results.index(part) for part in ("Most robust", 'id="figure-trade-0"', '<table class="from-1 results">')]
    assert places == sorted(places)
    sections = re.findall(r'<section id="(.*?)".*?</h2>\s*(<details class="fold">)?', text, re.DOTALL)
    assert sections[0][0] == "results"
    assert {name for name, folded in sections if folded} == {"settings", "reproduce", "environment", "files"}


def test_suspicion_stands_beside_the_number_and_leads_to_its_reason(four_by_three: tuple[list[Path], str]) -> None:
    found = Page(four_by_three[1])
    flags = [a for a in found.all("a") if a.get("class") == "flag"]
    # One row of four is suspected, by one of its seeds, in its three attacked columns.
    assert [flag["href"] for flag in flags] == ["#check-more-steps"] * 3
    assert "check-more-steps" in {a.get("id") for a in found.all("span")}
    assert re.search("ard-0 more steps .* suspicious INVENTED: 12 points more", found.text)
    assert "12 checks passed" in found.text


def test_a_check_counts_once_and_what_was_made_before_what_was_skipped(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", epochs=1, kinds=("checks",), suspicious=("more-steps",))
    record = json.loads((run / "findings" / "best-checks.json").read_text())
    for each in record["findings"]:
        each |= {"verdict": "skipped", "says": "not asked for"}
    (run / "findings" / "other-checks.json").write_text(json.dumps(record | {"n": 20}))
    text = Page(made(run)).text
    assert "1 suspicion mark" in text
    assert "not asked for" not in text
    assert "12 checks passed" in text


def test_every_check_is_explained() -> None:
    assert set(EXPLAINED) == set(CHECKS)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "bare", kinds=(), scores=False, epochs=3)
    text = Page(made(run)).text
    also = "checks,classes,margins,calibration,examples,boundary,eps,steps"
    assert set(also.split(",")) == set(invented.KINDS)
    assert f"mmard evaluate {run} --attack pgd-20,cw-30,aa --also {also}" in text
    assert text.count("Not measured:") == 1
    full = invented.run(tmp_path / "full", "adaad", epochs=3)
    both = Page(made(run, full)).text
    assert "calibration of bare" in both
    assert f"mmard evaluate {full}" not in both
    assert f"mmard transfer {run} {full}" in both


@pytest.mark.parametrize(
    ("epochs", "done", "says"),
    [
        (5, 0, "unfinished: 0 of 5 epochs so far"),
        (5, 2, "unfinished: 2 of 5 epochs so far"),
        (1, 1, "finished, 1 epoch"),
    ],
)
def test_runs_at_every_stage_are_shown(tmp_path: Path, epochs: int, done: int, says: str) -> None:
    text = made(invented.run(tmp_path / "r", epochs=epochs, done=done, kinds=(), scores=False))
    found = Page(text)
    assert found.faults == []
    assert says in found.text
    assert 'id="figure-loss"' in text


def test_a_teacher_alone_is_shown(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "t", "trades", kinds=("eps",), epochs=3)
    settings = json.loads((run / "config.json").read_text())
    settings = {key: value for key, value in settings.items() if not key.startswith(("teacher", "student"))}
    (run / "config.json").write_text(json.dumps({**settings, "model": "cnn-32"}))
    text = Page(made(run)).text
    assert "trades on cnn-32" in text or "network cnn-32" in text
    assert "No run here has a teacher to compare with." in text


def test_published_runs_have_their_epochs_alone(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", epochs=4, kinds=())
    lines = [line for line in (run / "log.jsonl").read_text().splitlines() if '"kind": "epoch"' in line]
    (run / "epochs.jsonl").write_text("\n".join(lines))
    (run / "log.jsonl").unlink()
    text = Page(made(run)).text
    assert "finished, 4 epochs" in text
    assert "No log" not in text


def test_findings_on_other_weights_are_left_out(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", epochs=3)
    file = run / "findings" / "best-classes.json"
    old = json.loads(file.read_text())
    old["weights"], old["environment"]["written"] = "0" * 64, "2026-11-21T00:00:00+00:00"
    file.write_text(json.dumps(old))
    text = Page(made(run)).text
    assert "1 finding of weights that the run has outgrown, not shown" in text
    assert re.search("Not measured: accuracy by class", text)


def test_records_of_a_network_from_elsewhere_are_shown(tmp_path: Path) -> None:
    folder = invented.run(tmp_path / "theirs", epochs=1, kinds=("classes",))
    settings = {"network": "their.pt (resnet18)", "data": "cifar10", "eps": 8 / 255, "norm": "linf", "seed": 0}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "log.jsonl").unlink()
    found = Page(made(folder))
    assert found.faults == []
    assert "These networks were trained elsewhere" in found.text
    assert "their.pt (resnet18)" in found.text
    assert "resume" not in found.text


def test_best_and_last_weights_have_rows_of_their_own(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", epochs=2, kinds=())
    for file in sorted((run / "scores").glob("best-*.json")):
        record = json.loads(file.read_text()) | {"which": "last", "weights": "1" * 64, "correct": 321}
        target = file.with_name(file.name.replace("best", "last"))
        target.write_text(json.dumps(record | {"accuracy": 0.321, "interval": [0.29, 0.35]}))
        np.save(target.with_suffix(".npy"), np.arange(1000) < 321)
    text = Page(made(run)).text
    assert "(best)" in text
    assert "(last) 32.1" in text


def test_findings_of_several_protocols_say_so(tmp_path: Path) -> None:
    runs = [invented.run(tmp_path / m, m, epochs=1, kinds=("calibration",), scores=False) for m in ("rslad", "ard")]
    assert "do not compare across them" not in Page(made(*runs)).text
    file = runs[1] / "findings" / "best-calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attack": "cw-30", "label": invented.LABELS["cw-30"]}))
    text = Page(made(*runs)).text
    assert "do not compare across them" in text
    assert text.count("CW-PGD-30 (CW margin, step 2/255, uniform start, 1 restart) at linf 8/255") == 1


def test_formulas_are_those_of_the_method(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", "rslad", epochs=2, kinds=(), params={"rslad.alpha": 0.75})
    text = Page(made(run)).text
    assert "0.75 KL(T(x) || S(x')) + 0.25 KL(T(x) || S(x))" in text
    other = invented.run(tmp_path / "o", "given:mine", epochs=2, kinds=())
    assert "attack climbs" not in Page(made(other)).text


def test_many_classes_are_cut_to_their_ends(tmp_path: Path) -> None:
    run = invented.run(tmp_path / "r", epochs=2, kinds=("classes",))
    file = run / "findings" / "best-classes.json"
    c = 60
    record: dict[str, Any] = json.loads(file.read_text())
    record |= {
        "classes": [f"class {i}" for i in range(c)], "count": [c] * c, "clean": [c - 5] * c,
        "attacked": [i // 2 for i in range(c)], "confusion_clean": None,
        "confusion_attacked": [[1 if i != j else i // 2 for j in range(c)] for i in range(c)],
    }  # fmt: skip
    file.write_text(json.dumps(record))
    text = Page(made(run)).text
    assert "20 of 60 classes" in text
    assert "The commonest confusions under attack" in text


def test_a_transfer_matrix_is_shown(tmp_path: Path) -> None:
    runs = [
        invented.run(tmp_path / name, method, epochs=2, kinds=()) for name, method in (("a", "rslad"), ("b", "ard"))
    ]
    for run, other in zip(runs, reversed(runs), strict=True):
        own = json.loads((run / "scores" / "best-pgd-20.json").read_text())
        label = f"{own['label']} made on {other.name} (best, epoch 2)"
        own |= {"attack": "transfer-pgd-20", "label": label, "made_on": f"{other.name} (best, epoch 2)", "correct": 777}
        own |= {"made_on_weights": "f" * 64, "accuracy": 0.777, "interval": [0.75, 0.8]}
        (run / "scores" / "best-transfer.json").write_text(json.dumps(own))
        np.save(run / "scores" / "best-transfer.npy", np.arange(1000) < 777)
    text = Page(made(*runs)).text
    assert "PGD-20 at linf 8/255, test, 1,000 images" in text
    assert "attacked network itself a (best, epoch 2) b (best, epoch 2)" in text


def test_it_is_written_whole_and_over_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = invented.run(Path("r"), epochs=2, kinds=())
    assert default_out([run]) == run / "report.html"
    assert default_out([run, run]) == Path("report.html")
    file = write_report(run)
    assert file == run / "report.html"
    assert write_report(run) == file
    assert not [each for each in run.iterdir() if each.name.startswith(".report")]
    for taken, got in ((run / "config.json", "another file"), (run, "a folder"), (Path("no/page.html"), "none")):
        with pytest.raises(Refused, match=got):
            write_report(run, taken)
    assert json.loads((run / "config.json").read_text())["method"] == "rslad"


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = invented.run(tmp_path / "r", epochs=3, done=1, kinds=(), scores=False)
    finished = invented.run(tmp_path / "f", epochs=3, kinds=(), scores=False)
    seen = []

    def sleep(seconds: float) -> None:
        text = (run / "report.html").read_text(encoding="utf-8")
        seen.append((seconds, 'http-equiv="refresh" content="9"' in text, "live, every 9 s" in text))
        shutil.copy(finished / "log.jsonl", run / "log.jsonl")

    monkeypatch.setattr(writing.time, "sleep", sleep)
    file = write_report(run, watch=9)
    assert seen == [(9, True, True)]
    assert "refresh" not in file.read_text(encoding="utf-8").split("<script>")[0]
    with pytest.raises(Refused, match="--watch: expected at least 1 second, got 0"):
        write_report(run, watch=0)


def test_a_stopped_watch_leaves_a_page_that_is_not_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = invented.run(tmp_path / "r", epochs=3, done=1, kinds=(), scores=False)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.time, "sleep", sleep)
    assert answer(["report", str(run), "--watch", "5", "--quiet"]) == 130
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text(encoding="utf-8")


def test_the_command_says_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = invented.run(tmp_path / "r", epochs=2, kinds=(), scores=False)
    assert answer(["report", str(run)]) == 0
    assert f"{run / 'report.html'}: " in capsys.readouterr().out
    assert answer(["report", str(run), "--quiet", "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert answer(["report", str(tmp_path / "nothing")]) == 2
    assert "expected a run folder, got no such folder" in capsys.readouterr().err


def test_without_matplotlib_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = invented.run(tmp_path / "r", epochs=2, kinds=(), scores=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Refused, match=re.escape('pip install "mmard[plots]"')):
        write_report(run)
    assert not (run / "report.html").exists()
