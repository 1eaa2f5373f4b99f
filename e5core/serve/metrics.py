"""Counters and histograms in Prometheus' text format, with the names of text-embeddings-inference.

Source of the names and the buckets: huggingface/text-embeddings-inference, router/src, 1.9.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

DURATIONS = [1e-5 * 1.5**n for n in range(35)]  # seconds
LENGTHS = [float(2**n) for n in range(20)]
SIZES = [float(2**n) for n in range(13)]
TOKENS = [float(2**n) for n in range(21)]


class Histogram:
    """How often values were at most as large as each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        lines, so_far = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            so_far += count
            edge = "+Inf" if bound is None else f"{bound:.6g}"
            lines.append(f'{name}_bucket{{le="{edge}"}} {so_far}')
        return [*lines, f"{name}_sum {self.total:.9g}", f"{name}_count {so_far}"]


# The error of a refusal in te_request_failure, by the status of HTTP.
FAILURES = {429: "overloaded", 499: "dropped", 500: "inference", 503: "overloaded", 504: "dropped"}


class Metrics:
    """What a server counts. The event loop writes all of it but the batches', a worker's thread.

    failures  the last errors of the worker, until they are logged
    """

    def __init__(self) -> None:
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.histograms = {
            "te_request_duration": Histogram(DURATIONS),
            "te_request_tokenization_duration": Histogram(DURATIONS),
            "te_request_queue_duration": Histogram(DURATIONS),
            "te_request_inference_duration": Histogram(DURATIONS),
            "te_request_input_length": Histogram(LENGTHS),
            "te_batch_next_size": Histogram(SIZES),
            "te_batch_next_tokens": Histogram(TOKENS),
        }
        self.failures: deque[Exception] = deque(maxlen=100)

    def note_batch(self, sequences: int, tokens: int) -> None:
        self.histograms["te_batch_next_size"].add(sequences)
        self.histograms["te_batch_next_tokens"].add(tokens)

    def note_request(self, status: int, seconds: float, log: Mapping[str, Any]) -> None:
        """Count a request for work by its end.

        log  its line in the access log
        """
        method = "single" if log.get("texts", 1) == 1 else "batch"
        self.counters[f'te_request_count{{method="{method}"}}'] += 1
        self.counters[f"te_{log.get('work', 'embed')}_count"] += log.get("texts", 0)
        if status >= 400:
            error = FAILURES.get(status, "validation")
            self.counters[f'te_request_failure{{err="{error}"}}'] += 1
            return
        self.counters[f'te_request_success{{method="{method}"}}'] += 1
        self.counters[f"te_{log.get('work', 'embed')}_success"] += log.get("texts", 0)
        self.histograms["te_request_duration"].add(seconds)
        for part in ("tokenization", "queue", "inference"):
            if (found := log.get(f"{part}_ms")) is not None:
                self.histograms[f"te_request_{part}_duration"].add(found / 1000)
        if "tokens" in log:
            self.histograms["te_request_input_length"].add(log["tokens"])

    def text(self, gauges: Mapping[str, float], counters: Mapping[str, int]) -> str:
        """Everything, with values that others keep."""
        lines: list[str] = []
        named: set[str] = set()
        for key, value in sorted({**self.counters, **counters}.items()):
            lines += [*_type(key, "counter", named), f"{key} {value}"]
        for key, number in gauges.items():
            lines += [*_type(key, "gauge", named), f"{key} {number:.9g}"]
        for key, histogram in self.histograms.items():
            lines += histogram.lines(key)
        return "\n".join(lines) + "\n"


def _type(key: str, kind: str, named: set[str]) -> list[str]:
    """The line that names the kind of a metric, before the first of its values.

    key    its name, with labels or without
    named  the metrics that have their line
    """
    name = key.partition("{")[0]
    if name in named:
        return []
    named.add(name)
    return [f"# TYPE {name} {kind}"]


def label(value: str) -> str:
    """A label's value in quotes."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
