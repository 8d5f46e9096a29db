"""Several processes of one run: start, roll call, agreement and watch."""

from mmjax.processes.agreement import agree_or_raise
from mmjax.processes.start import initialize
from mmjax.processes.watch import Watch

__all__ = ["Watch", "initialize", "together"]
