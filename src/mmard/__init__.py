"""mmard: adversarial robustness distillation, every method in one engine.

    import mmard

    teacher = mmard.train("cnn-32", data="digits", method="trades")
    student = mmard.distill("cnn-4", teacher.run.path, data="digits", method="rslad+mmard")

Names are loaded when first used, so that importing the package (and `mmard --help`) does not import PyTorch. Every
method and plug-in of `mmard.methods` is such a name too: `mmard.rslad()`, `mmard.mmard(mmard.adaad())`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmard._version import __version__

if TYPE_CHECKING:
    from mmard.api import Examined, Trained, check, distill, evaluate, examine, train, training_step
    from mmard.attacks import PGD
    from mmard.balls import Budget
    from mmard.batch import Batch
    from mmard.bench.agreement import agreement
    from mmard.bench.measure import benchmark
    from mmard.data import ImageSet, Splits, load
    from mmard.deploy.export import export_checked, export_onnx
    from mmard.errors import Refused
    from mmard.method import Method, halves
    from mmard.methods import METHODS, PLUGINS
    from mmard.models import build
    from mmard.networks import load_network, load_teacher
    from mmard.report.page import write_report
    from mmard.report.training import plot
    from mmard.run import Run
    from mmard.share.hub import pull, push
    from mmard.tables.comparison import comparison
    from mmard.trust import trust_code

_HOME = {
    "mmard.api": ("Examined", "Trained", "check", "distill", "evaluate", "examine", "train", "training_step"),
    "mmard.attacks": ("PGD",),
    "mmard.balls": ("Budget",),
    "mmard.batch": ("Batch",),
    "mmard.bench.agreement": ("agreement",),
    "mmard.bench.measure": ("benchmark",),
    "mmard.data": ("ImageSet", "Splits", "load"),
    "mmard.deploy.export": ("export_checked", "export_onnx"),
    "mmard.errors": ("Refused",),
    "mmard.method": ("Method", "halves"),
    "mmard.methods": ("METHODS", "PLUGINS"),
    "mmard.models": ("build",),
    "mmard.networks": ("load_network", "load_teacher"),
    "mmard.tables.comparison": ("comparison",),
    "mmard.report.page": ("write_report",),
    "mmard.report.training": ("plot",),
    "mmard.run": ("Run",),
    "mmard.share.hub": ("pull", "push"),
    "mmard.trust": ("trust_code",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    else:
        methods = importlib.import_module("mmard.methods")
        found = methods.METHODS.get(name) or methods.PLUGINS.get(name)
        if found is None:
            raise AttributeError(f"module 'mmard' has no attribute {name!r}")
        value = found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
