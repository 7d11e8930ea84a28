"""Train the demo backbone: `python -m featurestore.backbone.demo.train`, see CARD.md.

Two layers that are thrown away afterwards teach it: grams of a square from its class token, grams
of a patch from its token.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurestore.backbone.demo.model import NAME, PATCH, PIXELS, WEIGHTS
from featurestore.backbone.demo.pastures import Pastures, draw_pastures
from featurestore.disk.durable import write_whole
from featurestore.photos.views import normalise

TRAIN_SEED, TEST_SEED = 1_000_000, 2_000_000  # the demo's are small
SQUARE_G = 20.0  # about the mass of a square; what the losses are measured in
# clover, dead, green: and GDM, Total
TARGETS_35 = torch.tensor(
    [
        [1.0, 0, 0, 1, 1],
        [0, 1, 0, 0, 1],
        [0, 0, 1, 1, 1],
    ]
)
WEIGHTS_5 = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.5])  # the contest's


@dataclass(frozen=True)
class Recipe:
    """What the packaged weights were made with."""

    n_photos: int = 2400
    n_test: int = 120
    steps: int = 3000
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.02
    seed: int = 0
    pixels: int = PIXELS


class Teacher(nn.Module):
    """The backbone under two linear layers: masses of patches and of squares, in grams."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.patch_head = nn.Linear(model.num_features, 3)
        self.square_head = nn.Linear(model.num_features, 3)

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, 3) grams of each patch; (B, 3) of the square, by its class token; x in [0, 1]."""
        data = self.model.pretrained_cfg
        tokens_BLD = self.model.forward_features(normalise(x_B3HW, data["mean"], data["std"]))
        patches_BPD = tokens_BLD[:, self.model.num_prefix_tokens :]
        patch_g = SQUARE_G / patches_BPD.shape[1]
        # softplus: a mass is never negative
        patches_BP3 = patch_g * F.softplus(self.patch_head(patches_BPD))
        return patches_BP3, SQUARE_G * F.softplus(self.square_head(tokens_BLD[:, 0]))


def train(
    recipe: Recipe,
    say: Callable[[str], object] = print,
    workers: int | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """A trained backbone, rounded to half precision, and its scores on unseen pastures."""
    import timm

    start = time.monotonic()
    pastures = draw_pastures(
        recipe.n_photos,
        TRAIN_SEED,
        recipe.pixels,
        PATCH,
        strange=True,
        workers=workers,
    )
    test = draw_pastures(
        recipe.n_test,
        TEST_SEED,
        recipe.pixels,
        PATCH,
        strange=False,
        workers=workers,
    )
    say(
        f"{recipe.n_photos} + {recipe.n_test} photographs drawn in {time.monotonic() - start:.0f} s"
    )
    with _repeatable(recipe.seed):
        teacher = Teacher(timm.create_model(NAME, num_classes=0, img_size=recipe.pixels))
        _fit(teacher, pastures, recipe, say)
        teacher.model.half().float()  # as it will be loaded
        scores = score(teacher.eval(), test)
    say(f"weighted R2 on pastures never seen, by {scores}; {time.monotonic() - start:.0f} s in all")
    return teacher.model, scores


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One seed, one result: draws from it, and sums in the order of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    teacher: Teacher,
    pastures: Pastures,
    recipe: Recipe,
    say: Callable[[str], object],
) -> None:
    # matrices decay; biases, norms, scales and single tokens do not. The class token is (1, 1, D)
    parameters = list(teacher.parameters())
    matrices = [p for p in parameters if p.ndim > 1 and p.shape[0] > 1]
    others = [p for p in parameters if p.ndim == 1 or p.shape[0] == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.lr,
        recipe.steps,
        pct_start=0.1,
    )
    teacher.train()
    start, recent = time.monotonic(), []
    for step, (x_B3HW, grams_BP3) in enumerate(_batches(pastures, recipe), 1):
        loss = _loss(teacher, x_B3HW, grams_BP3)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 100 == 0:
            say(f"step {step}, {time.monotonic() - start:.0f} s: loss {np.mean(recent[-100:]):.4f}")


def _loss(teacher: Teacher, x_B3HW: Tensor, grams_BP3: Tensor) -> Tensor:
    """Huber losses of patches, of their sum and of the class token's masses.

    In units of a mean patch or square.
    """
    patches_BP3, square_B3 = teacher(x_B3HW)
    n_patches = grams_BP3.shape[1]
    found_BP3 = patches_BP3 * n_patches / SQUARE_G
    dense = F.smooth_l1_loss(found_BP3, grams_BP3 * n_patches / SQUARE_G)
    truth_B3 = grams_BP3.sum(1)
    return dense + _square_loss(patches_BP3.sum(1), truth_B3) + _square_loss(square_B3, truth_B3)


def _square_loss(masses_B3: Tensor, truth_B3: Tensor) -> Tensor:
    found_B5 = masses_B3 @ TARGETS_35 / SQUARE_G
    wanted_B5 = truth_B3 @ TARGETS_35 / SQUARE_G
    error_B5 = F.smooth_l1_loss(found_B5, wanted_B5, reduction="none")
    return (error_B5 @ WEIGHTS_5).mean()


def _batches(pastures: Pastures, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Squares anywhere along the photographs, turned and under a jittered light; their grams."""
    rng = np.random.default_rng([recipe.seed, 5])
    for _ in range(recipe.steps):
        numbers = rng.integers(0, len(pastures.pixels_NHW3), recipe.batch)
        squares = [_square(pastures, int(n), rng) for n in numbers]
        x_B3HW = _unit(np.stack([pixels for pixels, _ in squares]))
        grams_B3hw = torch.from_numpy(np.stack([grams for _, grams in squares]))
        grams_BP3 = grams_B3hw.flatten(2).transpose(1, 2)
        yield _jitter(x_B3HW, rng), grams_BP3


def _square(pastures: Pastures, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 3) and grams (3, h, w) of a square that begins at any patch of photograph n."""
    cells = pastures.grams_NGhw.shape[2]
    patch = pastures.pixels_NHW3.shape[1] // cells
    first = rng.integers(0, cells + 1)  # at whole patches: grams are known for those alone
    turns = rng.integers(4)
    mirror = rng.integers(2)
    pixels_HW3 = pastures.pixels_NHW3[n, :, first * patch : (first + cells) * patch]
    grams_Ghw = pastures.grams_NGhw[n, :, :, first : first + cells]
    if mirror:
        pixels_HW3 = pixels_HW3[:, ::-1]
        grams_Ghw = grams_Ghw[:, :, ::-1]
    turned_HW3 = np.rot90(pixels_HW3, turns, (0, 1))
    turned_Ghw = np.rot90(grams_Ghw, turns, (1, 2))
    return turned_HW3, turned_Ghw


def _unit(pixels_BHW3: np.ndarray) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).float() / 255


def _jitter(x_B3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """A little other light: gain of the whole and of each channel, and haze."""
    n = len(x_B3HW)
    light = rng.uniform(0.94, 1.06, (n, 1, 1, 1))
    gain = light * rng.uniform(0.98, 1.02, (n, 3, 1, 1))
    offset = rng.uniform(-0.03, 0.03, (n, 1, 1, 1))
    lit_B3HW = x_B3HW * torch.from_numpy(gain).float() + torch.from_numpy(offset).float()
    return lit_B3HW.clamp(0, 1)


@torch.inference_mode()
def score(teacher: Teacher, pastures: Pastures) -> dict[str, float]:
    """The contest's weighted R2 of what lies in the frame.

    By the sum over patches, and by the two class tokens.
    """
    side = pastures.pixels_NHW3.shape[1]
    by_patches, by_square = [], []
    for pixels_HW3 in pastures.pixels_NHW3:
        halves = np.stack([pixels_HW3[:, :side], pixels_HW3[:, side:]])
        patches_TP3, square_T3 = teacher(_unit(halves))
        by_patches.append(patches_TP3.sum((0, 1)))
        by_square.append(square_T3.sum(0))
    truth_N3 = torch.from_numpy(pastures.grams_NGhw).sum((2, 3))
    return {
        name: _weighted_r2(truth_N3 @ TARGETS_35, torch.stack(masses) @ TARGETS_35)
        for name, masses in (("patch tokens", by_patches), ("class token", by_square))
    }


def _weighted_r2(truth_N5: Tensor, masses_N5: Tensor) -> float:
    """trainer.score.metrics.weighted_r2, which is a floor above."""
    mean = (truth_N5.mean(0) * WEIGHTS_5).sum()
    errors = (truth_N5 - masses_N5).square().sum(0) @ WEIGHTS_5
    spread = (truth_N5 - mean).square().sum(0) @ WEIGHTS_5
    return round(1 - float(errors / spread), 4)


def save(model: nn.Module, path: Path) -> None:
    """The weights in half precision, as a file that appears whole."""
    from safetensors.torch import save as as_bytes

    halves = {}
    for name, tensor in model.state_dict().items():
        halves[name] = tensor.half().contiguous()
    write_whole(path, as_bytes(halves))


def main() -> None:
    """`python -m featurestore.backbone.demo.train`: draw, train, score, save."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=WEIGHTS,
        help="where the weights go; by default over the packaged ones",
    )
    parser.add_argument("--workers", type=int, help="processes that draw; by default one a core")
    arguments = parser.parse_args()
    model, _ = train(Recipe(), partial(print, flush=True), arguments.workers)
    save(model, arguments.out)


if __name__ == "__main__":
    main()
