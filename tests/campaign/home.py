"""What the campaign works on: two runs, their records, what commands write of them. Made once, copied for each case."""

from __future__ import annotations

import shutil
from pathlib import Path

from campaign.commands import mmard

SMALL = ("--data", "digits", "--limit-train", "128", "--steps", "1", "--val-attack", "pgd-1", "--threads", "1")
TRAIN = ("train", *SMALL, "--model", "cnn-2", "--epochs", "3", "--save-seconds", "0", "--average", "ema", "--seed", "1")
DISTILL = ("distill", *SMALL, "--student", "cnn-2", "--epochs", "2", "--save-seconds", "0", "--method", "rslad+mmard")
FEW = ("--first", "40", "--device", "cpu")


def make_home(folder: Path) -> None:
    """A teacher `t`, a student `s` with scores and findings, a matrix, an ONNX file, a shared folder, a report."""
    folder.mkdir(parents=True)
    teacher = ("--method", "pgd_at", "--model", "cnn-4", "--epochs", "4", "--lr", "0.05", "--out", "t")
    for line in (
        ("train", *SMALL, *teacher),
        (*DISTILL, "--teacher", "t", "--no-teacher-gate", "--out", "s"),
        ("evaluate", "s", "--attack", "pgd-2,cw-2", *FEW),
        ("evaluate", "t", "--attack", "pgd-2", *FEW),
        ("evaluate", "s", "--also", "classes,calibration,margins", "--attack", "pgd-2", *FEW),
        ("transfer", "s", "t", "--attack", "pgd-2", *FEW),
        ("export", "s", "--to", "s.onnx", "--first", "20", "--attack", "none"),
        ("push", "s", "ada/little", "--to", "shared"),
    ):
        done = mmard(*line, cwd=folder)
        if done.code != 0:
            raise SystemExit(f"the campaign's own preparation failed: mmard {' '.join(line)}\n{done.text}")


def copy_of(home: Path, folder: Path, *names: str) -> None:
    """Copies of some of it in a folder."""
    for name in names or [each.name for each in home.iterdir()]:
        source = home / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy2(source, folder / name)
