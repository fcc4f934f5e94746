"""Every command. Importing a file registers its commands; the front page lists them in this order."""

from __future__ import annotations

from mmard.cli.app import app

# isort: off
from mmard.cli import app_train  # noqa: F401
from mmard.cli import app_evaluate  # noqa: F401
from mmard.cli import app_catalogue  # noqa: F401
from mmard.cli import app_bench  # noqa: F401
from mmard.cli import app_compare  # noqa: F401
from mmard.cli import app_report  # noqa: F401
from mmard.cli import app_share  # noqa: F401
from mmard.cli import app_study  # noqa: F401
from mmard.cli import app_study_read  # noqa: F401
# isort: on

__all__ = ["app"]
