"""One idle client: the time from a request to its answer, and where it goes.

Sends digits to `carpool local`, one after the other over a connection that stays open, and reads the processes' own
clocks: what each part of a request's way takes on average. Also the memory that each process holds when nothing is asked.
"""

import argparse
import http.client
import json
import pathlib
import statistics
import time

from progress import Progress
from server import Local

NAME = "digits"
# Asked before anything is measured: the first answers of a process pay for pages and connections.
WARM_UP = 200
# Metrics of a histogram each, by what they are of.
PARTS = {
    "proxy": "carpool_proxy_hop_seconds",
    "worker": "carpool_worker_hop_seconds",
    "in the queue": "carpool_queue_wait_seconds",
    "forward pass": "carpool_forward_seconds",
}


class Means:
    """Sums and counts of the histograms, to take means between two looks."""

    def __init__(self, local: Local) -> None:
        self._sums = {part: local.series(f"{name}_sum") for part, name in PARTS.items()}
        self._counts = {part: local.series(f"{name}_count") for part, name in PARTS.items()}

    def since(self, before: "Means") -> dict[str, float]:
        """Microseconds of each part."""
        means = {}
        for part, counts in self._counts.items():
            for labels, count in counts.items():
                more = count - before._counts[part].get(labels, 0.0)
                spent = self._sums[part][labels] - before._sums[part].get(labels, 0.0)
                if more > 0:
                    means[f"{part} {labels}".strip()] = round(spent / more * 1e6, 1)
        return means


def bodies(heldout: pathlib.Path) -> list[bytes]:
    return [
        json.dumps(
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [item["image"]]}]}
        ).encode()
        for item in json.loads(heldout.read_text())
    ]


def ask(connection: http.client.HTTPConnection, body: bytes) -> float:
    """Seconds from a request to its answer."""
    asked = time.perf_counter()
    connection.request("POST", f"/v2/models/{NAME}/infer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    took = time.perf_counter() - asked
    if response.status != 200:
        raise SystemExit(f"{response.status} {answer.decode(errors='replace')}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carpool", type=pathlib.Path, required=True, help="the binary")
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for latency.json")
    parser.add_argument("--requests", type=int, default=5000)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    requests = bodies(given.heldout)
    with Local(given.carpool, given.manifest, NAME, given.output / "digits.log") as local:
        resident = local.resident()
        connection = http.client.HTTPConnection("127.0.0.1", local.port, timeout=30)
        for number in range(WARM_UP):
            ask(connection, requests[number % len(requests)])
        before = Means(local)
        progress = Progress("one client: answers", given.requests)
        took = []
        for number in range(given.requests):
            took.append(ask(connection, requests[number % len(requests)]))
            progress.show(number + 1)
        parts = Means(local).since(before)
        connection.close()
    cuts = statistics.quantiles(took, n=100)
    summary = {
        "requests": len(took),
        "microseconds": {"p50": round(cuts[49] * 1e6), "p99": round(cuts[98] * 1e6)},
        "meanMicrosecondsByPart": parts,
        "residentMegabytes": {name: round(size, 1) for name, size in resident.items()},
    }
    (given.output / "latency.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"p50 {summary['microseconds']['p50']} µs, p99 {summary['microseconds']['p99']} µs of {len(took)} requests")
    for part, mean in parts.items():
        print(f"  {mean:8.1f} µs  {part}")
    for name, size in summary["residentMegabytes"].items():
        print(f"  {size:8.1f} MB  {name}")


if __name__ == "__main__":
    main()
