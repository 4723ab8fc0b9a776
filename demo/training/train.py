"""Train the demo model on generated phone screens. Three stages, one command each:

    python train.py decoder --minutes 3 --work build/demo-training
    python train.py vision  --minutes 3 --work build/demo-training
    python train.py joint   --minutes 8 --work build/demo-training

`decoder` and `vision` are independent and may run side by side. The decoder first learns to copy and to look
things up from perfect visual tokens: each token is the sum of the (fixed) embeddings of the characters under it,
each slot turned by a fixed rotation. The vision tower learns to produce those same vectors from pixels. `joint`
then trains everything on whole screens, easy grids first, and may be repeated to train longer. Trained jointly
from nothing, the model learns nothing in the same time.

The minutes are for one large GPU and 16 processor cores that draw the screens (`--workers`); without a GPU, expect
hours, and give `--tiles 16`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from model import DemoModel, start_as_local_filters
from screens import SLOTS, TOKENS_PER_SIDE, Question, Screen, make_dense_tile, make_screen, tiles_of
from vocabulary import ASSISTANT, BOS, CHARACTERS, END, FIRST_CHARACTER, PAD, USER, encode

PREFIX = 2  # <s><|user|>, then the image
DENSE_SHARE = 0.15  # tiles full of text beside those of the screens, in `joint`
CHARACTER_COUNT = len(CHARACTERS) - 1  # the newline is never drawn
TABLES = ("embed_tokens", "position_embedding", "lm_head")  # matrices by shape, not by what they do


def conversation(rng: random.Random, questions: list[Question], limit: int) -> tuple[list[int], list[int]]:
    """Token ids of several turns about one screen, and a mask that is 1 on the answers."""
    # Reading everything is the dense lesson that makes copying appear; it always comes.
    questions = rng.sample(questions, len(questions))
    ids, mask = [BOS, USER], [0, 0]
    for number, question in enumerate(questions):
        asked = ([] if number == 0 else [USER]) + encode(question.text) + [END, ASSISTANT]
        answer = [*encode(question.answer), END]
        ids += asked + answer
        mask += [0] * len(asked) + [1] * len(answer)
    return ids[:limit], mask[:limit]


def stack_text(rng: random.Random, screens: list[Screen], limit: int) -> tuple[Tensor, Tensor]:
    """Padded token ids [B, L] and answer mask [B, L]."""
    pairs = [conversation(rng, list(screen.questions), limit) for screen in screens]
    length = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([ids + [PAD] * (length - len(ids)) for ids, _ in pairs])
    mask = torch.tensor([mask + [0] * (length - len(mask)) for _, mask in pairs], dtype=torch.float32)
    return ids, mask


def tile_labels(screens: list[Screen], grid: tuple[int, int]) -> Tensor:
    """Labels [B, tiles, 100, SLOTS] in the order of the tiles (no thumbnail)."""
    cols, rows = grid
    labels = torch.from_numpy(np.stack([screen.labels for screen in screens]))
    side = TOKENS_PER_SIDE
    cut = labels.view(len(screens), rows, side, cols, side, SLOTS).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(len(screens), rows * cols, side * side, SLOTS)


class CharacterTargets:
    """The vectors that stand for characters: fixed embeddings, one fixed rotation per slot."""

    def __init__(self, embedding: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        rows = embedding[FIRST_CHARACTER : FIRST_CHARACTER + CHARACTER_COUNT].detach().float().clone()
        size = rows.shape[1]
        rotations = [torch.eye(size)]
        rotations += [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(SLOTS - 1)]
        self.tables = [rows.cpu() @ rotation for rotation in rotations]
        for table in self.tables[1:]:
            table[0] = 0.0  # an empty second or third slot adds nothing
        self.tables = [table.to(embedding.device) for table in self.tables]
        self.scorers = [12.0 * table / table.norm(dim=1, keepdim=True).clamp_min(1e-3) ** 2 for table in self.tables]

    def vectors(self, labels: Tensor) -> Tensor:
        """Labels [..., SLOTS] -> float [..., H]."""
        return torch.stack([table[labels[..., slot]] for slot, table in enumerate(self.tables)]).sum(0)

    def loss(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of visual tokens [..., H] against labels [..., SLOTS], and the accuracy on tokens with characters."""
        tokens = tokens.float()
        weight = torch.ones(CHARACTER_COUNT, device=tokens.device)
        weight[0] = 0.3
        total = 0.05 * (tokens - self.vectors(labels)).pow(2).mean()
        for slot, scorer in enumerate(self.scorers):
            logits = (tokens @ scorer.T).flatten(0, -2)
            if slot:
                logits = torch.cat([torch.full_like(logits[:, :1], 6.0), logits[:, 1:]], 1)
            total = total + functional.cross_entropy(logits, labels[..., slot].flatten(), weight=weight)
        drawn = labels[..., 0] > 0
        accuracy = ((tokens @ self.scorers[0].T).argmax(-1) == labels[..., 0])[drawn].float().mean()
        return total, accuracy


def normalise(tiles: Tensor) -> Tensor:
    """uint8 [B, 160, 160, 3] -> float [B, 3, 160, 160] in -1..1 (SigLIP's mean and deviation of 0.5)."""
    return (tiles.float() / 127.5 - 1.0).permute(0, 3, 1, 2)


class Lessons(IterableDataset[dict[str, Any]]):
    """Batches without end, drawn by the worker processes. `share` is how much of the training time is used."""

    def __init__(self, draw: Callable[[random.Random, float], dict[str, Any]], seed: int) -> None:
        self.draw, self.seed = draw, seed
        self.share = multiprocessing.Value("d", 0.0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        rng = random.Random(1000 * self.seed + (worker.id if worker else 0))
        torch.manual_seed(rng.randrange(1 << 30))
        while True:
            yield self.draw(rng, self.share.value)


class Trainer:
    """The lessons, the optimizers and their schedule.

    Matrices go to Muon (Jordan et al., 2024), which reads twice as well as AdamW after the same steps; the rest to AdamW.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Parameter]], lessons: Lessons, arguments: argparse.Namespace,
                 peak: float) -> None:  # fmt: skip
        named = [(name, value) for name, value in modules if value.requires_grad]
        self.parameters = [value for _, value in named]
        matrices = [value for name, value in named if value.ndim == 2 and not any(table in name for table in TABLES)]
        known = {id(value) for value in matrices}
        others = [value for value in self.parameters if id(value) not in known]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.lessons, self.arguments, self.peak = lessons, arguments, arguments.rate or peak

    def steps(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (step, batch on the device), with warm-up and cosine decay, until the time is over."""
        workers = self.arguments.workers
        loader = DataLoader(
            self.lessons, batch_size=None, num_workers=workers, pin_memory=self.arguments.device != "cpu",
            prefetch_factor=3 if workers else None,
        )  # fmt: skip
        start = time.time()
        for step, batch in enumerate(loader):
            share = (time.time() - start) / (60 * self.arguments.minutes)
            if share >= 1:
                return
            self.lessons.share.value = share
            rate = self.peak * min(1.0, (step + 1) / 150) * (0.5 * (1 + math.cos(math.pi * share)) * 0.97 + 0.03)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            yield step, {name: self._moved(value) for name, value in batch.items()}

    def _moved(self, value: Any) -> Any:
        return value.to(self.arguments.device, non_blocking=True) if isinstance(value, Tensor) else value

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()


def half(arguments: argparse.Namespace) -> torch.autocast:
    """Matrix products in bfloat16."""
    return torch.autocast(arguments.device, torch.bfloat16)


def answer_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    target, weight = ids[:, 1:], mask[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), reduction="none")
    right = ((logits[:, :-1].argmax(-1) == target) * weight).sum() / weight.sum()
    return (losses * weight.flatten()).sum() / weight.sum(), right


EASY_TO_HARD = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (2, 4), (4, 2)]


def pick_grid(rng: random.Random, share: float, easy_until: float = 0.45) -> tuple[int, int]:
    """Small grids at first, all of them later."""
    known = max(1, min(len(EASY_TO_HARD), 1 + int(share / easy_until * len(EASY_TO_HARD))))
    return rng.choice(EASY_TO_HARD[:known] if rng.random() < 0.6 else EASY_TO_HARD[max(0, known - 4) : known])


def misread(labels: Tensor, share: float) -> Tensor:
    """Put a random character into a share of the visual tokens, as a tower that is not perfect does."""
    wrong = torch.zeros_like(labels)
    wrong[..., 0] = torch.randint(1, CHARACTER_COUNT, labels.shape[:-1])
    return torch.where((torch.rand(labels.shape[:-1]) < share)[..., None], wrong, labels)


def screen_count(grid: tuple[int, int], tiles: int) -> int:
    """Screens in a batch of about `tiles` tiles; the text of a screen costs about as much as two tiles."""
    return max(1, tiles // (grid[0] * grid[1] + 2))


def train_decoder(model: DemoModel, arguments: argparse.Namespace) -> None:
    def draw(rng: random.Random, share: float) -> dict[str, Any]:
        grid = pick_grid(rng, 1.0 if arguments.weights else share)
        screens = [make_screen(rng, grid, draw=False) for _ in range(screen_count(grid, arguments.tiles))]
        ids, mask = stack_text(rng, screens, 320)
        labels = misread(tile_labels(screens, grid), 0.03)
        if grid != (1, 1):
            # Nobody can read the thumbnail of a screen with several tiles: the tower will see something there.
            thumbnail = misread(torch.zeros_like(labels[:, :1]), rng.choice((0.0, 0.3, 0.9)))
            labels = torch.cat([thumbnail, labels], 1)
        return {"labels": labels, "ids": ids, "mask": mask, "grid": grid}

    embedding = model.language_model.model.embed_tokens.weight
    targets, frozen = CharacterTargets(embedding), embedding.detach().clone()
    parameters = [*model.language_model.named_parameters(), ("image_newline", model.image_newline)]
    trainer = Trainer(parameters, Lessons(draw, arguments.seed), arguments, 2e-3)
    report = Reporter("decoder", arguments)
    for step, batch in trainer.steps():
        tiles = targets.vectors(batch["labels"])
        tiles = tiles * (1 + 0.1 * torch.randn_like(tiles[:, :1, :1, :1])) + 0.12 * torch.randn_like(tiles)
        with half(arguments):
            logits = model.answer_logits(model.arrange(tiles, batch["grid"]), batch["ids"], PREFIX)
        loss, right = answer_loss(logits, batch["ids"], batch["mask"])
        trainer.update(loss)
        with torch.no_grad():  # the characters' embeddings are the code both stages share
            embedding[FIRST_CHARACTER:].copy_(frozen[FIRST_CHARACTER:])
        report(step, len(tiles), loss=loss, tokens=right)


def train_vision(model: DemoModel, arguments: argparse.Namespace) -> None:
    pool: list[tuple[np.ndarray, Tensor]] = []

    def draw(rng: random.Random, _: float) -> dict[str, Any]:
        while len(pool) < 2 * arguments.tiles:
            pool.extend((pixels, torch.from_numpy(drawn).view(-1, SLOTS)) for pixels, drawn in map(make_dense_tile, [rng] * 16))
            grid = rng.choice(EASY_TO_HARD)
            screen = make_screen(rng, grid)
            labels = tile_labels([screen], grid)[0]
            tiles = tiles_of(screen)[-len(labels) :]
            # Blank tiles teach little: most of them are left out.
            pool.extend((tile, label) for tile, label in zip(tiles, labels, strict=True) if label.any() or rng.random() < 0.1)
        rng.shuffle(pool)
        chosen = [pool.pop() for _ in range(arguments.tiles)]
        pixels = torch.from_numpy(np.stack([tile for tile, _ in chosen]))
        return {"pixels": pixels, "labels": torch.stack([label for _, label in chosen])}

    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    parameters = [*model.vision_tower.named_parameters(), *model.multi_modal_projector.named_parameters()]
    trainer = Trainer(parameters, Lessons(draw, arguments.seed + 1), arguments, 3e-3)
    report = Reporter("vision", arguments)
    for step, batch in trainer.steps():
        with half(arguments):
            tokens = model.encode_tiles(normalise(batch["pixels"]))
        loss, accuracy = targets.loss(tokens, batch["labels"])
        trainer.update(loss)
        report(step, len(tokens), loss=loss, characters=accuracy)


def train_joint(model: DemoModel, arguments: argparse.Namespace) -> None:
    def draw(rng: random.Random, share: float) -> dict[str, Any]:
        grid = pick_grid(rng, 1.0 if arguments.weights else share, 0.4)
        screens = [make_screen(rng, grid) for _ in range(screen_count(grid, arguments.tiles))]
        ids, mask = stack_text(rng, screens, 320)
        dense = [make_dense_tile(rng) for _ in range(max(1, int(DENSE_SHARE * arguments.tiles)))]
        pixels = np.concatenate([*(tiles_of(screen) for screen in screens), np.stack([tile for tile, _ in dense])])
        drawn = torch.from_numpy(np.stack([labels for _, labels in dense])).flatten(1, 2)
        return {
            "pixels": torch.from_numpy(pixels), "ids": ids, "mask": mask, "grid": grid,
            "labels": tile_labels(screens, grid), "dense": drawn,
        }  # fmt: skip

    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    trainer = Trainer(model.named_parameters(), Lessons(draw, arguments.seed + 2), arguments, 1e-3)
    report = Reporter("joint", arguments)
    for step, batch in trainer.steps():
        labels, dense = batch["labels"], batch["dense"]
        with half(arguments):
            encoded = model.encode_tiles(normalise(batch["pixels"]))
            tokens = encoded[: -len(dense)].unflatten(0, (len(labels), -1))
            logits = model.answer_logits(model.arrange(tokens, batch["grid"]), batch["ids"], PREFIX)
        answers, right = answer_loss(logits, batch["ids"], batch["mask"])
        reading = targets.loss(tokens[:, -labels.shape[1] :], labels)[0]
        lesson, accuracy = targets.loss(encoded[-len(dense) :], dense)
        trainer.update(answers + 0.1 * reading + 0.2 * lesson)
        report(step, len(labels), loss=answers, tokens=right, characters=accuracy)
        if step % 1000 == 999:
            save(model, arguments.work / "joint.safetensors")


class Reporter:
    """Prints the running means every 50 steps."""

    def __init__(self, stage: str, arguments: argparse.Namespace) -> None:
        self.stage, self.start, self.seen = stage, time.time(), 0
        self.sums: dict[str, list[Tensor]] = {}

    def __call__(self, step: int, count: int, **figures: Tensor) -> None:
        self.seen += count
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value.detach())
        if step % 50 == 49:
            elapsed = time.time() - self.start
            means = "  ".join(f"{name} {torch.stack(values).mean().item():.4f}" for name, values in self.sums.items())
            rate = f"{self.seen / elapsed:.1f} samples/s"
            print(f"{self.stage} {elapsed / 60:.2f} min  step {step + 1}  {means}  {rate}", flush=True)
            self.sums.clear()


def save(model: DemoModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in model.state_dict().items()}, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["decoder", "vision", "joint"])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--tiles", type=int, default=256, help="tiles in a batch, about")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 1), help="processes that draw screens")
    parser.add_argument("--weights", type=Path, help="go on from these weights; give another --seed")
    arguments = parser.parse_args()
    arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    model = DemoModel()  # the same seed gives both first stages the same character embeddings
    start_as_local_filters(model.vision_tower)
    if arguments.weights is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(arguments.weights).items()})
    elif arguments.stage == "joint":
        model.load_state_dict(load_file(arguments.work / "decoder.safetensors"))
        seen = load_file(arguments.work / "vision.safetensors")
        kept = {name: value for name, value in seen.items() if not name.startswith(("language_model", "image_"))}
        model.load_state_dict(kept, strict=False)
    model.to(arguments.device)
    {"decoder": train_decoder, "vision": train_vision, "joint": train_joint}[arguments.stage](model, arguments)
    save(model, arguments.work / f"{arguments.stage}.safetensors")


if __name__ == "__main__":
    main()
