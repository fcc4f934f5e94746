"""`mmard bench`: what was measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from mmard.cli.options import Json, command, option
from mmard.errors import Refused
from mmard.screen import INTERRUPTED, busy, complain, console, line, print_json, put, rich_table
from mmard.settings import MOST_THREADS


class Bench(Json):
    """What `mmard bench` is asked for."""

    size: str = option(
        "auto", "Networks and batches: laptop, gpu, or auto by device; tiny shows that it runs.", "NAME", panel="Speed"
    )
    only: str = option("", "These methods, e.g. rslad,adaad+igdm.", "LIST")
    part: str = option("", "Of methods, pairs, price (of MMARD), attacks, data.", "LIST", panel="Speed", shown="all")
    minutes: float = option(
        8.0, "Time that is kept, by fewer repetitions where it must be.", panel="Speed", gt=0, le=1440
    )
    threads: int = option(1, "Of the CPU; with one, time of the process counts.", panel="Speed", ge=1, le=MOST_THREADS)
    agreement: bool = option(
        False, "Instead of speed: what engine and precision change in x_adv, loss and update.", panel="Agreement"
    )
    run: Path | None = option(
        None, "On this run's student and teacher; on two trained on digits now if not given.", "RUN", panel="Agreement"
    )
    images: int = option(64, "Of the test set.", panel="Agreement", ge=1)
    seed: int = option(0, "Of the attack's start.", panel="Agreement")
    data_dir: Path | None = option(None, "Folder that holds the run's data.", "FOLDER", panel="Agreement")
    device: str = option("auto", "cpu, cuda, cuda:1, or auto.")
    out: Path | None = option(
        None,
        "Folder of the record and its chart; benchmarks/results in a checkout, else the working directory.",
        "FOLDER",
    )


@command(
    "Look",
    """
    mmard bench
    mmard bench --only rslad,adaad --part methods,pairs
    mmard bench --size gpu --minutes 4 --out here
    mmard bench --agreement
    mmard bench --agreement --run runs/s --only rslad+mmard
    """,
)
def bench(options: Bench) -> None:
    """How fast training, attacks and data are on this machine, the engine beside the plain path in alternation.

    With --agreement: how far the engine's results are from the plain path's.
    """
    if options.run is not None and not options.agreement:
        raise Refused("--run", expected="--agreement beside it", got="none", mend="say --agreement as well")
    from mmard.bench.agreement import agreement
    from mmard.bench.measure import benchmark
    from mmard.bench.records import default_folder

    data_dir = None if options.data_dir is None else str(options.data_dir)
    both: dict[str, Any] = {"only": _words(options.only), "device": options.device}
    both["out"] = options.out or default_folder()
    speed: dict[str, Any] = {"part": _words(options.part), "minutes": options.minutes, "threads": options.threads}
    closeness: dict[str, Any] = {"images": options.images, "seed": options.seed, "data_dir": data_dir}
    try:
        with busy("agreement" if options.agreement else "benchmark") as tell:
            if options.agreement:
                record = agreement(options.run, **both, **closeness, progress=tell)
            else:
                record = benchmark(options.size, **both, **speed, progress=tell)
    except KeyboardInterrupt:
        complain("stopped; nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    if options.as_json:
        print_json(record)
        return
    (agreed if options.agreement else shown)(console(), record)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


Record = Mapping[str, Any]


def shown(out: Console, record: Record) -> None:
    """The record of a benchmark."""
    from mmard.bench.variants import RUN_EPOCHS, RUN_IMAGES

    name = record["environment"]["cpu"] if record["device"] == "cpu" else record["device"]
    line(out, f"{name}; {record['clock']}", "strong")
    found = {k: v for k, v in record["ceilings"].items() if k != "copy"}
    rates = ", ".join(f"{kind.replace('_', ' ')} {rate / 1e9:,.0f}" for kind, rate in found.items())
    line(out, f"  ceilings: {rates} GFLOP/s, copy {record['ceilings']['copy'] / 1e9:,.1f} GB/s", "quiet")
    if record["methods"]:
        out.print()
        line(out, "a training step of every method", "strong")
        _methods(out, record["methods"])
    if record["pairs"]:
        out.print()
        line(out, "a training step with the networks of papers", "strong")
        _pairs(out, record["pairs"])
    if record["methods"] or record["pairs"]:
        line(
            out,
            "  x: times as fast as plain, median [quartiles] of the ratios of n rounds; noise: quartiles on",
            "quiet",
        )
        line(out, "  both sides of 1. Fewer than 3 rounds have no quartiles, and show large differences only", "quiet")
    if record["price"] is not None:
        _price(out, record["price"])
    if record["attacks"]:
        _attacks(out, record["attacks"])
    if record["data"]:
        out.print()
        line(out, "batches", "strong")
        for row in record["data"]:
            speed = f"{row['images_per_second']:,.0f} images/s, {row['batches_per_second']:,.0f} batches/s"
            line(out, f"  augmentation {row['augmentation']}: {speed} of {row['batch']} (n = {row['n']})")
    if record["hours"]:
        out.print()
        line(out, f"hours of a run: {RUN_EPOCHS} epochs of {RUN_IMAGES:,} images by step time alone", "strong")
        grid = rich_table("", "", "networks", "hours", right=("hours",))
        for row in record["hours"]:
            grid.add_row(
                row["method"], row["variant"], f"{row['networks']}, batch {row['batch']}", f"{row['hours']:,.1f}"
            )
        put(out, grid, 2)
    _ending(out, record)


def _methods(out: Console, rows: Sequence[Record]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["variants"] if name != "plain"))
    heads = [f"{name} x" for name in names]
    line(out, f"  {max((row['networks'] for row in rows), key=len)}, batch {rows[0]['batch']}", "quiet")
    columns = ["method", "plain s", "images/s", *heads, "n"]
    grid = rich_table(*columns, right=columns[1:])
    for row in rows:
        variants = row["variants"]
        plain = variants["plain"]
        cells = [f"{plain['step_seconds']['median']:.3g}", f"{plain['images_per_second']:,.1f}"]
        cells += [_ratio(variants[name]["ratio"]) if name in variants else "" for name in names]
        grid.add_row(row["method"], *cells, str(plain["step_seconds"]["n"]))
    put(out, grid, 2)


def _pairs(out: Console, rows: Sequence[Record]) -> None:
    heads = ("s/step", "images/s", "x", "share", "MiB", "n")
    for row in rows:
        line(out, f"  {row['method']}, {row['networks']}, batch {row['batch']}")
        grid = rich_table("way", *heads, right=heads)
        for name, own in row["variants"].items():
            memory = "" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 2**20:,.0f}"
            step = own["step_seconds"]
            cells = [f"{step['median']:.3g}", f"{own['images_per_second']:,.2f}", _ratio(own["ratio"])]
            grid.add_row(name, *cells, f"{own['of_matmul']:.0%}", memory, str(step["n"]))
        put(out, grid, 4)
    line(out, "  share: of the ceiling in that precision; MiB: that it takes more", "quiet")


def _ratio(spread: Record | None) -> str:
    from mmard.bench.machine import Spread

    return "" if spread is None else str(Spread(**spread))


def _price(out: Console, price: Record) -> None:
    out.print()
    line(out, f"the price of MMARD, in steps of {price['host']}", "strong")
    line(out, f"  {price['networks']}, batch {price['batch']}, engine in {price['precision']}", "quiet")
    grid = rich_table(
        "", "s/step", "images/s", "steps of the host", "n", right=("s/step", "images/s", "steps of the host", "n")
    )
    for row in price["rows"]:
        step, speed = row["step_seconds"], row["images_per_second"]
        grid.add_row(row["form"], f"{step['median']:.3g}", f"{speed:,.1f}", _ratio(row["hosts"]), str(step["n"]))
    put(out, grid, 2)


def _attacks(out: Console, rows: Sequence[Record]) -> None:
    out.print()
    line(out, "attacks, on images that withstand", "strong")
    grid = rich_table(
        "attack", "network", "images/s", "twin x", "n", right=("images/s", "twin x", "n"), fold=("attack",)
    )
    for row in rows:
        plain, twin = row["variants"]["itself"], row["variants"]["twin"]
        speed = f"{plain['images_per_second']:.3g}"
        grid.add_row(row["attack"], row["network"], speed, _ratio(twin["ratio"]), str(twin["ratio"]["n"]))
    put(out, grid, 2)


def agreed(out: Console, record: Record) -> None:
    """The record of an agreement."""
    subject = record["subject"]
    line(out, subject["line"], "strong")
    line(
        out,
        f"  {subject['n']} images, {subject['norm']} {subject['eps']:.4g}, {subject['attack_steps']} steps",
        "quiet",
    )
    heads = ("reached", "signs", "x_adv", "loss", "update")
    for method in dict.fromkeys(row["method"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["method"] == method]
        climbed = rows[0].get("attack_loss")
        reached = "" if climbed is None else f": attack loss {climbed['start']:.4g} to {climbed['reference']:.4g}"
        line(out, f"  {method}{reached}")
        grid = rich_table("second beside first", *heads, right=heads)
        for row in rows:
            cells = ["", "", ""]
            if climbed is not None:
                ratio = row["attack_loss_ratio"]
                shares = (f"{row['equal_signs']:.2%}", f"{row['equal_x_adv']:.2%}")
                cells = ["" if ratio is None else f"{ratio:.2%}", *shares]
            differences = (f"{row[name]:.1e}" for name in ("loss_difference", "update_difference"))
            grid.add_row(row["pairing"], *cells, *differences)
        put(out, grid, 4)
    line(out, "  reached: the second's attack loss in that of the first; signs, x_adv: equal shares;", "quiet")
    line(out, "  loss, update: relative difference of the loss and of its gradient by the weights", "quiet")
    _ending(out, record)


def _ending(out: Console, record: Record) -> None:
    if record["notes"]:
        out.print()
    for note in record["notes"]:
        line(out, f"note: {note}")
    out.print()
    for file in record["files"]:
        line(out, file)
