"""Train the demo model on generated phone screens. Three stages, one command each:

    python train.py decoder --minutes 30 --threads 1 --work build/demo-training
    python train.py vision  --minutes 35 --threads 1 --work build/demo-training
    python train.py joint   --minutes 80 --threads 2 --work build/demo-training

`decoder` and `vision` are independent and may run side by side. The decoder first learns to copy and to look
things up from perfect visual tokens: each token is the sum of the (fixed) embeddings of the characters under it,
each slot turned by a fixed rotation. The vision tower learns to produce those same vectors from pixels. `joint`
then trains everything on whole screens, easy grids first, and may be repeated to train longer. Trained jointly
from nothing, the model learns nothing in the same time.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from model import DemoModel
from screens import SLOTS, TOKENS_PER_SIDE, Question, Screen, make_dense_tile, make_screen, tiles_of
from vocabulary import ASSISTANT, BOS, CHARACTERS, END, FIRST_CHARACTER, PAD, USER, encode

PREFIX = 2  # <s><|user|>, then the image
DENSE_TILES = 10
CHARACTER_COUNT = len(CHARACTERS) - 1  # the newline is never drawn


def conversation(rng: random.Random, questions: list[Question], limit: int) -> tuple[list[int], list[int]]:
    """Token ids of several turns about one screen, and a mask that is 1 on the answers."""
    questions = [question for question in questions if question.kind != "everything" or rng.random() < 0.35]
    rng.shuffle(questions)
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


def normalise(tiles: np.ndarray) -> Tensor:
    """uint8 [B, 160, 160, 3] -> float [B, 3, 160, 160] in -1..1 (SigLIP's mean and deviation of 0.5)."""
    return torch.from_numpy(tiles.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)


def schedule(arguments: argparse.Namespace, optimizer: torch.optim.Optimizer, peak: float) -> Iterator[tuple[int, float]]:
    """Yield (step, share of the time used), with warm-up and cosine decay, until the time is over."""
    start, step = time.time(), 0
    while (share := (time.time() - start) / (60 * arguments.minutes)) < 1:
        rate = peak * min(1.0, (step + 1) / 150) * (0.5 * (1 + math.cos(math.pi * share)) * 0.96 + 0.04)
        for group in optimizer.param_groups:
            group["lr"] = rate
        yield step, share
        step += 1


def answer_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    target, weight = ids[:, 1:], mask[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), reduction="none")
    right = ((logits[:, :-1].argmax(-1) == target) * weight).sum() / weight.sum()
    return (losses * weight.flatten()).sum() / weight.sum(), right


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


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


def train_decoder(model: DemoModel, arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    embedding = model.language_model.model.embed_tokens.weight
    frozen = embedding.detach().clone()
    parameters = [*model.language_model.parameters(), model.image_newline]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05, betas=(0.9, 0.98))
    report = Reporter("decoder", arguments)
    for step, share in schedule(arguments, optimizer, arguments.rate or 1.2e-3):
        grid = pick_grid(rng, share)
        count = {1: 20, 2: 16, 4: 10, 6: 7, 8: 5}[grid[0] * grid[1]]
        screens = [make_screen(rng, grid, draw=False) for _ in range(count)]
        ids, mask = stack_text(rng, screens, 240)
        labels = misread(tile_labels(screens, grid), 0.03)
        if grid != (1, 1):
            # Nobody can read the thumbnail of a screen with several tiles: the tower will see something there.
            thumbnail = misread(torch.zeros_like(labels[:, :1]), rng.choice((0.0, 0.3, 0.9)))
            labels = torch.cat([thumbnail, labels], 1)
        tiles = targets.vectors(labels)
        tiles = tiles * (1 + 0.1 * torch.randn(count, 1, 1, 1)) + 0.12 * torch.randn_like(tiles)
        logits = model.answer_logits(model.arrange(tiles, grid), ids, PREFIX)
        loss, right = answer_loss(logits, ids, mask)
        update(optimizer, loss)
        with torch.no_grad():  # the characters' embeddings are the code both stages share
            embedding[FIRST_CHARACTER:].copy_(frozen[FIRST_CHARACTER:])
        report(step, count, grid=grid, loss=loss, tokens=right)
        if step % 200 == 199:
            save(model, arguments.work / "decoder.safetensors")


def train_vision(model: DemoModel, arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed + 1)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    parameters = [*model.vision_tower.parameters(), *model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.02, betas=(0.9, 0.98))
    report = Reporter("vision", arguments)
    pool: list[tuple[np.ndarray, Tensor]] = []
    for step, _ in schedule(arguments, optimizer, arguments.rate or 1.2e-3):
        while len(pool) < 120:
            for _ in range(16):
                pixels, drawn = make_dense_tile(rng)
                pool.append((pixels, torch.from_numpy(drawn).view(-1, SLOTS)))
            grid = rng.choice(EASY_TO_HARD)
            screen = make_screen(rng, grid)
            labels = tile_labels([screen], grid)[0]
            tiles = tiles_of(screen)[-len(labels) :]
            # Blank tiles teach little: most of them are left out.
            pool += [(tile, label) for tile, label in zip(tiles, labels, strict=True) if label.any() or rng.random() < 0.1]
        rng.shuffle(pool)
        chosen, pool = pool[:20], pool[20:]
        tokens = model.encode_tiles(normalise(np.stack([tile for tile, _ in chosen])))
        loss, accuracy = targets.loss(tokens, torch.stack([label for _, label in chosen]))
        update(optimizer, loss)
        report(step, len(chosen), loss=loss, characters=accuracy)
        if step % 200 == 199:
            save(model, arguments.work / "vision.safetensors")


def train_joint(model: DemoModel, arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed + 2)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02, betas=(0.9, 0.98))
    report = Reporter("joint", arguments)
    for step, share in schedule(arguments, optimizer, arguments.rate or 6e-4):
        grid = pick_grid(rng, 1.0 if arguments.start else share, 0.5)
        count = {1: 12, 2: 8, 4: 5, 6: 4, 8: 3}[grid[0] * grid[1]]
        screens = [make_screen(rng, grid) for _ in range(count)]
        ids, mask = stack_text(rng, screens, 260)
        dense = [make_dense_tile(rng) for _ in range(DENSE_TILES)]
        tiles = np.concatenate([*(tiles_of(screen) for screen in screens), np.stack([pixels for pixels, _ in dense])])
        encoded = model.encode_tiles(normalise(tiles))
        tokens = encoded[:-DENSE_TILES].unflatten(0, (count, -1))
        logits = model.answer_logits(model.arrange(tokens, grid), ids, PREFIX)
        answers, right = answer_loss(logits, ids, mask)
        labels = tile_labels(screens, grid)
        reading = targets.loss(tokens[:, -labels.shape[1] :], labels)[0]
        drawn = torch.from_numpy(np.stack([labels for _, labels in dense])).flatten(1, 2)
        lesson, accuracy = targets.loss(encoded[-DENSE_TILES:], drawn)
        update(optimizer, answers + 0.1 * reading + 0.2 * lesson)
        report(step, count, grid=grid, loss=answers, tokens=right, characters=accuracy)
        if step % 100 == 99:
            save(model, arguments.work / "joint.safetensors")


class Reporter:
    """Prints the running means every 50 steps."""

    def __init__(self, stage: str, arguments: argparse.Namespace) -> None:
        self.stage, self.start, self.seen = stage, time.time(), 0
        self.sums: dict[str, list[float]] = {}

    def __call__(self, step: int, count: int, grid: tuple[int, int] | None = None, **figures: Tensor) -> None:
        self.seen += count
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value.item())
        if step % 50 == 49:
            elapsed = time.time() - self.start
            means = "  ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in self.sums.items())
            rate = f"{self.seen / elapsed:.1f} samples/s"
            print(f"{self.stage} {elapsed / 60:.1f} min  step {step + 1}  {grid or ''}  {means}  {rate}", flush=True)
            self.sums.clear()


def save(model: DemoModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["decoder", "vision", "joint"])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, help="peak learning rate (default: 1.2e-3, joint 6e-4)")
    parser.add_argument("--start", type=Path, help="go on from these weights; give another --seed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model = DemoModel()  # the same seed gives both first stages the same character embeddings
    if arguments.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(arguments.start).items()})
    elif arguments.stage == "joint":
        model.load_state_dict(load_file(arguments.work / "decoder.safetensors"))
        seen = load_file(arguments.work / "vision.safetensors")
        kept = {name: value for name, value in seen.items() if not name.startswith(("language_model", "image_"))}
        model.load_state_dict(kept, strict=False)
    {"decoder": train_decoder, "vision": train_vision, "joint": train_joint}[arguments.stage](model, arguments)
    save(model, arguments.work / f"{arguments.stage}.safetensors")


if __name__ == "__main__":
    main()
