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
# A request's way: what each part is called, the histogram that measures it and its labels.
PARTS = {
    "proxy: parse, check, encode": ("carpool_proxy_hop_seconds", 'hop="parse"'),
    "proxy: from there to the worker's answer": ("carpool_proxy_hop_seconds", 'hop="queue"'),
    "  in the queue": ("carpool_worker_queue_wait_seconds", ""),
    "  worker: assemble the batch": ("carpool_worker_hop_seconds", 'hop="assemble"'),
    "  worker: run it": ("carpool_worker_hop_seconds", 'hop="run"'),
    "    the forward pass itself": ("carpool_worker_forward_seconds", ""),
    "  worker: encode the answers": ("carpool_worker_hop_seconds", 'hop="encode"'),
    "  worker: answer and fetch": ("carpool_worker_hop_seconds", 'hop="exchange"'),
    "proxy: respond": ("carpool_proxy_hop_seconds", 'hop="respond"'),
}


class Means:
    """Sums and counts of the histograms, to take means between two looks."""

    def __init__(self, local: Local) -> None:
        metrics = {name for name, _ in PARTS.values()}
        self._sums = {name: local.series(f"{name}_sum") for name in metrics}
        self._counts = {name: local.series(f"{name}_count") for name in metrics}

    def since(self, before: "Means") -> dict[str, float]:
        """Microseconds of each part."""
        means = {}
        for part, (name, labels) in PARTS.items():
            count = self._counts[name][labels] - before._counts[name][labels]
            spent = self._sums[name][labels] - before._sums[name][labels]
            means[part] = round(spent / count * 1e6, 1)
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
