"""Log levels of libraries that are chatty by default."""

from __future__ import annotations

import os

from absl import logging


def quiet_libraries() -> None:
    """Warnings and errors only, from libraries that are chatty by default. Set before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
