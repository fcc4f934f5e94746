"""Images, what was added to them, and what both networks make of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.report.pieces import Example, Examples, Heading, Note, Prediction, Section
from mmard.report.sections.missing import missing
from mmard.report.subject import Record, Shown, Subject
from mmard.report.words import percent, protocol

SHOWN = 6
"""Images of a run where several runs are shown."""
LEAD = (
    "Grey is no change; the perturbation is magnified by the factor that is said. Nobody chose the images: they are"
    " the first that the attack broke and the first that stood."
)

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]


def section(about: Subject) -> Section:
    """Images of the first seed of each group; those of the others are in their folders."""
    having = [run for run in about.runs if _arrays(run) is not None]
    pieces: list[object] = []
    for group in about.groups:
        for run in [run for run in group.runs if run in having][:1]:
            found = run.found("examples")[0]
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            own: list[object] = [
                Examples(_items(run, found, len(found["items"]) if about.single else SHOWN)),
                Note(protocol(found) + "."),
            ]
            if not about.single:
                own.insert(0, Heading(f"{group.short}{seed}", index=group.index))
            pieces += own
    pieces += missing(about, [r for r in about.runs if r not in having], "Images under attack", "examples")
    return Section("examples", "Images under attack", LEAD if having else "", pieces)


def _arrays(run: Shown) -> Arrays | None:
    """The images of a run, if it has some: x and x_adv (k, C, H, W) as 8 bits, and what was added, in grey levels."""
    for found in run.found("examples")[:1]:
        held = run.run.finding_arrays(str(found["slug"]))
        if found["items"] and {"x", "x_adv"} <= held.keys():
            x, x_adv = held["x"], held["x_adv"]
            # Images are rounded to 8 bits to be looked at; what was added is there as it was.
            change = 255.0 * held["delta"] if "delta" in held else x_adv.astype(np.float64) - x
            return x, x_adv, change
    return None


def _items(run: Shown, found: Record, most: int) -> list[Example]:
    arrays = _arrays(run)
    assert arrays is not None
    x, x_adv, change = arrays
    factor = max(1, int(127 / max(float(np.abs(change).max()), 0.5)))
    made = []
    for i in _chosen(found["items"], most):
        item, magnified = found["items"][i], np.clip(128 + factor * change[i], 0, 255).round().astype(np.uint8)
        true, index = found["classes"][item["true"]], item["index"]
        times = f"\N{MULTIPLICATION SIGN} {factor}"
        images = [
            (data_uri(x[i]), "image", f"Image {index}, {true}"),
            (data_uri(magnified), f"change {times}", f"Perturbation of image {index}, magnified {factor} times"),
            (data_uri(x_adv[i]), "attacked", f"Image {index} attacked"),
        ]
        made.append(Example(f"{true}, image {index}", images, _predictions(item, found["classes"])))
    return made


def _chosen(items: Sequence[Record], most: int) -> list[int]:
    """So many of them, and of both kinds if there are both: two images in three broken, the rest not."""
    broken = [i for i, item in enumerate(items) if item["adv_pred"] != item["true"]]
    held = [i for i, item in enumerate(items) if item["adv_pred"] == item["true"]]
    if len(items) <= most:
        return list(range(len(items)))
    few = min(len(held), max(most // 3, most - len(broken)))
    return sorted([*broken[: most - few], *held[:few]])


def _predictions(item: Record, classes: Sequence[str]) -> list[Prediction]:
    def told(name: str, before: int, after: int, shares: tuple[float, float] | None) -> Prediction:
        text = [classes[before], classes[after]]
        if shares is not None:
            text = [f"{word} {percent(share)}\N{NO-BREAK SPACE}%" for word, share in zip(text, shares, strict=True)]
        return Prediction(name, text[0], before == item["true"], text[1], after == item["true"])

    teacher: tuple[Any, Any] = (item.get("teacher_clean_pred"), item.get("teacher_adv_pred"))
    made = [
        told(
            "network" if None in teacher else "student", item["clean_pred"], item["adv_pred"],
            (item["clean_prob"], item["adv_prob"]),
        )
    ]  # fmt: skip
    if None not in teacher:
        made.append(told("teacher", *teacher, None))
    return made


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image (C, H, W) as PNG in a data: URI; of one channel in grey."""
    from PIL import Image  # comes with matplotlib

    held = io.BytesIO()
    rows = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))
    Image.fromarray(rows).save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
