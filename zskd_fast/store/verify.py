"""Verification of a store: its files have the hashes in the manifest, and its teacher still gives the stored logits."""

from collections.abc import Iterable, Iterator

import torch

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.precision import full_float32
from zskd_fast.runtime.processes import World
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store

# The logits are compared in this many shards, evenly spaced from the first to the last.
_SAMPLED_SHARDS = 8
_ROWS_PER_SHARD = 32


def shard_faults(store: Store, shards: Iterable[int] | None = None) -> Iterator[str]:
    """Hash shards (by default all) and yield one sentence per shard that is missing or was changed."""
    for shard in range(store.num_shards) if shards is None else shards:
        fault = store.fault(shard)
        if fault:
            yield f"{shard_name(shard)} {fault}"


def require_whole(store: Store, device: torch.device, world: World | None = None) -> None:
    """Hash every shard and raise InputError that names one which is missing or was changed.

    Of several processes each hashes a share, and all of them raise if one finds a fault; ``device`` is where their
    process group exchanges numbers.
    """
    world = world or World()
    fault = next(shard_faults(store, range(world.rank, store.num_shards, world.size)), None)
    faults = world.sum(torch.tensor(float(fault is not None), device=device))
    if faults:
        found = fault or "another process found a shard that is missing or was changed"
        raise InputError(f"{store.folder}: {found}; run the synthesis again, which makes the shard again")


def teacher_faults(store: Store, teacher: Classifier) -> Iterator[str]:
    """Yield one sentence per sampled shard whose logits differ from the teacher's by more than rounding.

    Another batch size, thread count or device changes the rounding, which `Classifier.tolerance` allows for; a wrong
    input changes the logits by far more.

    Shards that were changed are skipped. Raises InputError if the teacher's weights are not those that made the store.
    """
    require_same_teacher(store, teacher)
    count = min(_SAMPLED_SHARDS, store.num_shards)
    sampled = torch.linspace(0, store.num_shards - 1, count).long().unique().tolist()
    for shard in sampled:
        if store.fault(shard) is None:
            error = _largest_error(store, shard, teacher)
            if not error <= teacher.tolerance:  # so that NaN is a fault
                yield f"{shard_name(shard)} holds other logits than the teacher gives (off by {error:.2g})"


def require_same_teacher(store: Store, teacher: Classifier) -> None:
    """Raise InputError if the store was made from a teacher with other weights."""
    wanted, got = store.identity.teacher.sha256, teacher.identity.sha256
    if got != wanted:
        raise InputError(
            f"{store.folder} holds impressions of another teacher: its weights have SHA-256 {wanted[:12]}, "
            f"those of the teacher given {got[:12]}"
        )


def _largest_error(store: Store, shard: int, teacher: Classifier) -> float:
    """Return the largest error of a logit, relative to the largest logit."""
    impressions = store.read_shard(shard)[:_ROWS_PER_SHARD].to(teacher.device)
    with frozen(teacher.model), torch.no_grad(), full_float32():
        logits = teacher.logits(impressions.x)
    error = (logits - impressions.teacher_logits).abs().max()
    return float(error / logits.abs().max().clamp_min(1.0))
