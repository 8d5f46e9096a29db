"""Log levels of verbose libraries, and tracebacks of late callbacks."""

from __future__ import annotations

import os
import sys
from typing import Any

from absl import logging


def quiet_libraries() -> None:
    """Limits absl, gRPC and XLA's C++ logs to warnings and errors. Call it before these libraries are imported.

    Also drops the traceback "Event loop is closed", which TensorStore prints once per array if a restore fails: its
    callbacks come after Orbax has closed the event loop, and the error of the restore itself is raised.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _drop_late_callbacks


def _drop_late_callbacks(unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
