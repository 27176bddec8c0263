"""The seed of a run and the numbers of its random streams: one per purpose, so that no two purposes share a draw."""

import hashlib

import torch

from zskd_fast.errors import InputError

START_NOISE = 1
EPOCH_ORDER = 2
AUGMENTATION = 3  # and the next four: see ops.augment
FRESH_NOISE = 8


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed is an integer from 0 to 2^63 - 1."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"the seed must be an integer from 0 to 2^63 - 1, got {seed!r}")


def seed_torch(device: torch.device, text: str) -> None:
    """Seed torch's own generator of a device by the hash of a text."""
    on_gpu = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index or 0] if on_gpu else torch.default_generator
    generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little"))
