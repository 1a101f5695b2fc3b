"""The model without a server: what no batching can be faster than."""

import math
import pathlib
import time
from collections.abc import Callable

import tokenizers
import torch

# One may be disturbed, and in the first one TorchScript still settles on its code.
ROUNDS = 2


class Model:
    """A text model's artifact, run as a worker runs it: padded to the longest of a batch, with as many threads."""

    def __init__(self, artifact: pathlib.Path, max_length: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = torch.jit.load(str(artifact / "model.pt")).eval()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(artifact / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding()

    def seconds(self, texts: list[str], batch: int, progress: Callable[[int], None]) -> float:
        """How long the forward passes over all texts take together, without making tokens of them.

        Each batch counts with the best of `ROUNDS`: this is to be what the model needs, not what else the machine did.
        """
        inputs = [self._inputs(texts[start : start + batch]) for start in range(0, len(texts), batch)]
        best = [math.inf] * len(inputs)
        with torch.inference_mode():
            for number in range(ROUNDS * len(inputs)):
                place = number % len(inputs)
                begun = time.perf_counter()
                self._model(*inputs[place])
                best[place] = min(best[place], time.perf_counter() - begun)
                progress(number + 1)
        return sum(best)

    def _inputs(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = self._tokenizer.encode_batch(texts)
        return (
            torch.tensor([tokens.ids for tokens in encoded]),
            torch.tensor([tokens.attention_mask for tokens in encoded]),
        )
