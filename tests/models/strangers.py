"""TorchScript models as strangers bring them, each with its manifest, requests, and the answers of rows that run alone.

Some are well behaved. Others change a row's answer with the company that it has in a batch, take one row only, give what
they name, or refuse numbers that are made up. Each is a folder with `model.pt` and `case.json`.
"""

import argparse
import json
import pathlib

import torch

Tensors = dict[str, torch.Tensor]
DATATYPES = {torch.float32: "FP32", torch.int64: "INT64"}


class EmbeddingMean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).mean(1)


class Hidden(EmbeddingMean):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


class MaskedEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(self.table(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


class BatchMean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 3)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.hidden(x).tanh()
        return {"hidden": hidden, "logits": self.head(hidden)}


class OneRow(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.view(1, -1))


class Doubled(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, a], 1) + b.sum(1, keepdim=True) * 0


class Decoder(torch.nn.Module):
    def forward(self, n: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(int(n.max().item()))
        return (steps.unsqueeze(0) < n).float()


class Inverse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


class Sampler(torch.nn.Module):
    def forward(self, p: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(p, 1)


class Guarded(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.abs().sum(1) == 0).any()):
            raise RuntimeError("an empty row")
        return x * 2


class Picky(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 0] > 0.5).any()):
            raise RuntimeError("x must begin with at most 0.5")
        return x * 2


class Particular(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 100).any()):
            raise RuntimeError("x must be at least 100")
        return x * 2


class Packed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1][0]


class Wave(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(1, 2, 16)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.layer(wave.unsqueeze(1)).amax(2)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(1, *shape)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def tensor(name: str, datatype: str, shape: list, **more: int) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def batch_norm() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        return torch.jit.trace(model.train(), torch.randn(4, 4), check_trace=False)


def quantised() -> torch.nn.Module:
    layers = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return torch.jit.script(torch.ao.quantization.quantize_dynamic(layers.eval(), {torch.nn.Linear}, torch.qint8))


def script(module: torch.nn.Module) -> torch.nn.Module:
    return torch.jit.script(module.eval())


def cases() -> dict[str, tuple[torch.nn.Module, list, list, list[Tensors], dict]]:
    """By name: the model, its inputs and outputs as a manifest has them, requests of one row, and more of spec.model."""
    short, long = ids(1, 2), ids(1, 2, 3, 4, 5)
    rows = [{"ids": short}, {"ids": long}, {"ids": ids(3, 4)}]
    words = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in (short, long, ids(7), ids(3, 9, 4))]
    quarters = [{"x": floats(4)} for _ in range(4)]
    y = [tensor("y", "FP32", [4])]
    example = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [100, 200, 300, 400]}]}
    return {
        "embedding-mean": (script(EmbeddingMean()), [tensor("ids", "INT64", [-1])], y, rows, {}),
        "embedding-mean-pad": (
            script(EmbeddingMean()), [tensor("ids", "INT64", [-1], pad=0)], y, rows, {},
        ),
        "hidden-pad": (
            script(Hidden()), [tensor("ids", "INT64", ["seq"], pad=0)], [tensor("hidden", "FP32", ["seq", 4])],
            [{"ids": short}, {"ids": long}], {},
        ),
        "masked-encoder": (
            script(MaskedEncoder()),
            [tensor("input_ids", "INT64", ["seq"], pad=0), tensor("attention_mask", "INT64", ["seq"], pad=0)],
            [tensor("logits", "FP32", [2])], words, {},
        ),
        "batch-norm-training": (batch_norm(), [tensor("x", "FP32", [4])], [tensor("y", "FP32", [3])], quarters, {}),
        "batch-mean": (script(BatchMean()), [tensor("x", "FP32", [4])], y, quarters, {}),
        "quantised-linear": (
            quantised(), [tensor("x", "FP32", [16])], y, [{"x": floats(16) * scale} for scale in (1, 30, 0.1, 5)], {},
        ),
        "dictionary": (
            script(Named()), [tensor("x", "FP32", [4])], [tensor("logits", "FP32", [2]), tensor("hidden", "FP32", [3])],
            quarters, {},
        ),
        "one-row": (
            torch.jit.trace(OneRow().eval(), floats(4)), [tensor("x", "FP32", [4])], [tensor("y", "FP32", [2])], quarters, {},
        ),
        "doubled": (
            script(Doubled()), [tensor("a", "FP32", [-1]), tensor("b", "FP32", [-1])], [tensor("y", "FP32", [-1])],
            [{"a": floats(2), "b": floats(5)}, {"a": floats(3), "b": floats(6)}], {},
        ),
        "decoder": (
            script(Decoder()), [tensor("n", "INT64", [1])], [tensor("y", "FP32", [-1])], [{"n": ids(2)}, {"n": ids(6)}], {},
        ),
        "inverse": (
            script(Inverse()), [tensor("x", "FP32", [3, 3])], [tensor("y", "FP32", [3, 3])],
            [{"x": floats(3, 3)} for _ in range(4)], {},
        ),
        "guarded": (script(Guarded()), [tensor("x", "FP32", [4])], y, quarters, {}),
        "picky": (script(Picky()), [tensor("x", "FP32", [4])], y, [{"x": -floats(4).abs()} for _ in range(4)], {}),
        "particular": (
            script(Particular()), [tensor("x", "FP32", [2])], [tensor("y", "FP32", [2])],
            [{"x": floats(2).abs() + 100} for _ in range(4)], {},
        ),
        "particular-example": (
            script(Particular()), [tensor("x", "FP32", [2])], [tensor("y", "FP32", [2])],
            [{"x": floats(2).abs() + 100} for _ in range(4)], {"example": {"request": example}},
        ),
        "packed-gru": (
            script(Packed()), [tensor("x", "FP32", ["steps", 3], pad=0), tensor("lengths", "INT64", [])],
            [tensor("state", "FP32", [4])],
            [{"x": floats(length, 3), "lengths": torch.tensor([length])} for length in (2, 5, 9, 3)], {},
        ),
        "wave": (
            script(Wave()), [tensor("wave", "FP32", [-1])], [tensor("peak", "FP32", [2])],
            [{"wave": floats(20)}, {"wave": floats(30)}], {},
        ),
    }


def encoded(name: str, value: torch.Tensor) -> dict:
    return {
        "name": name,
        "datatype": DATATYPES[value.dtype],
        "shape": list(value.shape),
        "data": value.flatten().tolist(),
    }


def named(outputs: list, value: torch.Tensor | dict[str, torch.Tensor]) -> list[dict]:
    values = value if isinstance(value, dict) else {outputs[0]["name"]: value}
    return [encoded(output["name"], values[output["name"]]) for output in outputs]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path)
    given = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, (model, inputs, outputs, requests, more) in cases().items():
            folder = given.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            torch.jit.save(model, str(folder / "model.pt"))
            case = {
                "model": {"uri": "file://.", "inputs": inputs, "outputs": outputs, **more},
                "requests": [[encoded(*item) for item in request.items()] for request in requests],
                "answers": [named(outputs, model(*request.values())) for request in requests],
            }
            (folder / "case.json").write_text(json.dumps(case))


if __name__ == "__main__":
    main()
