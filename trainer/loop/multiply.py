"""What a sweep multiplies tokens in: chosen once, when it begins, and kept in `sweep.json`."""

import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from featurestore.backbone.device import choose_device
from featurestore.errors import InputError
from trainer.config.sections import TrainerConfig
from trainer.data.dataset import TrainingData
from trainer.heads import kinds
from trainer.heads.reads import store_of
from trainer.heads.tokens import SMALL_BYTES, Multiply, StepTokens, of_device
from trainer.loop.grid import SweepConfig

GAIN = 1.15
"""Least ratio of times for which `auto` leaves float32."""

N_WEIGHTS = 48
"""Of a row in the probe: six points, in four of five splits, of own photograph and partner."""


def multiply_for(config: SweepConfig, data: TrainingData) -> Multiply:
    """What a new sweep multiplies in."""
    reading = [p for p in config.points if kinds.load(p.head.kind).reads_patches]
    if not reading:  # nothing large to multiply, so nothing to probe
        return of_device(data.device, config.base.trainer.use_amp, data.dtype)
    tokens = data.tokens[store_of(reading[0])]
    row_TPD = tokens.n_tiles, tokens.n_patches, tokens.width
    return choose_multiply(config.base.trainer, data.device, data.dtype, row_TPD)


def choose_multiply(
    settings: TrainerConfig,
    device: torch.device,
    dtype: torch.dtype,
    row_TPD: tuple[int, ...],
) -> Multiply:
    """What `trainer.multiply` says; `auto` is float16 on CUDA, and on a CPU that multiplies bf16
    fast what a short timed probe of full-size rows finds faster."""
    if settings.multiply != "auto":
        if is_emulated(settings.multiply, device):
            warnings.warn(
                f"trainer.multiply: {settings.multiply}: this CPU emulates it, which is slow; "
                "leave it out, or say float32",
                stacklevel=4,
            )
        return settings.multiply
    if device.type != "cpu" or not settings.use_amp or dtype != torch.float32:
        return of_device(device, settings.use_amp, dtype)
    if math.prod(row_TPD) * dtype.itemsize <= SMALL_BYTES or not has_fast_bf16():
        return "float32"
    return _fastest(row_TPD)


def begun_multiply(plan: Mapping[str, Any], use_amp: bool, file: Path) -> Multiply:
    """What a sweep that goes on began with; plan : its sweep.json, `file`."""
    device = choose_device(plan["device"])
    if "multiply" not in plan:  # made before this was kept
        return of_device(device, use_amp, torch.float32)
    multiply = plan["multiply"]
    if multiply not in get_args(Multiply):
        known = ", ".join(get_args(Multiply))
        raise InputError(f"{file}: multiply {multiply!r}: expected one of {known}")
    if is_emulated(multiply, device):
        warnings.warn(
            f"{file}: the sweep began with products in {multiply}, which this CPU emulates: it is "
            "slow here, and the last bits may differ",
            stacklevel=4,
        )
    return multiply


def is_emulated(multiply: Multiply, device: torch.device) -> bool:
    """Whether a device has no instructions for products in this: a CPU for halves never has."""
    if device.type != "cpu" or multiply == "float32":
        return False
    return multiply == "float16" or not has_fast_bf16()


def remark_on_older(plan: Mapping[str, Any]) -> str:
    """What is to be said where a sweep goes on that began when rows were multiplied one by one."""
    if "multiply" in plan:
        return ""
    return (
        "it began before a step multiplied all rows together; sums are added in another order "
        "from here on, so it ends within rounding of where it would have"
    )


def has_fast_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16; torch.backends.cpu.get_cpu_capability
    does not tell."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _fastest(row_TPD: tuple[int, ...]) -> Multiply:
    """bf16 where it is faster than float32 by GAIN: the least time of each, in turn.

    Of the processor, not of the clock: a busy neighbour must not choose.
    """
    # one row is enough: rows of this size are multiplied one after another
    row = torch.zeros(row_TPD, dtype=torch.float16)
    n_tiles, n_patches, _ = row_TPD
    w_1TMP = torch.full((1, n_tiles, N_WEIGHTS, n_patches), 1 / n_patches)
    seconds: dict[Multiply, list[float]] = {"float32": [], "bf16": []}
    for _ in range(6):  # the first one warms up
        for multiply, times in seconds.items():
            start = time.process_time()
            StepTokens([row], torch.float32, multiply).under(w_1TMP, [N_WEIGHTS])
            times.append(time.process_time() - start)
    fastest = {multiply: min(times[1:]) for multiply, times in seconds.items()}
    return "bf16" if fastest["bf16"] * GAIN < fastest["float32"] else "float32"
