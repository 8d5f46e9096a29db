"""Multi-process runs: start-up, roll call, agreement and watchdog."""

from mmjax.processes.agreement import agree_or_raise, exchange
from mmjax.processes.start import initialize
from mmjax.processes.watch import Watchdog, watchdog
