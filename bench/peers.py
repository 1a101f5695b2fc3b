"""bert-tiny through Carpool and through mosec, one worker with one thread each, in turns: requests a second, the servers'
processor time for each request, and the memory that they hold.

Every answer is checked against the model alone. Ratios within one run mean something; the figures themselves depend on
what else the machine does, the load generator included.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from processes import family, processor_seconds, resident_mb
from progress import Progress
from server import Local, free_port

NAME = "bert-tiny"
LAYERS, WIDTH, HEADS, VOCABULARY, TOKENS = 2, 128, 2, 30522, 32
# mosec waits this long for a batch to fill, in ms; the best of them counts.
WAITS_MS = (1, 5, 10)
QUESTIONS = 64
WARM_UP_SECONDS = 2.0
TOLERANCE = 1e-4
READY_WITHIN = 60.0


class BertTiny(nn.Module):
    """An encoder of bert-tiny's size with random weights, the mean over its tokens, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(512, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS)])
        self.project = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS)])
        self.widen = nn.ModuleList([nn.Linear(WIDTH, 4 * WIDTH) for _ in range(LAYERS)])
        self.narrow = nn.ModuleList([nn.Linear(4 * WIDTH, WIDTH) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows, length = input_ids.shape
        places = torch.arange(length)
        x = self.norm(self.words(input_ids) + self.positions(places))
        mask = (attention_mask != 0)[:, None, None, :]
        for layer in range(LAYERS):
            heads = self.qkv[layer](x).view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
            mixed = mixed.transpose(1, 2).reshape(rows, length, WIDTH)
            x = self.norms[2 * layer](x + self.project[layer](mixed))
            x = self.norms[2 * layer + 1](x + self.narrow[layer](nn.functional.gelu(self.widen[layer](x))))
        weights = attention_mask.unsqueeze(2).to(x.dtype)
        return self.head((x * weights).sum(1) / weights.sum(1))


class Question(NamedTuple):
    body: bytes
    answer: list[float]


class Server(NamedTuple):
    name: str
    port: int
    path: str
    # Of all its processes.
    processes: Callable[[], list[int]]


class Sample(NamedTuple):
    requests: float
    cpu_microseconds: float
    p50_ms: float
    resident_mb: float


def prepare(folder: pathlib.Path) -> list[Question]:
    """The model's file and manifest, and questions with their answers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    example = (torch.randint(0, VOCABULARY, (2, TOKENS)), torch.ones(2, TOKENS, dtype=torch.int64))
    with torch.no_grad():
        model = torch.jit.trace(BertTiny().eval(), example)
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    torch.jit.save(model, str(folder / NAME / "model.pt"))
    tensors = [{"name": name, "datatype": "INT64", "shape": [TOKENS]} for name in ("input_ids", "attention_mask")]
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [2]}]
    spec = {
        "model": {"uri": f"file://{NAME}", "inputs": tensors, "outputs": outputs},
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
    }
    document = {"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": NAME}, "spec": spec}
    (folder / f"{NAME}.yaml").write_text(json.dumps(document))
    questions = []
    chance = random.Random(0)
    for _ in range(QUESTIONS):
        ids = [chance.randrange(VOCABULARY) for _ in range(TOKENS)]
        inputs = [{**tensor, "shape": [1, TOKENS], "data": data} for tensor, data in zip(tensors, (ids, [1] * TOKENS))]
        with torch.no_grad():
            answer = model(torch.tensor([ids]), torch.ones(1, TOKENS, dtype=torch.int64))[0].tolist()
        questions.append(Question(json.dumps({"inputs": inputs}).encode(), answer))
    return questions


def load(server: Server, questions: list[Question], clients: int, seconds: float) -> Sample:
    """So many clients, each asking one question after the other, all answers checked."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    failures: list[str] = []
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        turn = number
        while time.monotonic() < until and not failures:
            question = questions[turn % len(questions)]
            turn += 1
            asked = time.perf_counter()
            connection.request("POST", server.path, question.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            latencies[number].append(time.perf_counter() - asked)
            if response.status != 200:
                failures.append(f"{server.name}: {response.status} {answer.decode(errors='replace')}")
                return
            given = json.loads(answer)["outputs"][0]["data"]
            if max(abs(a - b) for a, b in zip(given, question.answer)) > TOLERANCE:
                failures.append(f"{server.name}: {given} in place of {question.answer}")
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    before, begun = processor_seconds(server.processes()), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    if failures:
        raise SystemExit(failures[0])
    spent = processor_seconds(server.processes()) - before
    every = [latency for own in latencies for latency in own]
    return Sample(
        requests=len(every) / took,
        cpu_microseconds=spent / len(every) * 1e6,
        p50_ms=statistics.median(every) * 1e3,
        resident_mb=resident_mb(server.processes()),
    )


@contextlib.contextmanager
def mosec(folder: pathlib.Path, wait_ms: int) -> Iterator[Server]:
    port = free_port()
    script = pathlib.Path(__file__).with_name("peer_mosec.py")
    # mosec's own processes meet in a folder of sockets.
    sockets = folder / f"mosec-{wait_ms}"
    environment = {**os.environ, "PEER_MODEL": str(folder / NAME / "model.pt"), "PEER_WAIT_MS": str(wait_ms)}
    command = [sys.executable, script, "--address", "127.0.0.1", "--port", str(port), "--path", sockets, "--timeout", "30000"]
    with (folder / f"mosec-{wait_ms}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + READY_WITHIN
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"mosec did not start; its log is {log.name}")
            time.sleep(0.2)
        yield Server(f"mosec, {wait_ms} ms", port, "/inference", lambda: family(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carpool", type=pathlib.Path, required=True, nargs="+", help="the binary; several are compared, too")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for peers.json, the model and logs")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    questions = prepare(given.output.resolve())
    # As many as mosec's worker has.
    os.environ["CARPOOL_THREADS"] = "1"
    samples: dict[str, list[Sample]] = {}
    with contextlib.ExitStack() as stack:
        servers = []
        for number, carpool in enumerate(given.carpool):
            name = "carpool" if number == 0 else f"carpool, {carpool}"
            local = stack.enter_context(Local(carpool, given.output / f"{NAME}.yaml", NAME, given.output / f"carpool-{number}.log"))
            servers.append(Server(name, local.port, f"/v2/models/{NAME}/infer", lambda local=local: family(local.process_id)))
        servers += [stack.enter_context(mosec(given.output.resolve(), wait)) for wait in WAITS_MS]
        for server in servers:
            load(server, questions, given.clients, WARM_UP_SECONDS)
        progress = Progress("turns", given.repeats * len(servers))
        for turn in range(given.repeats * len(servers)):
            server = servers[turn % len(servers)]
            samples.setdefault(server.name, []).append(load(server, questions, given.clients, given.seconds))
            progress.show(turn + 1)
    middle = {name: Sample(*(statistics.median(values) for values in zip(*own))) for name, own in samples.items()}
    best = max((name for name in middle if name.startswith("mosec")), key=lambda name: middle[name].requests)
    summary = {"clients": given.clients, "medians": {name: sample._asdict() for name, sample in middle.items()}, "best": best}
    print(f"{NAME}, {TOKENS} tokens, {given.clients} clients, one thread each; × {best}: median (range) of {given.repeats} turns")
    for name, own in samples.items():
        ratios = {}
        for field in ("requests", "cpu_microseconds"):
            of_turns = [getattr(a, field) / getattr(b, field) for a, b in zip(own, samples[best])]
            ratios[field] = f"{statistics.median(of_turns):.2f} × ({min(of_turns):.2f} to {max(of_turns):.2f})"
        summary.setdefault("ratios", {})[name] = ratios
        sample = middle[name]
        print(
            f"  {name:32} {sample.requests:6.0f}/s {ratios['requests']:24} {sample.cpu_microseconds:6.0f} µs of CPU "
            f"{ratios['cpu_microseconds']:24} p50 {sample.p50_ms:5.0f} ms  {sample.resident_mb:5.0f} MB"
        )
    (given.output / "peers.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
