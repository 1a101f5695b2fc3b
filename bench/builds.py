"""Builds of Carpool side by side, in turns: a small MLP behind each, asked by one client and by 64.

Prints requests a second and the servers' processor time for each request, as ratios to the first build. Ratios within one
run mean something; the figures themselves depend on what else the machine does, the load generator included.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import time
from typing import NamedTuple

import torch
from torch import nn

from processes import family, processor_seconds
from progress import Progress
from server import Local

NAME = "mlp"
WIDTH, HIDDEN, CLASSES = 16, 256, 4
QUESTIONS = 64
# Clients, and the requests that they send in a turn.
LOADS = ((1, 3000), (64, 40000))
WARM_UP = 8000


class Sample(NamedTuple):
    requests: float
    cpu_microseconds: float


def prepare(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The model's manifest, and the file of its questions."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)]
    with torch.no_grad():
        model = torch.jit.trace(nn.Sequential(*layers).eval(), torch.zeros(2, WIDTH))
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    torch.jit.save(model, str(folder / NAME / "model.pt"))
    tensor = {"name": "x", "datatype": "FP32", "shape": [WIDTH]}
    spec = {
        "model": {"uri": f"file://{NAME}", "inputs": [tensor], "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}]},
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
    }
    document = {"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": NAME}, "spec": spec}
    manifest, questions = folder / f"{NAME}.yaml", folder / "questions.json"
    manifest.write_text(json.dumps(document))
    chance = random.Random(0)
    rows = [[round(chance.uniform(-1, 1), 4) for _ in range(WIDTH)] for _ in range(QUESTIONS)]
    questions.write_text(json.dumps([[{**tensor, "shape": [1, WIDTH], "data": row}] for row in rows]))
    return manifest, questions


def load(generator: pathlib.Path, local: Local, questions: pathlib.Path, clients: int, count: int) -> Sample:
    """So many clients, each sending one request after the other."""
    command = [generator, "--url", f"http://127.0.0.1:{local.port}", "--model", NAME, "--inputs", questions]
    command += ["--clients", str(clients), "--count", str(count)]
    before, begun = processor_seconds(family(local.process_id)), time.monotonic()
    answers = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    took = time.monotonic() - begun
    spent = processor_seconds(family(local.process_id)) - before
    failed = [line for line in answers if json.loads(line)["status"] != 200]
    if failed or len(answers) != count:
        raise SystemExit(f"{len(answers)} of {count} answers, {len(failed)} of them errors: {failed[:1]}")
    return Sample(count / took, spent / count * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carpool", type=pathlib.Path, required=True, nargs="+", help="binaries, the one to compare with first")
    parser.add_argument("--load", type=pathlib.Path, required=True, help="the binary carpool-load")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for builds.json, the model and logs")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    manifest, questions = prepare(given.output.resolve())
    os.environ.update(CARPOOL_THREADS="1", OMP_WAIT_POLICY="passive")
    samples: dict[int, list[list[Sample]]] = {clients: [[] for _ in given.carpool] for clients, _ in LOADS}
    with contextlib.ExitStack() as stack:
        locals_ = [
            stack.enter_context(Local(carpool, manifest, NAME, given.output / f"carpool-{number}.log"))
            for number, carpool in enumerate(given.carpool)
        ]
        for local in locals_:
            load(given.load, local, questions, LOADS[-1][0], WARM_UP)
        progress = Progress("turns", given.repeats)
        for turn in range(given.repeats):
            for clients, count in LOADS:
                # The first of a turn is another one each time: what else the machine does meets all of them.
                for number in sorted(range(len(locals_)), key=lambda number: (number + turn) % len(locals_)):
                    samples[clients][number].append(load(given.load, locals_[number], questions, clients, count))
            progress.show(turn + 1)
    summary = {}
    print(f"{NAME}, one thread; × {given.carpool[0]}: median (range) of {given.repeats} turns")
    for clients, builds in samples.items():
        for carpool, own in zip(given.carpool, builds):
            figures = {}
            for field in Sample._fields:
                ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(own, builds[0])]
                middle = statistics.median(getattr(sample, field) for sample in own)
                figures[field] = {"median": middle, "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
            summary.setdefault(clients, {})[str(carpool)] = figures
            shown = [f"{one['median']:7.0f}  {one['ratio']:.2f} × ({one['range'][0]:.2f} to {one['range'][1]:.2f})" for one in figures.values()]
            print(f"  {clients:3} clients  {shown[0]} requests/s  {shown[1]} µs of CPU  {carpool}")
    (given.output / "builds.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
