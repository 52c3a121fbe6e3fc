"""Counts and times of a service, in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """What a service did so far; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._histograms = {
            "frameflex_request_seconds": _Histogram("From a request's start to its answer.", _SECONDS),
            "frameflex_network_seconds": _Histogram("Of one forward of the network.", _SECONDS),
            "frameflex_batch_size": _Histogram("Clips that went through the network together.", _BATCHES),
        }
        self.in_progress = 0

    def add_request(self, path: str, status: int, seconds: float) -> None:
        """One answer to /predict."""
        with self._lock:
            self._requests[path, status] = self._requests.get((path, status), 0) + 1
            self._histograms["frameflex_request_seconds"].add(seconds)

    def add_look(self, seconds: float, batch_size: int) -> None:
        """One clip's way through the network."""
        with self._lock:
            self._histograms["frameflex_network_seconds"].add(seconds)
            self._histograms["frameflex_batch_size"].add(batch_size)

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            lines = [
                "# HELP frameflex_requests_total Answers by status.",
                "# TYPE frameflex_requests_total counter",
                *(
                    f'frameflex_requests_total{{path="{path}",status="{status}"}} {count}'
                    for (path, status), count in sorted(self._requests.items())
                ),
                "# HELP frameflex_requests_in_progress Requests that are being worked on or wait.",
                "# TYPE frameflex_requests_in_progress gauge",
                f"frameflex_requests_in_progress {self.in_progress}",
            ]
            for name, histogram in self._histograms.items():
                lines += histogram.lines(name)
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, description: str, bounds: Sequence[float]) -> None:
        self.description, self.bounds = description, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        lines, total = [f"# HELP {name} {self.description}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]
