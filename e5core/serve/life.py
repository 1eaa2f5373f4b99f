"""Whether the server lives, whether it can take work, and what it counts."""

from e5core.serve.http import Answer, Call, json_answer, text_answer
from e5core.serve.metrics import label
from e5core.serve.service import Service

LIVE = ("/livez", "/ping")
READY = ("/readyz", "/health")

# Nobody needs a key for these.
OPEN = (*LIVE, *READY)


def health(service: Service, call: Call) -> Answer | None:
    """The answer to a probe; None if the request is none.

    /livez says that the event loop answers, /readyz that the worker moves.
    """
    if call.method != "GET" or call.path not in OPEN:
        return None
    if call.path in LIVE:
        return json_answer({"status": "live"})
    if (reason := service.why_not_ready()) is not None:
        return json_answer({"status": "not ready", "reason": reason}, 503, {"retry-after": "1"})
    return json_answer({"status": "ready"})


def metrics(service: Service) -> Answer:
    """GET /metrics for Prometheus."""
    sequences, tokens = service.scheduler.waiting()
    counts = service.worker.counts
    gauges = {
        "te_queue_size": sequences,
        "e5core_queue_tokens": tokens,
        "e5core_ready": float(service.why_not_ready() is None),
        "e5core_worker_busy_seconds": service.worker.busy_seconds,
    }
    for served in service.models.everything:
        key = f"e5core_tokens_per_second{{model={label(served.name)}}}"
        gauges[key] = served.engine.pace.tokens_per_second
    counters = {
        "e5core_computed_tokens_total": counts.tokens,
        "e5core_computed_sequences_total": counts.sequences,
        "e5core_batches_total": counts.batches,
        "e5core_unread_tokens_total": counts.unread,
        "e5core_dropped_tokens_total": service.dropped,
        "e5core_out_of_memory_total": counts.halved,
    }
    text = service.metrics.text(gauges, counters)
    return text_answer(text, content_type="text/plain; version=0.0.4")
