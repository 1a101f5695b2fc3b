"""What libtorch alone says of every held-out sentence, one at a time: the answers that batches are held against."""

import argparse
import json
import pathlib

import tokenizers
import torch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("artifact", type=pathlib.Path)
    arguments.add_argument("heldout", type=pathlib.Path)
    arguments.add_argument("output", type=pathlib.Path)
    arguments.add_argument("--labels", nargs="+", default=["NEGATIVE", "POSITIVE"])
    arguments.add_argument("--max-length", type=int, default=128)
    given = arguments.parse_args()

    model = torch.jit.load(str(given.artifact / "model.pt")).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(given.artifact / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(given.max_length)
    answers = []
    with torch.inference_mode():
        for sentence in json.loads(given.heldout.read_text()):
            tokens = tokenizer.encode(sentence["text"])
            logits = model(torch.tensor([tokens.ids]), torch.tensor([tokens.attention_mask]))
            scores = logits[0].softmax(0)
            best = int(scores.argmax())
            answers.append({"text": sentence["text"], "label": given.labels[best], "score": float(scores[best])})
    given.output.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
