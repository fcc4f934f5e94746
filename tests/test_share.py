"""A run to others and back: the folder, the card, and a hub that lives in memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from started import Started
from torch import Tensor

import mmard
from mmard.cli import answer
from mmard.data.fetch import fetch
from mmard.errors import Refused
from mmard.files import UNFINISHED, load_tensors, save_tensors, write_json
from mmard.networks import load_network
from mmard.run import Run
from mmard.share.hub import SHARED, pull, push, without_folders

REPO = "ada/cnn-4-trades"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and its teacher, the student evaluated; not to be written to."""
    folder = tmp_path_factory.mktemp("home")
    quick: dict[str, Any] = {
        "data": "digits", "limit_train": 512, "budget": 0.1, "steps": 2, "batch_size": 64, "threads": 1, "lr": 0.05,
        "val_attack": "pgd-2",
    }  # fmt: skip
    mmard.train("cnn-8", method="pgd_at", out=str(folder / "t"), epochs=4, **quick)
    mmard.distill("cnn-4", str(folder / "t"), method="rslad", out=str(folder / "s"), epochs=2, **quick)
    answer(["evaluate", str(folder / "s"), "--attack", "fgsm,pgd-3", "--first", "100"])
    return folder


def suspect(run: Path, weights: str, verdict: str = "suspicious") -> None:
    """Write a finding into a run, as an evaluation does."""
    head = {"kind": "checks", "which": "best", "split": "test", "n": 100, "weights": weights, "seed": 0}
    found = [
        {"check": "more-steps", "verdict": verdict, "says": "12 points less with 100 steps", "figures": {}},
        {"check": "randomised", "verdict": "passed", "says": "the same twice", "figures": {}},
        {"check": "huge-radius", "verdict": "skipped", "says": "needs attacks", "figures": {}},
    ]
    Run.open(run).save_finding("best-checks", {**head, "findings": found, "environment": {"written": "2026"}})


def copied(home: Path, to: Path) -> Path:
    return Path(shutil.copytree(home / "s", to))


def logits(run: Path, which: str = "best") -> Tensor:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_network(str(run), which=which).module.eval()(x)


def test_a_folder_goes_round_and_is_equal(home: Path, tmp_path: Path) -> None:
    done = push(home / "s", REPO, to=tmp_path / "shared")
    assert done.folder == tmp_path / "shared"
    assert {"README.md", "config.json", "best.safetensors", "last.safetensors", "epochs.jsonl"} <= set(done.files)
    assert not any("state" in name or "log" in name for name in done.files)
    back = pull(str(done.folder), tmp_path / "runs" / "back")
    for which in ("best", "last"):
        mine, facts = load_tensors(home / "s" / f"{which}.safetensors")
        theirs, told = load_tensors(back / f"{which}.safetensors")
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert told == facts
        assert torch.equal(logits(back, which), logits(home / "s", which))
    assert [r["correct"] for r in Run.open(back).score_records()] == [
        r["correct"] for r in Run.open(home / "s").score_records()
    ]
    images = mmard.load("digits").test.take(torch.arange(20))
    assert mmard.evaluate(back, images, "fgsm", budget=0.1)[0].n == 20


def test_a_pulled_run_teaches(home: Path, tmp_path: Path) -> None:
    push(home / "t", "ada/teacher", to=tmp_path / "shared")
    back = pull(str(tmp_path / "shared"), tmp_path / "back")
    done = mmard.distill(
        "cnn-4", str(back), method="rslad", data="digits", limit_train=64, epochs=1, steps=1, batch_size=32,
        val_attack="fgsm", budget=0.1, out=str(tmp_path / "s2"),
    )  # fmt: skip
    assert done.position.finished


def front(text: str) -> dict[str, str]:
    """The YAML head, by its lines that are no lists."""
    head = text.split("---\n")[1]
    return dict(line.split(": ", 1) for line in head.splitlines() if re.match(r"\w+: ", line))


def test_the_card_has_every_figure_with_its_interval(home: Path, tmp_path: Path) -> None:
    push(home / "s", REPO, to=tmp_path / "shared", licence="mit")
    text = (tmp_path / "shared" / "README.md").read_text()
    assert front(text) == {"library_name": "mmard", "license": '"mit"', "pipeline_tag": "image-classification"}
    records = Run.open(home / "s").score_records()
    assert len(records) >= 3
    for record in records:
        low, high = (f"{100 * v:.1f}" for v in record["interval"])
        accuracy = f"{100 * record['accuracy']:.1f}"
        assert re.search(rf"\| {accuracy} \| {low} to {high} \| 100 test \| best \|", text), record["attack"]
        assert f"value: {round(100 * record['accuracy'], 2)}" in text
    for needed in (
        "`cnn-4` for 10 classes of digits (1 x 8 x 8), distilled by `rslad` to hold within linf 0.1.",
        f"mmard pull {REPO} --to runs/pulled",
        "| method | rslad |",
        "| eps | 0.1 |",
        "- T: `t`",
        "trained on: " + load_tensors(home / "s" / "best.safetensors")[1]["images"],
        "SHA-256 of images and labels",
    ):
        assert needed in text
    assert "Suspicious" not in text
    assert str(home) not in text


@pytest.mark.parametrize("verdict", ["suspicious", "passed"])
def test_marks_of_suspicion_stand_above_the_table(verdict: str, home: Path, tmp_path: Path) -> None:
    run = copied(home, tmp_path / "s")
    suspect(run, Run.open(run).score_records()[0]["weights"], verdict)
    done = push(run, REPO, to=tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    raised = verdict == "suspicious"
    assert done.suspicious == (("more-steps",) if raised else ())
    assert ("`more-steps` (best weights): 12 points less with 100 steps" in text) == raised
    assert ("⚠ more-steps" in text) == raised
    assert ("model-index" in text) == (not raised)
    assert text.find("**Suspicious.**") < text.find("## Figures")
    assert "1 skipped (huge-radius)" in text


def test_what_is_of_other_weights_is_left_out(home: Path, tmp_path: Path) -> None:
    run = copied(home, tmp_path / "s")
    suspect(run, "0" * 64)
    tensors, facts = load_tensors(run / "best.safetensors")
    moved = {key: value + 1 if value.is_floating_point() else value for key, value in tensors.items()}
    save_tensors(run / "best.safetensors", moved, facts)
    done = push(run, REPO, to=tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    assert done.suspicious == ()
    assert "not evaluated" in text
    assert "No suspicion checks" in text


def test_folders_of_this_machine_stay_here(home: Path, tmp_path: Path) -> None:
    run = copied(home, tmp_path / "s")
    config = Run.open(run).config
    write_json(run / "config.json", {**config, "data_dir": "/data/secret", "teachers": {"T": ["/home/ada/secret/t-0"]}})
    push(run, REPO, to=tmp_path / "shared")
    told = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert (told["data_dir"], told["teachers"], told["eps"]) == (None, {"T": ["t-0"]}, config["eps"])
    for file in (tmp_path / "shared").rglob("*"):
        if file.is_file():
            assert b"secret" not in file.read_bytes(), file
            assert str(tmp_path.parent).encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--eps 8/255 --out runs/a", "--eps 8/255 --out runs/a"),
        ("/root/x.py train --data-dir=/mnt/d/cifar", "x.py train --data-dir=cifar"),
        ("~/runs/t", "t"),
        (r"C:\Users\ada\t", "t"),
        ("/Users/Ada Lovelace/runs/t", "t"),
        (r"C:\Users\Ada Lovelace\t", "t"),
        ("mmard train --out '/home/Ada Lovelace/my runs/t' --eps 8/255", "mmard train --out 't' --eps 8/255"),
        ("mmard train '--data-dir=/mnt/Ada L/d' --eps 8/255", "mmard train '--data-dir=d' --eps 8/255"),
        ("mmard train --teacher /home/ada/t --out /home/ada/s", "mmard train --teacher t --out s"),
        ("https://arxiv.org/abs/2010.03593", "https://arxiv.org/abs/2010.03593"),
    ],
)
def test_only_absolute_folders_are_cut(text: str, expected: str) -> None:
    assert without_folders({"a": [text]}) == {"a": [expected]}


@pytest.mark.parametrize("name", ["best.safetensors", "environment.json", "scores/secret.json", "findings"])
def test_links_are_neither_sent_nor_brought(name: str, home: Path, tmp_path: Path) -> None:
    """A link would send what lies somewhere else under the name of a record."""
    run, secret = copied(home, tmp_path / "s"), tmp_path / "secret"
    push(run, REPO, to=tmp_path / "shared")
    for folder in (run, tmp_path / "shared"):
        target = secret / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (folder / name).is_dir() or name == "findings":
            target.mkdir(exist_ok=True)
        elif not target.exists():
            target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
        if (folder / name).is_file():
            (folder / name).unlink()
        elif (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).symlink_to(target)
    with pytest.raises(Refused, match="expected a file of the run itself, got a link"):
        push(run, REPO, to=tmp_path / "again")
    with pytest.raises(Refused, match="expected a file of the run itself, got a link"):
        pull(str(tmp_path / "shared"), tmp_path / "back")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scores/a.json", b"[1]", r"scores/a\.json: expected a record, got list"),
        ("scores/a.json", b"{", r"a\.json: expected JSON"),
        ("scores/a.npy", b"\x80\x04", r"scores/a\.npy: expected a record of mmard"),
        ("findings/a.npz", b"PK", r"findings/a\.npz: expected a record of mmard"),
        ("epochs.jsonl", b"{}\n3\n", r"epochs\.jsonl: expected an object in each line, got 3"),
        ("environment.json", b"{}", r"environment\.json: expected a record, got dict"),
        ("README.md", b"\xff", r"README\.md: expected a record of mmard"),
        (
            "config.json",
            b'{"method": "pgd_at", "network": "os:abort"}',
            "a network that mmard builds by name, got os:abort",
        ),
        ("config.json", b'{"method": "pgd_at", "network": "cnn-4", "lr": "x"}', "setting lr"),
    ],
)
def test_everything_that_is_brought_is_looked_at(
    name: str, content: bytes, says: str, home: Path, tmp_path: Path
) -> None:
    push(home / "s", REPO, to=tmp_path / "shared")
    (tmp_path / "shared" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "shared" / name).write_bytes(content)
    with pytest.raises(Refused, match=says):
        pull(str(tmp_path / "shared"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_records_without_bounds_are_not_brought(home: Path, tmp_path: Path) -> None:
    push(home / "s", REPO, to=tmp_path / "shared")
    (tmp_path / "shared" / "epochs.jsonl").write_bytes(b"")
    os.truncate(tmp_path / "shared" / "epochs.jsonl", 2**33)
    with pytest.raises(Refused, match="a record of at most 268 MB, got 8,590 MB"):
        pull(str(tmp_path / "shared"), tmp_path / "back")


def test_no_text_of_a_run_becomes_markup_of_its_card(home: Path, tmp_path: Path) -> None:
    run = copied(home, tmp_path / "s")
    evil = "x <b onclick=alert(1)>\n# big | [a](b) ` **"
    for which in ("best", "last"):
        tensors, facts = load_tensors(run / f"{which}.safetensors")
        save_tensors(run / f"{which}.safetensors", tensors, {**facts, "images": evil, "classes": [evil]})
    suspect(run, Run.open(run).score_records()[0]["weights"])
    finding = run / "findings" / "best-checks.json"
    record = json.loads(finding.read_text())
    record["findings"][0]["says"] = evil
    finding.write_text(json.dumps(record))
    config = Run.open(run).config
    write_json(run / "config.json", {**config, "data": evil, "teachers": {"T": [evil]}, "augment": evil})
    push(run, REPO, to=tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text().split("---\n", 2)[2]
    outside = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert outside.count("alert") >= 5
    assert not re.search(r"(?<!\\)<b|(?<!\\)\[a\]|^# big", outside, re.MULTILINE)


def test_folders_that_cannot_be_written_are_named(home: Path, tmp_path: Path) -> None:
    push(home / "s", REPO, to=tmp_path / "shared")
    (tmp_path / "file").touch()
    for call in (
        lambda: push(home / "s", REPO, to=tmp_path / "file" / "x"),
        lambda: pull(str(tmp_path / "shared"), tmp_path / "file" / "x"),
        lambda: fetch("cifar10", tmp_path / "file", hub=FakeDataHub()),
    ):
        with pytest.raises(Refused, match=r"file/\w+: expected a folder to write to, got [A-Z][a-z ]+; choose another"):
            call()


@pytest.mark.parametrize("done", range(0, 9, 2))
def test_a_push_or_pull_that_dies_leaves_nothing_in_the_way(home: Path, tmp_path: Path, done: int) -> None:
    """After so many files it is killed; the next one sweeps what is left and makes the whole folder."""
    push(home / "s", REPO, to=tmp_path / "shared")
    for call in (
        partial(push, home / "s", REPO, to=tmp_path / "new"),
        partial(pull, str(tmp_path / "shared"), tmp_path / "new"),
    ):
        killed = Started(killed_after, done, call)
        assert killed.communicate() == ("", "")
        assert killed.returncode == -signal.SIGKILL
        assert [each.name for each in tmp_path.iterdir() if UNFINISHED not in each.name] == ["shared"]
        call()
        names = {each.name for each in (tmp_path / "new").iterdir()} - {"pulled.json"}
        assert names == {each.name for each in (tmp_path / "shared").iterdir()}
        shutil.rmtree(tmp_path / "new")
    assert [each.name for each in tmp_path.iterdir()] == ["shared"]


def killed_after(files: int, call: Callable[[], object]) -> None:
    """Makes the call and dies at the write after so many."""
    left = files

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    call()


class FakeDataHub:
    """A data set of one file."""

    def repo_info(self, repo_id: str, **asked: Any) -> Any:
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename="plain_text/train-0.parquet", size=1)])

    def hf_hub_download(self, *args: Any, **asked: Any) -> str:
        raise AssertionError("nothing is to be fetched")


class FakeHub:
    """Keeps repositories in memory, and what it was told."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.broken: str = ""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert (repo_id, exist_ok) == (REPO, True)
        self.private = private

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        root = Path(folder_path)
        self.files |= {f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*") if f.is_file()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def repo_info(self, repo_id: str, *, revision: str | None, repo_type: str, files_metadata: bool) -> Any:
        assert (repo_id, repo_type, files_metadata) == (REPO, "model", True)
        siblings = [
            SimpleNamespace(rfilename=n, size=len(c), lfs=SimpleNamespace(sha256=hashlib.sha256(c).hexdigest()))
            for n, c in self.files.items()
        ]
        return SimpleNamespace(sha="abc", siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: str) -> str:
        assert revision == "abc"
        file = Path(local_dir) / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        content = self.files[filename]
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if filename == self.broken else content)
        return str(file)


@pytest.mark.parametrize("public", [False, True])
def test_to_the_hub_and_back(public: bool, home: Path, tmp_path: Path) -> None:
    hub, lines = FakeHub(), []
    done = push(home / "s", REPO, public=public, hub=hub)
    assert (hub.private, done.folder, done.address) == (not public, None, f"https://hub/{REPO}/commit/1")
    assert all(SHARED.fullmatch(name) for name in hub.files)
    hub.files |= {".gitattributes": b"", "pytorch_model.bin": b"pickled", "findings/../../x.json": b"{}", "run.py": b""}
    back = pull(REPO, tmp_path / "back", progress=lines.append, hub=hub)
    assert torch.equal(logits(back), logits(home / "s"))
    assert sorted(p.name for p in back.iterdir()) == sorted(
        {name.split("/")[0] for name in done.files} | {"pulled.json"}
    )
    record = json.loads((back / "pulled.json").read_text())
    assert (record["repo"], record["revision"]) == (REPO, "abc")
    assert set(record["left_out"]) == {".gitattributes", "pytorch_model.bin", "findings/../../x.json", "run.py"}
    assert not (tmp_path / "x.json").exists()


def broken(hub: FakeHub) -> None:
    hub.broken = "best.safetensors"


def without(name: str) -> Any:
    return lambda hub: hub.files.pop(name)


def other_network(name: str) -> Any:
    def change(hub: FakeHub, to: str = name) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "w.safetensors"
            for which in ("best", "last"):
                file.write_bytes(hub.files[f"{which}.safetensors"])
                tensors, facts = load_tensors(file)
                save_tensors(file, tensors, {**facts, "network": to})
                hub.files[f"{which}.safetensors"] = file.read_bytes()

    return change


BAD = {
    "damaged": (broken, r"best\.safetensors: expected sha256 .*run the same command again"),
    "no settings": (without("config.json"), "config.json and best.safetensors"),
    "code": (other_network("os:getcwd"), r"a network that mmard builds by name, got os:getcwd"),
    "another network": (other_network("cnn-8"), "of another shape"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_what_is_no_run_leaves_nothing(change: Any, says: str, home: Path, tmp_path: Path) -> None:
    hub = FakeHub()
    push(home / "s", REPO, hub=hub)
    change(hub)
    with pytest.raises(Refused, match=says):
        pull(REPO, tmp_path / "runs" / "back", hub=hub)
    assert list((tmp_path / "runs").iterdir()) == []


class Offline(FakeHub):
    def create_repo(self, *args: Any, **kw: Any) -> None:
        raise ConnectionError("no route to host\nand more")

    def repo_info(self, *args: Any, **kw: Any) -> Any:
        raise TimeoutError


def test_refusals_are_one_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"^push ada/.*hub, got ConnectionError \(no route to host\); log in with"):
        push(home / "s", REPO, hub=Offline())
    with pytest.raises(Refused, match="got TimeoutError; is it spelled so"):
        pull(REPO, tmp_path / "back", hub=Offline())
    with pytest.raises(Refused, match="expected USER/NAME, got 'cnn'"):
        push(home / "s", "cnn", to=tmp_path / "x")
    with pytest.raises(Refused, match="a run folder"):
        push(tmp_path / "none", REPO, to=tmp_path / "x")
    with pytest.raises(Refused, match="one that holds a run"):
        pull(REPO, home / "s", hub=FakeHub())
    with pytest.raises(Refused, match="got nothing of these"):
        pull(REPO, tmp_path / "back", hub=FakeHub())
    given = copied(home, tmp_path / "given")
    for which in ("best", "last"):
        tensors, facts = load_tensors(given / f"{which}.safetensors")
        save_tensors(given / f"{which}.safetensors", tensors, {**facts, "network": "given:Net"})
    with pytest.raises(Refused, match="a network that mmard builds by name, got given:Net"):
        push(given, REPO, to=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(home / "s", REPO), lambda: pull(REPO, tmp_path / "back")):
        with pytest.raises(Refused, match=r"the package 'huggingface_hub'.*mmard\[hub\]"):
            call()


def test_the_fake_has_the_calls_of_the_real_client() -> None:
    import inspect

    api = pytest.importorskip("huggingface_hub").HfApi
    wanted = {
        "create_repo": ("repo_id", "private", "exist_ok"),
        "upload_folder": ("repo_id", "folder_path", "commit_message"),
        "repo_info": ("repo_id", "revision", "repo_type", "files_metadata"),
        "hf_hub_download": ("repo_id", "filename", "repo_type", "revision", "local_dir"),
    }
    for name, parameters in wanted.items():
        assert set(parameters) <= set(inspect.signature(getattr(api, name)).parameters), name


def test_the_commands(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["push", str(home / "s"), REPO, "--to", str(tmp_path / "shared")]) == 0
    out = capsys.readouterr().out
    assert "the card is README.md" in out
    assert "nothing was sent" in out
    assert f"mmard pull {tmp_path / 'shared'} --to runs/pulled" in out
    assert answer(["pull", str(tmp_path / "shared"), "--to", str(tmp_path / "back")]) == 0
    assert "complete and checked" in capsys.readouterr().out
    assert answer(["evaluate", str(tmp_path / "back"), "--attack", "fgsm", "--first", "20"]) == 0
    assert answer(["push", str(home / "s"), "nobody", "--to", str(tmp_path / "x")]) == 2
    assert "expected USER/NAME" in capsys.readouterr().err
