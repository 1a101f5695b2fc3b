"""Makes the digits model: a small convolutional net on scikit-learn's handwritten digits, 8 by 8 pixels from 0 to 16.

Writes artifact/model.pt (TorchScript), heldout.json (the fifth that was not trained on) and summary.json into a folder.
"""

import argparse
import json
import pathlib
import time

import torch
from progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 7
EPOCHS = 15
BATCH = 32
RATE = 3e-3
BRIGHTEST = 16.0


class Digits(nn.Module):
    """Pixels as they are in the data set, [rows, 1, 8, 8], to a logit for each digit, [rows, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 4 * 4, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image / BRIGHTEST)


def train(model: Digits, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    progress = Progress("training", EPOCHS)
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        schedule.step()
        progress.show(epoch, f"loss {total / len(images):.4f}")
    model.eval()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path, help="where the model is written")
    arguments.add_argument("--downloads", type=pathlib.Path, help="not needed: the data comes with scikit-learn")
    given = arguments.parse_args()
    started = time.monotonic()
    torch.manual_seed(SEED)
    # So small a model gains nothing from more, and its figures are then the same on every machine.
    torch.set_num_threads(1)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    training, heldout = train_test_split(
        torch.arange(len(labels)), test_size=0.2, random_state=SEED, stratify=digits.target
    )

    model = Digits()
    train(model, images[training], labels[training])
    artifact = given.folder / "artifact"
    artifact.mkdir(parents=True, exist_ok=True)
    torch.jit.freeze(torch.jit.trace(model, images[:2])).save(str(artifact / "model.pt"))
    with torch.inference_mode():
        found = torch.jit.load(str(artifact / "model.pt"))(images[heldout]).argmax(1)
    accuracy = (found == labels[heldout]).float().mean().item()

    questions = [{"image": images[index].tolist(), "label": int(labels[index])} for index in heldout]
    (given.folder / "heldout.json").write_text(json.dumps(questions))
    summary = {
        "accuracy": round(accuracy, 4),
        "training": len(training),
        "heldout": len(heldout),
        "seconds": round(time.monotonic() - started, 1),
    }
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"digits: {accuracy:.1%} of {len(heldout)} held-out images right, {summary['seconds']:.0f} s")


if __name__ == "__main__":
    main()
