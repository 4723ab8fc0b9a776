"""Train the demo model on generated phone screens. Three stages, one command each:

    python train.py decoder --minutes 40 --work build/demo-training
    python train.py vision  --minutes 40 --work build/demo-training
    torchrun --nproc-per-node 2 train.py joint --minutes 60 --work build/demo-training

`decoder` and `vision` are independent and may run side by side. The decoder first learns to copy and to look
things up from perfect visual tokens: each token is the sum of the (fixed) embeddings of the characters under it,
each slot turned by a fixed rotation. The vision tower learns to produce those same vectors from pixels. `joint`
then trains everything on whole screens, easy grids first, and may be repeated to train longer. Trained jointly
from nothing, the model learns nothing in the same time.

Every process uses one thread; under torchrun, each draws its own screens and they share their gradients.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from model import DemoModel, start_as_local_filters
from screens import SLOTS, TOKENS_PER_SIDE, Question, Screen, make_dense_tile, make_screen, tiles_of
from vocabulary import ASSISTANT, BOS, CHARACTERS, END, FIRST_CHARACTER, PAD, USER, encode

PREFIX = 2  # <s><|user|>, then the image
DENSE_TILES = 4
CHARACTER_COUNT = len(CHARACTERS) - 1  # the newline is never drawn
RANK, PROCESSES = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
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


def normalise(tiles: np.ndarray) -> Tensor:
    """uint8 [B, 160, 160, 3] -> float [B, 3, 160, 160] in -1..1 (SigLIP's mean and deviation of 0.5)."""
    return torch.from_numpy(tiles.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)


class Trainer:
    """The optimizers, their schedule, and the sum of gradients over processes.

    Matrices go to Muon (Jordan et al., 2024), which reads twice as well as AdamW after the same steps; the rest to AdamW.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Parameter]], arguments: argparse.Namespace, peak: float) -> None:
        named = [(name, value) for name, value in modules if value.requires_grad]
        self.parameters = [value for _, value in named]
        matrices = [value for name, value in named if value.ndim == 2 and not any(table in name for table in TABLES)]
        known = {id(value) for value in matrices}
        others = [value for value in self.parameters if id(value) not in known]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.minutes, self.peak = arguments.minutes, arguments.rate or peak

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, share of the time used), with warm-up and cosine decay, until the time is over."""
        start, step = time.time(), 0
        while True:
            share = torch.tensor((time.time() - start) / (60 * self.minutes), dtype=torch.float64)
            if PROCESSES > 1:
                distributed.broadcast(share, 0)
            if share >= 1:
                return
            rate = self.peak * min(1.0, (step + 1) / 150) * (0.5 * (1 + math.cos(math.pi * share)) * 0.96 + 0.04)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            yield step, float(share)
            step += 1

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, averaged over the processes."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if PROCESSES > 1:
            together = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(together)
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, part in zip(gradients, (together / PROCESSES).split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()


def half() -> torch.autocast:
    """Matrix products in bfloat16: a third faster on the cores that this was trained on."""
    return torch.autocast("cpu", torch.bfloat16)


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


def train_decoder(model: DemoModel, arguments: argparse.Namespace) -> None:
    grids, rng = random.Random(arguments.seed), random.Random(1000 * arguments.seed + RANK)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    embedding = model.language_model.model.embed_tokens.weight
    frozen = embedding.detach().clone()
    parameters = [*model.language_model.named_parameters(), ("image_newline", model.image_newline)]
    trainer = Trainer(parameters, arguments, 2e-3)
    report = Reporter("decoder", arguments)
    for step, share in trainer.steps():
        grid = pick_grid(grids, 1.0 if arguments.weights else share)
        count = {1: 12, 2: 8, 4: 5, 6: 4, 8: 3}[grid[0] * grid[1]]
        screens = [make_screen(rng, grid, draw=False) for _ in range(count)]
        ids, mask = stack_text(rng, screens, 320)
        labels = misread(tile_labels(screens, grid), 0.03)
        if grid != (1, 1):
            # Nobody can read the thumbnail of a screen with several tiles: the tower will see something there.
            thumbnail = misread(torch.zeros_like(labels[:, :1]), rng.choice((0.0, 0.3, 0.9)))
            labels = torch.cat([thumbnail, labels], 1)
        tiles = targets.vectors(labels)
        tiles = tiles * (1 + 0.1 * torch.randn(count, 1, 1, 1)) + 0.12 * torch.randn_like(tiles)
        with half():
            logits = model.answer_logits(model.arrange(tiles, grid), ids, PREFIX)
        loss, right = answer_loss(logits, ids, mask)
        trainer.update(loss)
        with torch.no_grad():  # the characters' embeddings are the code both stages share
            embedding[FIRST_CHARACTER:].copy_(frozen[FIRST_CHARACTER:])
        report(step, count, grid=grid, loss=loss, tokens=right)
        if step % 200 == 199:
            save(model, arguments.work / "decoder.safetensors")


def train_vision(model: DemoModel, arguments: argparse.Namespace) -> None:
    rng = random.Random(1000 * (arguments.seed + 1) + RANK)
    batch = max(1, 8 // PROCESSES)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    parameters = [*model.vision_tower.named_parameters(), *model.multi_modal_projector.named_parameters()]
    trainer = Trainer(parameters, arguments, 3e-3)
    report = Reporter("vision", arguments)
    pool: list[tuple[np.ndarray, Tensor]] = []
    for step, _ in trainer.steps():
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
        chosen, pool = pool[:batch], pool[batch:]
        with half():
            tokens = model.encode_tiles(normalise(np.stack([tile for tile, _ in chosen])))
        loss, accuracy = targets.loss(tokens, torch.stack([label for _, label in chosen]))
        trainer.update(loss)
        report(step, len(chosen), loss=loss, characters=accuracy)
        if step % 200 == 199:
            save(model, arguments.work / "vision.safetensors")


def train_joint(model: DemoModel, arguments: argparse.Namespace) -> None:
    # All processes take screens of the same grid, so that none waits for another.
    grids, rng = random.Random(arguments.seed + 2), random.Random(1000 * (arguments.seed + 2) + RANK)
    targets = CharacterTargets(model.language_model.model.embed_tokens.weight)
    trainer = Trainer(model.named_parameters(), arguments, 1e-3)
    report = Reporter("joint", arguments)
    for step, share in trainer.steps():
        grid = pick_grid(grids, 1.0 if arguments.weights else share, 0.5)
        count = {1: 6, 2: 4, 4: 2, 6: 2, 8: 1}[grid[0] * grid[1]]
        screens = [make_screen(rng, grid) for _ in range(count)]
        ids, mask = stack_text(rng, screens, 320)
        dense = [make_dense_tile(rng) for _ in range(DENSE_TILES)]
        tiles = np.concatenate([*(tiles_of(screen) for screen in screens), np.stack([pixels for pixels, _ in dense])])
        with half():
            encoded = model.encode_tiles(normalise(tiles))
            tokens = encoded[:-DENSE_TILES].unflatten(0, (count, -1))
            logits = model.answer_logits(model.arrange(tokens, grid), ids, PREFIX)
        answers, right = answer_loss(logits, ids, mask)
        labels = tile_labels(screens, grid)
        reading = targets.loss(tokens[:, -labels.shape[1] :], labels)[0]
        drawn = torch.from_numpy(np.stack([labels for _, labels in dense])).flatten(1, 2)
        lesson, accuracy = targets.loss(encoded[-DENSE_TILES:], drawn)
        trainer.update(answers + 0.1 * reading + 0.2 * lesson)
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
        if step % 50 == 49 and RANK == 0:
            elapsed = time.time() - self.start
            means = "  ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in self.sums.items())
            rate = f"{self.seen / elapsed:.1f} samples/s"
            print(f"{self.stage} {elapsed / 60:.1f} min  step {step + 1}  {grid or ''}  {means}  {rate}", flush=True)
            self.sums.clear()


def save(model: DemoModel, path: Path) -> None:
    if RANK:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["decoder", "vision", "joint"])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--weights", type=Path, help="go on from these weights; give another --seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = DemoModel()  # the same seed gives both first stages the same character embeddings
    start_as_local_filters(model.vision_tower)
    if PROCESSES > 1:
        distributed.init_process_group("gloo")
    if arguments.weights is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(arguments.weights).items()})
    elif arguments.stage == "joint":
        model.load_state_dict(load_file(arguments.work / "decoder.safetensors"))
        seen = load_file(arguments.work / "vision.safetensors")
        kept = {name: value for name, value in seen.items() if not name.startswith(("language_model", "image_"))}
        model.load_state_dict(kept, strict=False)
    {"decoder": train_decoder, "vision": train_vision, "joint": train_joint}[arguments.stage](model, arguments)
    save(model, arguments.work / f"{arguments.stage}.safetensors")


if __name__ == "__main__":
    main()
