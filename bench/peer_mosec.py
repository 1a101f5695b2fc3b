"""bert-tiny behind mosec: the peer of bench/peers.py, with the same model file and the same JSON."""

import json
import os
import sys

import torch
from mosec import Server, Worker

BATCH, WAIT_MS = 32, int(os.environ["PEER_WAIT_MS"])


class Encoder(Worker):
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._model = torch.jit.load(os.environ["PEER_MODEL"]).eval()

    def deserialize(self, data: bytes) -> dict[str, list[int]]:
        return {tensor["name"]: tensor["data"] for tensor in json.loads(data)["inputs"]}

    def forward(self, data: list[dict[str, list[int]]]) -> list[list[float]]:
        inputs = [torch.tensor([item[name] for item in data]) for name in ("input_ids", "attention_mask")]
        with torch.inference_mode():
            return self._model(*inputs).tolist()

    def serialize(self, data: list[float]) -> bytes:
        return json.dumps({"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": data}]}).encode()


if __name__ == "__main__":
    # mosec reads its own settings, the address among them, from the command line.
    assert "--address" in sys.argv
    server = Server()
    server.append_worker(Encoder, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
