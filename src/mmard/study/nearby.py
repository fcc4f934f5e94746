"""The quantities that say how near inputs lie to the boundaries of teacher and student."""

from __future__ import annotations

from mmard.study.summary import Quantity, in_radii, near

STATES = {
    "own": "training examples, attacked as in the run's own training",
    "test": "attacked test images",
}
"""Which inputs, and in words."""


def margin(whose: str, state: str = "own") -> Quantity:
    """Log-probability of the true class minus the largest other, in nats."""
    return near(whose, "mean_margin", f"{whose}: margin", state=state)


def misread(whose: str, state: str = "own") -> Quantity:
    """Share of inputs that a network reads wrongly."""
    return near(whose, "wrong", f"{whose}: misread %", state=state, times=100.0, digits=1)


def entropy(whose: str, state: str = "own") -> Quantity:
    """Of the prediction, in nats."""
    return near(whose, "entropy", f"{whose}: entropy", state=state)


def distance(whose: str, state: str = "own") -> Quantity:
    """To the boundary, if the margin were linear, in radii of the ball."""
    return in_radii(near(whose, "distance_first_order", f"{whose}: distance", state=state))


def nearness(state: str) -> tuple[Quantity, ...]:
    """All of them, the teacher's first."""
    return tuple(
        each(whose, state) for whose in ("teacher", "student") for each in (margin, misread, entropy, distance)
    )
