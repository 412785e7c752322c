"""What the steps of a refinement cost: seconds and peak resident memory of each.

Contract: measured in the process that does the work. Where the kernel does not let a process reset its own peak, a
step's peak is that of the process so far.
"""

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OWN = Path("/proc/self")


class Steps:
    """``with steps("pca"): ...``; ``found`` maps each step to ``seconds`` and ``peak_gb``."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure one step."""
        with suppress(OSError):
            (_OWN / "clear_refs").write_text("5")
        started = time.perf_counter()
        yield
        self.found[name] = {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_gb": round(_peak_bytes() / 1e9, 3),
        }


def _peak_bytes() -> int:
    with suppress(OSError, TypeError):
        return int(re.search(r"VmHWM:\s+(\d+) kB", (_OWN / "status").read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
