"""The model without a server: what no batching can be faster than."""

import pathlib
import time

import tokenizers
import torch


class Model:
    """A text model's artifact, run as a worker runs it: padded to the longest of a batch, with as many threads."""

    def __init__(self, artifact: pathlib.Path, max_length: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = torch.jit.load(str(artifact / "model.pt")).eval()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(artifact / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding()

    def seconds(self, texts: list[str], batch: int) -> float:
        """How long the forward passes over all texts take together, without making tokens of them."""
        inputs = [self._inputs(texts[start : start + batch]) for start in range(0, len(texts), batch)]
        with torch.inference_mode():
            # TorchScript settles on its code in the first calls.
            for arguments in inputs[:5]:
                self._model(*arguments)
            begun = time.perf_counter()
            for arguments in inputs:
                self._model(*arguments)
            return time.perf_counter() - begun

    def _inputs(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = self._tokenizer.encode_batch(texts)
        return (
            torch.tensor([tokens.ids for tokens in encoded]),
            torch.tensor([tokens.attention_mask for tokens in encoded]),
        )
