"""Is a store what it was when it was written, and does its teacher still say what it says there?"""

from collections.abc import Iterable, Iterator

import torch

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen, weights_sha256
from zskd_fast.runtime.processes import World
from zskd_fast.store.store import Store, shard_name

# A sample is looked at in this many shards, from the first to the last.
_SAMPLED_SHARDS = 8
_ROWS_PER_SHARD = 32
# Another batch, thread count or device rounds otherwise; a wrong image is off by far more.
_TOLERANCE = 1e-3


def shard_faults(store: Store, shards: Iterable[int] | None = None) -> Iterator[str]:
    """One sentence per shard that is missing or not as it was written; every byte is hashed anew.

    ``shards`` are those to look at, by default all.
    """
    for shard in range(store.num_shards) if shards is None else shards:
        fault = store.fault(shard)
        if fault:
            yield f"{shard_name(shard)} {fault}"


def require_whole(store: Store, device: torch.device, world: World | None = None) -> None:
    """Raises InputError that names a shard if one is missing or not as it was written; all are hashed anew.

    Of several processes each hashes a share, and all of them raise if one finds a fault; ``device`` is where their
    process group exchanges numbers.
    """
    world = world or World()
    fault = next(shard_faults(store, range(world.rank, store.num_shards, world.size)), None)
    faults = world.sum(torch.tensor(float(fault is not None), device=device))
    if faults:
        found = fault or "a shard looked at by another process is missing or not as it was written"
        raise InputError(f"{store.folder}: {found}; run the synthesis again, which makes it anew")


def teacher_faults(store: Store, teacher: Classifier) -> Iterator[str]:
    """One sentence per sampled shard whose logits the teacher does not give again, to 1e-3 of the largest.

    Shards that are not as they were written are passed over. Raises InputError if the teacher's weights are
    not those that made the store.
    """
    require_same_teacher(store, teacher.model)
    count = min(_SAMPLED_SHARDS, store.num_shards)
    sampled = torch.linspace(0, store.num_shards - 1, count).long().unique().tolist()
    for shard in sampled:
        if store.fault(shard) is None:
            error = _largest_error(store, shard, teacher)
            if not error <= _TOLERANCE:  # so that NaN is a fault
                yield f"{shard_name(shard)} holds other logits than the teacher gives (off by {error:.2g})"


def require_same_teacher(store: Store, teacher: torch.nn.Module) -> None:
    """Raises InputError if the store was made from a teacher with other weights."""
    wanted, got = store.manifest["fingerprint"]["teacher"]["sha256"], weights_sha256(teacher)
    if got != wanted:
        raise InputError(
            f"{store.folder} holds impressions of another teacher: its weights have SHA-256 {wanted[:12]}, "
            f"those of the teacher given {got[:12]}"
        )


def _largest_error(store, shard, teacher):
    """Relative to the largest logit."""
    impressions = store.read_shard(shard)[:_ROWS_PER_SHARD].to(teacher.device)
    with frozen(teacher.model), torch.no_grad():
        logits = teacher.logits(impressions.x)
    error = (logits - impressions.teacher_logits).abs().max()
    return float(error / logits.abs().max().clamp_min(1.0))
