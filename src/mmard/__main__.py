"""`python -m mmard` is `mmard`."""

from __future__ import annotations

from mmard.cli import main

main()
