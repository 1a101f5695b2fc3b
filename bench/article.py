"""The article's experiment: the time that 10, 15, 20 and 30 client threads need for 50 queries each.

Held-out sentences go through `carpool local` twice, in batches and one at a time; both ways pass through Redis. A third
measurement runs the model alone at the batch size that so many threads can fill. Writes chart.svg, chart.png and
summary.json into a folder.
"""

import argparse
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
WARM_UP = 100
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


def by_itself(
    model: alone.Model, questions: list[load.Question], counts: list[int], each: int
) -> list[dict[str, float]]:
    """The forward passes alone, at the batch size that so many threads can fill."""
    progress = Progress("the model alone: thread counts", len(counts))
    runs = []
    for done, threads in enumerate(counts, start=1):
        # In the order in which the threads ask: one question of each, then the next of each.
        texts = [question.text for turn in zip(*deal(questions, threads, each), strict=True) for question in turn]
        batch = min(threads, MAX_BATCH)
        runs.append({"threads": threads, "batch": batch, "seconds": round(model.seconds(texts, batch), 3)})
        progress.show(done)
    return runs


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """The figures, a line per number of threads."""
    lines = [
        "threads  one at a time, through Redis      batched, through Redis                       the model alone",
        "  × 50   total s    q/s  p50 ms  p99 ms    total s    q/s  p50 ms  p99 ms  mean batch    total s (batch)",
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
    # An end by signal must still end the child processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given.output.mkdir(parents=True, exist_ok=True)

    questions = [load.Question(**question) for question in json.loads(given.heldout.read_text())]
    random.Random(SEED).shuffle(questions)
    runs = {}
    for mode, manifest in manifests(given.manifest, given.output).items():
        print(f"starting carpool local, {mode}", file=sys.stderr)
        with Local(given.carpool, manifest, NAME, given.output / f"{mode}.log") as local:
            load.replay(local.port, deal(questions, max(given.threads), WARM_UP // max(given.threads)), lambda _: None)
            runs[mode] = [served(local, questions, threads, given.queries, mode) for threads in given.threads]
    threads = len(os.sched_getaffinity(0))
    model = alone.Model((given.manifest.parent / "artifact"), MAX_TOKENS, threads)
    runs["alone"] = by_itself(model, questions, given.threads, given.queries)

    answers = [run for mode in ("batched", "unbatched") for run in runs[mode]]
    asked, right = sum(run["queries"] for run in answers), sum(run["right"] for run in answers)
    summary = {
        "accuracy": round(right / asked, 4),
        "answers": asked,
        "machine": {"processors": threads, "architecture": platform.machine(), "device": "cpu"},
        "runs": runs,
    }
    (given.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    chart.draw(runs, given.queries, given.output)
    print(table(runs))
    print(f"\n{right / asked:.1%} of {asked} answers agree with the label that people gave the sentence.")
    print(f"chart: {given.output}/chart.png and chart.svg; figures: {given.output}/summary.json")


if __name__ == "__main__":
    main()
