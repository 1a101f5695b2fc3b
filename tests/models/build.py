"""TorchScript models for the end-to-end tests: y = a x + b, after some milliseconds of work a forward pass.

The work is what makes a worker busy for long enough that a kill meets it with requests in hand, and that a queue forms.
Beyond --crash-above the model ends its process: libtorch trusts the indices of a sparse tensor that it was told not to
check, and writes at one far beyond the tensor's end.
"""

import argparse
import pathlib

import torch


class Affine(torch.nn.Module):
    def __init__(self, factor: float, offset: float, rounds: int, crash_above: float) -> None:
        super().__init__()
        self.factor = factor
        self.offset = offset
        self.rounds = rounds
        self.crash_above = crash_above
        self.register_buffer("work", torch.eye(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > self.crash_above).any()):
            beyond = torch.full([1, 1], 1 << 40, dtype=torch.int64)
            x = x + torch.ops.aten._sparse_coo_tensor_unsafe(beyond, torch.ones(1), [1]).to_dense()
        square = self.work
        for _ in range(self.rounds):
            square = torch.mm(square, self.work)
        # An identity to any power leaves the answer as it is, and the work is not optimised away.
        return (x * self.factor + self.offset) * square[0, 0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--factor", type=float, required=True)
    arguments.add_argument("--offset", type=float, required=True)
    arguments.add_argument("--rounds", type=int, default=50)
    arguments.add_argument("--crash-above", type=float, default=float("inf"))
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model = torch.jit.script(Affine(given.factor, given.offset, given.rounds, given.crash_above).eval())
    torch.jit.save(model, str(given.folder / "model.pt"))


if __name__ == "__main__":
    main()
