"""One of several processes that wait inside a run: `python tests/peer.py COORDINATOR COUNT INDEX`.

Prints "connected", then reads a line: "done" ends the run; other words raise an error.
"""

from __future__ import annotations

import sys

from mmjax.errors import RunError, UserError
from mmjax.processes import initialize, watchdog

if __name__ == "__main__":
    coordinator, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        initialize(coordinator, count, index)
        with watchdog():
            print("connected", flush=True)
            match sys.stdin.readline().strip():
                case "UserError":
                    raise UserError("--flag", "is wrong", "give another")
                case "ValueError":
                    raise ValueError("broken")
                case "network":
                    raise RuntimeError("UNAVAILABLE: connection reset")
    except (UserError, RunError) as error:
        print(f"mmjax: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
