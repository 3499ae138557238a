"""What `ctrnn bench` prints: its two tables, and the sentences below them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TITLES = {"forward_backward": "forward and backward", "forward": "forward, without a graph"}


def tables(report: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Titles and rows, for forward and backward, then for forward; times in milliseconds."""
    size = f"n {report['n']} = {report['modules']} x {report['units']}"
    for kind, title in TITLES.items():
        rows = [
            {**row, "median_ms": 1000 * row["median_s"], "min_ms": 1000 * row["min_s"]}
            for row in report["rows"]
            if row["kind"] == kind
        ]
        if len(report["devices"]) > 1:
            rows = [{**row, "name": f"{row['name']} ({row['device']})"} for row in rows]
        if rows:
            yield f"{title}: {size}, batch {report['batch']}, {report['steps']} steps", rows


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """What the numbers depend on, what was checked, and which device is faster."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield f"{report['hardware']}, threads: {report['threads']}; {versions}"
    for device, rates in report["product_rate"].items():
        for dtype, rate in rates.items():
            yield (
                f"product {report['batch']} x {report['n']} x {report['n']} on {device}, {dtype}: "
                f"{rate['median'] / 1e9:.1f} GFLOP/s (median; at most {rate['max'] / 1e9:.1f}); "
                "share is of the median"
            )
    yield "MB: peak memory of the solve, 10^6 bytes"
    for tolerance in sorted({row["tolerance"] for row in report["agreement"]}):
        rows = [row for row in report["agreement"] if row["tolerance"] == tolerance]
        largest = max(max(row["states"], row["gradients"]) for row in rows)
        names = ", ".join(dict.fromkeys(row["name"] for row in rows))
        yield (
            f"checked before timing: states and gradients of {names} agree with the plain loop in "
            f"float64 within {largest:.1e} (relative norms, at most {tolerance:g})"
        )
    if len(report["devices_present"]) == 1:
        yield "only the CPU is present: there is no other device to compare with"
    elif len(report["devices"]) == 1:
        yield f"only {report['devices'][0]} was timed; --device auto compares all that are present"
    else:
        for coupling, best in report["faster_device"].items():
            yield (
                f"faster for this size with coupling {coupling}: {best['device']}, by {best['name']}, "
                f"{1000 * best['median_s']:.2f} ms forward and backward"
            )
