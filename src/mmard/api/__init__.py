"""The Python side of the command line.

    trained = train("cnn-32", data="digits", method="trades")
    result = distill("cnn-4", trained.run.path, data="digits", method="rslad+mmard")
    scores = evaluate(result.network(), result.splits.test, ["pgd-20", "cw-30"], budget=0.15)

The same settings under the same names, with objects where names will not do.

    training.py    train, distill, training_step      judging.py     evaluate, check, examine
"""

from __future__ import annotations

from mmard.api.judging import Examined, check, evaluate, examine
from mmard.api.training import Trained, distill, train, training_step

__all__ = ["Examined", "Trained", "check", "distill", "evaluate", "examine", "train", "training_step"]
