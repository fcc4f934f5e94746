"""How `--dry-run` prints a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mmard.cli.flags import Said
from mmard.cli.output import console, line, put, table
from mmard.words import duration, plural

if TYPE_CHECKING:
    from mmard.plan import Passes, Plan

ROLES = {"S": "student", "T": "teacher", "T_nat": "natural teacher", "P": "peer"}
PASSES = "forward: passes, of them train: in train mode; back x, back w: gradients to the input, to the weights"


def show_plan(plan: Plan, said: Said) -> None:
    """Networks, data, formulas, passes, speed, time, and every setting with where it comes from."""
    from mmard.engine.twins import described
    from mmard.plan import origins

    out, job = console(), plan.job
    line(out, "networks, and their passes in a step", "strong")
    grid = passes_table("", "network", "weights")
    roles = {**ROLES, "S": "student" if job.sources else "model"}
    names = {"S": job.facts["network"], **{k: own["network"] for k, own in job.others.items()}, **job.sources}
    for letter, passes in plan.passes.items():
        grid.add_row(roles.get(letter, letter), names.get(letter, ""), f"{plan.weights[letter]:,}", *counts(passes))
    put(out, grid, 2)
    line(out, f"  {PASSES}", "quiet")
    out.print()
    line(out, "method", "strong")
    line(out, f"  {job.method.name}  ({job.method.source})")
    line(out, f"  attack climbs  {job.method.says[0]}")
    line(out, f"  loss descends  {job.method.says[1]}")
    for note in job.notes:
        line(out, f"  {note}")
    out.print()
    line(out, "data", "strong")
    parts = (
        [(job.splits.train, "train"), (job.splits.val, "validation"), (job.splits.test, "test")] if job.splits else []
    )
    shape = " x ".join(map(str, job.validation.image_shape))
    line(
        out,
        f"  {job.settings.data}: "
        + ", ".join(f"{len(part):,} {name}" for part, name in parts)
        + f" images of {shape}, {job.validation.num_classes} classes",
    )
    out.print()
    line(out, "engine", "strong")
    for letter, chosen in plan.engine.items():
        line(out, f"  {roles.get(letter, letter)}: {described(chosen)}")
    out.print()
    line(out, "time on this machine", "strong")
    measured = f"measured over {plural(plan.pace.steps, 'step')} of {plan.pace.step_seconds:.3g} s"
    line(out, f"  {plan.pace.images_per_second:,.0f} images/s, {measured}")
    epoch = f"{plural(job.batches.steps, 'step')}, then about {duration(plan.validation)} of validation"
    line(out, f"  {duration(plan.epoch_seconds)} an epoch: {epoch}")
    behind = f" ({plan.done} of {job.recipe.epochs} are done)" if plan.done else ""
    line(out, f"  {duration(plan.seconds)} to go for {plural(job.recipe.epochs - plan.done, 'epoch')}{behind}")
    if plan.pace.peak_bytes is not None:
        line(out, f"  {plan.pace.peak_bytes / 2**30:.2f} GiB at most on the GPU")
    out.print()
    line(out, "settings", "strong")
    rows = table("setting", "value", "from")
    for origin in sorted(
        origins(job.settings, said), key=lambda each: ("said", "preset", "default").index(each.source)
    ):
        style = "" if origin.source == "said" else "quiet"
        rows.add_row(
            *(Text(text, style=style) for text in (origin.name, value_text(origin.name, origin.value), origin.source))
        )
    put(out, rows, 2)
    out.print()
    line(out, "Nothing was written. Leave out --dry-run to start.")


def passes_table(*columns: str) -> Table:
    """A table that ends in the four counts of passes."""
    counted = ("forward", "train", "back x", "back w")
    return table(*columns, *counted, right=("weights", *counted), fold=("network",))


def counts(passes: Passes) -> list[str]:
    """The cells of one network's passes."""
    return [str(n) for n in (passes.forwards, passes.train_forwards, passes.input_backwards, passes.weight_backwards)]


def value_text(name: str, value: Any) -> str:
    """A setting's value as it would be said."""
    from mmard.balls import as_fraction

    if value is None:
        return "not set"
    if name in ("eps", "step_size"):
        return as_fraction(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        pairs = [(key, own) for key, each in value.items() for own in (each if isinstance(each, list) else [each])]
        return ", ".join(f"{key}={own}" for key, own in pairs)
    if isinstance(value, list | tuple):
        return ",".join(f"{each:g}" for each in value)
    return str(value)
