"""Log levels of verbose libraries."""

from __future__ import annotations

import os

from absl import logging


def quiet_libraries() -> None:
    """Limits absl, gRPC and XLA's C++ logs to warnings and errors. Call it before these libraries are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
