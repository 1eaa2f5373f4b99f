"""What a run of the benchmark prints and writes."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aims import verdict
from contestants import Contestant, exact, ratio
from engines import ENGINES, OURS
from workloads import flop

from e5core import EncoderConfig


def print_tables(
    contestants: list[Contestant],
    ceilings: dict[str, list[float]],
    lengths: dict[str, list[int]],
    config: EncoderConfig,
) -> None:
    reference = exact(contestants)
    for name, counts in lengths.items():
        ours = [c for c in contestants if c.engine in OURS]
        columns = "".join(f"  vs {c.precision:>8}" for c in ours)
        unit = "ms" if name == "one" else "texts/s"
        print(f"\n{name}: {len(counts)} texts, {sum(counts)} tokens")
        head = f"{unit:>9} {'p95' if name == 'one' else 'tokens/s':>9}"
        print(f"{'':32}{head}  of ceiling  mean cos  worst cos{columns}")
        for c in contestants:
            seconds = statistics.median(c.seconds[name])
            if name == "one":
                latencies = sorted(c.latencies)
                p95 = latencies[math.ceil(0.95 * len(latencies)) - 1]
                figures = f"{1000 * seconds:9.2f} {1000 * p95:9.2f}"
                share, cosines = "", ("", "")
            else:
                figures = f"{len(counts) / seconds:9.1f} {sum(counts) / seconds:9.0f}"
                rate = flop(config, counts) / seconds / 1e9
                share = f"{rate / statistics.median(ceilings[c.precision]):.0%}"
                values = None
                if reference is not None:
                    values = (c.vectors[name] * reference.vectors[name]).sum(axis=1)
                cosines = (
                    ("", "") if values is None else (f"{values.mean():.5f}", f"{values.min():.5f}")
                )
            ratios = "".join(f"  {ratio(o, c, name):10.2f}×" for o in ours)
            print(f"{c.label:32}{figures}  {share:>10}  {cosines[0]:>8}  {cosines[1]:>9}{ratios}")
    print(f"\n{'':32}{'load s':>9} {'peak MB':>9} {'batch':>6}")
    for c in contestants:
        print(f"{c.label:32}{c.load_seconds:9.2f} {c.peak_mb:9.0f} {c.batch:>6}")
    rates = ", ".join(f"{p} {statistics.median(r):.0f}" for p, r in ceilings.items())
    print(f"\nmatrix products, GFLOP/s: {rates}")


# What e5core is to reach in small where every library is held to one instruction set: beside the
# best of them in the same precision, and in int8 beside its own float32.
HELD = {
    "float32": {"mixed": 1.4, "one": 1.15, "short": 1.1},
    "int8": {"mixed": 2.0, "one": 3.0, "short": 2.0},
}
INT8_GAIN = {"avx2": 1.4, "avxvnni": 2.0}


def bars(
    contestants: list[Contestant],
    shares: dict[str, float],
    model: str,
    instructions: str | None = None,
) -> list[str]:
    """Lines "held" or "missed": what e5core set out to reach, as ratios within one run.

    instructions  what every library was held to
    """
    by_label = {c.label: c for c in contestants}
    our_name = f"native/{instructions}" if instructions else "e5core"
    lines = []

    def bar(what: str, measured: float, wanted: float) -> None:
        lines.append(verdict(what, measured, wanted))

    def against(precision: str, label: str, name: str, wanted: float) -> None:
        ours, other = by_label.get(f"{our_name} {precision}"), by_label.get(label)
        if ours and other and name in ours.seconds:
            bar(f"{ours.label} : {label} on {name}", ratio(ours, other, name), wanted)

    def against_best(precision: str, name: str, wanted: float) -> None:
        ours = by_label.get(f"{our_name} {precision}")
        others = [c for c in contestants if c.precision == precision and c.engine not in OURS]
        if instructions:
            others = [c for c in others if ENGINES[c.engine].has_switch]
        if ours and others and name in ours.seconds:
            best = min(others, key=lambda c: statistics.median(c.seconds[name]))
            against(precision, best.label, name, wanted)

    if instructions:
        for precision, aims in HELD.items() if model == "small" else ():
            for name, wanted in aims.items():
                against_best(precision, name, wanted)
        if model == "small":
            for name in ("mixed", "short"):
                against("int8", f"{our_name} float32", name, INT8_GAIN[instructions])
        if model == "large" and f"{our_name} float32" in shares:
            bar(f"{our_name} float32, share of the peak", shares[f"{our_name} float32"], 0.85)
        return lines
    if model == "small":
        for precision in ("float32", "bfloat16"):
            for name, wanted in (("mixed", 1.4), ("short", 1.1), ("one", 1.0)):
                against_best(precision, name, wanted)
        against("float32", "sentence-transformers float32", "mixed", 2.0)
        against("bfloat16", "sentence-transformers float32", "mixed", 3.5)
    else:
        against("float32", "transformers float32", "mixed", 4.0)
        against("bfloat16", "transformers float32", "mixed", 8.0)
        against("float32", "transformers float32", "one", 4.0)
        if model == "large" and "e5core float32" in shares:
            bar("e5core float32, share of the ceiling on mixed", shares["e5core float32"], 0.85)
    against("int8", "e5core bfloat16", "mixed", 1.35)
    return lines


def figures(contestants: list[Contestant], ceilings: dict[str, list[float]]) -> dict[str, Any]:
    rows = [
        {
            "engine": c.engine,
            "precision": c.precision,
            "batch_sizes": c.batch_sizes,
            "load_seconds": c.load_seconds,
            "peak_mb": c.peak_mb,
            "seconds": c.seconds,
        }
        for c in contestants
    ]
    return {"contestants": rows, "ceilings_gflops": ceilings}


def shares_of_ceiling(
    contestants: Sequence[Contestant],
    ceilings: Mapping[str, list[float]],
    lengths: Sequence[int],
    config: EncoderConfig,
) -> dict[str, float]:
    """The share of the ceiling that each contestant reaches on mixed texts, by its label."""
    return {
        c.label: flop(config, lengths)
        / statistics.median(c.seconds["mixed"])
        / 1e9
        / statistics.median(ceilings[c.precision])
        for c in contestants
        if "mixed" in c.seconds
    }
