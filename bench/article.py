"""The article's experiment: the time that 10, 15, 20 and 30 client threads need for 50 queries each.

Held-out sentences go through `carpool local` twice, in batches and one at a time; both ways pass through Redis. A third
measurement runs the model alone at the batch size that so many threads can fill. Writes chart.svg, chart.png and
summary.json into a folder.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import random
import signal
import sys

import alone
import chart
import load
from progress import Progress
from server import Local

NAME = "sentiment"
MAX_BATCH = 32
MAX_TOKENS = 128
ONE_AT_A_TIME = "  batching: {maxBatchSize: 1}\n"
# Asked before anything is measured: the first answers of a process pay for pages and connections.
WARM_UP_THREADS, WARM_UP_EACH = 30, 5
SEED = 7


def manifests(source: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The manifest as it is, and a copy of it that allows no batches."""
    text = source.read_text()
    if "batching:" in text:
        raise SystemExit(f"{source} sets batching itself; this compares the default with batches of 1")
    artifact = (source.parent / "artifact").resolve()
    unbatched = folder / "unbatched.yaml"
    unbatched.write_text(text.replace("file://artifact", f"file://{artifact}").rstrip() + "\n" + ONE_AT_A_TIME)
    return {"batched": source, "unbatched": unbatched}


def deal(questions: list[load.Question], threads: int, each: int) -> list[list[load.Question]]:
    """A share for each thread: the first `threads × each` questions, over again where there are not as many."""
    endless = [questions[number % len(questions)] for number in range(threads * each)]
    return [endless[number::threads] for number in range(threads)]


def served(local: Local, questions: list[load.Question], threads: int, each: int, title: str) -> dict[str, float]:
    """What so many threads saw, and how full the batches were."""
    shares = deal(questions, threads, each)
    progress = Progress(f"{title}, {threads} threads: answers", threads * each)
    before = local.batches()
    run = load.replay(local.port, shares, progress.show)
    after = local.batches()
    return {
        "threads": threads,
        "queries": run.count,
        "seconds": round(run.seconds, 3),
        "queriesPerSecond": round(run.count / run.seconds, 1),
        "p50Milliseconds": round(run.percentile(0.50) * 1e3, 1),
        "p99Milliseconds": round(run.percentile(0.99) * 1e3, 1),
        "meanBatch": round((after.rows - before.rows) / (after.runs - before.runs), 1),
        "right": run.right,
    }


def by_itself(model: alone.Model, questions: list[load.Question], threads: int, each: int) -> dict[str, float]:
    """The forward passes alone, at the batch size that so many threads can fill."""
    # In the order in which the threads ask: one question of each, then the next of each.
    texts = [question.text for turn in zip(*deal(questions, threads, each), strict=True) for question in turn]
    batch = min(threads, MAX_BATCH)
    progress = Progress(f"the model alone, {batch} at a time: batches", alone.ROUNDS * -(-len(texts) // batch))
    seconds = model.seconds(texts, batch, progress.show)
    return {"threads": threads, "batch": batch, "seconds": round(seconds, 3)}


def measure(
    given: argparse.Namespace, questions: list[load.Question], processors: int
) -> dict[str, list[dict[str, float]]]:
    """Every way at every number of threads, one right after the other: what else the machine does meets all of them."""
    runs: dict[str, list[dict[str, float]]] = {"unbatched": [], "batched": [], "alone": []}
    model = alone.Model(given.manifest.parent / "artifact", MAX_TOKENS, processors)
    with contextlib.ExitStack() as stack:
        servers = {}
        for mode, manifest in manifests(given.manifest, given.output).items():
            local = Local(given.carpool, manifest, NAME, given.output / f"{mode}.log")
            servers[mode] = stack.enter_context(local)
            load.replay(servers[mode].port, deal(questions, WARM_UP_THREADS, WARM_UP_EACH), lambda _: None)
        for threads in given.threads:
            for mode, server in servers.items():
                runs[mode].append(served(server, questions, threads, given.queries, mode))
            runs["alone"].append(by_itself(model, questions, threads, given.queries))
    return runs


def table(runs: dict[str, list[dict[str, float]]], each: int) -> str:
    """The figures, a line per number of threads."""
    lines = [
        "threads  one at a time, through Redis      batched, through Redis                       the model alone",
        f"{f'× {each}':>7}  "
        " total s    q/s  p50 ms  p99 ms    total s    q/s  p50 ms  p99 ms  mean batch    total s (batch)",
    ]
    for one, many, model in zip(runs["unbatched"], runs["batched"], runs["alone"], strict=True):
        parts = [
            f"{one['threads']:7}",
            *(
                f"{run['seconds']:8.1f} {run['queriesPerSecond']:6.0f} {run['p50Milliseconds']:7.0f} "
                f"{run['p99Milliseconds']:7.0f}"
                for run in (one, many)
            ),
            f"{many['meanBatch']:9.1f}",
            f"{model['seconds']:8.1f} ({model['batch']})",
        ]
        lines.append("  ".join(parts))
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--carpool", type=pathlib.Path, required=True, help="the binary")
    arguments.add_argument("--manifest", type=pathlib.Path, required=True, help="of the sentiment model, built")
    arguments.add_argument("--heldout", type=pathlib.Path, required=True, help="sentences with people's labels")
    arguments.add_argument("--output", type=pathlib.Path, required=True, help="the folder for charts and figures")
    arguments.add_argument("--threads", type=int, nargs="+", default=[10, 15, 20, 30], help="client threads")
    arguments.add_argument("--queries", type=int, default=50, help="of each thread")
    given = arguments.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        # An exit ends the child processes on its way.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    given.output.mkdir(parents=True, exist_ok=True)

    questions = [load.Question(**question) for question in json.loads(given.heldout.read_text())]
    random.Random(SEED).shuffle(questions)
    processors = len(os.sched_getaffinity(0))
    runs = measure(given, questions, processors)

    answers = [run for mode in ("batched", "unbatched") for run in runs[mode]]
    asked, right = sum(run["queries"] for run in answers), sum(run["right"] for run in answers)
    summary = {
        "accuracy": round(right / asked, 4),
        "answers": asked,
        "machine": {"processors": processors, "architecture": platform.machine(), "device": "cpu"},
        "runs": runs,
    }
    (given.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    chart.draw(runs, given.queries, given.output)
    print(table(runs, given.queries))
    print(f"\n{right / asked:.1%} of {asked} answers agree with the label that people gave the sentence.")
    print(f"chart: {given.output}/chart.png and chart.svg; figures: {given.output}/summary.json")


if __name__ == "__main__":
    main()
