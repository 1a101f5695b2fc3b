"""Client threads that each ask one question after the other, over a connection that stays open."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

# Longer than the server's own deadline of 30 s, so that a late answer is the server's to explain.
TIMEOUT = 60.0


class Question(NamedTuple):
    text: str
    label: str


class Replay(NamedTuple):
    """What one run of client threads saw."""

    seconds: float
    # Seconds from each request to its answer, in rising order.
    latencies: list[float]
    # Answers whose label is the one that people gave.
    right: int

    @property
    def count(self) -> int:
        return len(self.latencies)

    def percentile(self, share: float) -> float:
        return self.latencies[min(int(share * self.count), self.count - 1)]


class Refused(Exception):
    """The server gave no answer but a status of its own."""


def ask(connection: http.client.HTTPConnection, text: str) -> str:
    """The label that the model gives this text."""
    body = json.dumps({"text": text}).encode()
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise Refused(f"{response.status} {answer.decode(errors='replace')}")
    # `data` is JSON within JSON, as in the article.
    return json.loads(json.loads(answer)["data"])["label"]


def replay(port: int, shares: list[list[Question]], progress: Callable[[int], None]) -> Replay:
    """Asks every share of the questions from a thread of its own, all starting together."""
    latencies: list[list[float]] = [[] for _ in shares]
    right = [0] * len(shares)
    failures: list[Exception] = []
    start = threading.Barrier(len(shares) + 1)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            connection.connect()
            start.wait()
            for question in shares[number]:
                asked = time.perf_counter()
                label = ask(connection, question.text)
                latencies[number].append(time.perf_counter() - asked)
                right[number] += label == question.label
        except (OSError, http.client.HTTPException, Refused, threading.BrokenBarrierError) as failure:
            failures.append(failure)
            start.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(len(shares))]
    for thread in threads:
        thread.start()
    try:
        start.wait()
    except threading.BrokenBarrierError:
        raise SystemExit(f"a client could not connect: {failures}") from None
    begun = time.perf_counter()
    for thread in threads:
        while thread.is_alive():
            progress(sum(len(own) for own in latencies))
            thread.join(0.2)
    seconds = time.perf_counter() - begun
    progress(sum(len(own) for own in latencies))
    if failures:
        raise SystemExit(f"{len(failures)} clients got no answer; the first: {failures[0]!r}")
    return Replay(seconds, sorted(latency for own in latencies for latency in own), sum(right))
