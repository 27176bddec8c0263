"""Making the shards of a store: each process makes its share, and a finished shard is kept."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm

from zskd_fast.runtime.processes import World
from zskd_fast.runtime.progress import progress_bar
from zskd_fast.runtime.signals import continuing_from
from zskd_fast.store.store import Store
from zskd_fast.synthesis.health import Health, HealthMeter
from zskd_fast.synthesis.synthesizer import Synthesizer

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


@dataclass(frozen=True)
class SynthesisSummary:
    """The result of a call of ``synthesize``."""

    made: int
    """Impressions made by this call."""
    reused: int
    """Impressions found in the store; their shards were hashed."""
    elsewhere: int
    """Impressions in shards that another process was making."""
    seconds: float
    """Wall-clock time of the call."""
    phase_seconds: dict[str, float]
    """Wall-clock time per phase."""
    health: Health | None
    """Of the impressions made and reused; None if there are none."""
    notes: dict[str, str]
    """What followed from the teacher; see `Synthesizer.notes`."""


def synthesize(
    synthesizer: Synthesizer, store: Store, *, world: World | None = None, progress: bool = True
) -> SynthesisSummary:
    """Make and write every shard that the store lacks or whose hash differs.

    Of several processes, each makes the shards rank, rank + size and so on; the store does not depend on their number.
    Every existing shard of the share is hashed once. A shard that another process is making is left to it. Raises
    InputError if the store belongs to another run or, where shards are missing, to another device or version of torch.
    """
    world = world or World()
    store.check_identity(synthesizer.identity, synthesizer.device)
    start = time.perf_counter()
    share = range(world.rank, store.num_shards, world.size)
    faulty = [shard for shard in share if store.fault(shard)]
    if faulty:
        store.check_maker(synthesizer.device)
    meter = HealthMeter(synthesizer)
    for shard in sorted(set(share) - set(faulty)):
        meter.add_shard(store, shard)
    count = {"made": 0, "reused": _size(store, share) - _size(store, faulty), "elsewhere": 0}
    left = list(faulty)
    bar = _bar(store, share, faulty, steps=max(synthesizer.recipe.steps, 1), shown=progress)
    with continuing_from(lambda: _reached(store, share, left)), bar:
        for shard in faulty:
            outcome = _make_shard(synthesizer, store, shard, bar, meter)
            count[outcome] += len(store.shard_ids(shard))
            if outcome != "elsewhere":
                left.remove(shard)
    return SynthesisSummary(
        **count,
        seconds=time.perf_counter() - start,
        phase_seconds=dict(synthesizer.timer.seconds),
        health=meter.health(),
        notes=synthesizer.notes,
    )


def _bar(store: Store, share: Iterable[int], faulty: Iterable[int], *, steps: int, shown: bool) -> tqdm:
    """Return a bar of impressions that moves with every step of them."""
    total, missing = _size(store, share), _size(store, faulty)
    return progress_bar(
        "impressions",
        total=total * steps,
        done=(total - missing) * steps,
        unit="impression",
        shown=shown and missing > 0,
        unit_scale=1 / steps,
        bar_format=_BAR,
    )


def _reached(store: Store, share: Iterable[int], left: Iterable[int]) -> str:
    """Return how much of the share is in the store, by its files: an interrupt may arrive before a shard is counted."""
    store.refresh()
    unfinished = [shard for shard in left if store.fault(shard)]
    return f"{_size(store, share) - _size(store, unfinished):,} of {_size(store, share):,} impressions"


def _make_shard(synthesizer: Synthesizer, store: Store, shard: int, bar: tqdm, meter: HealthMeter) -> str:
    """Make a shard unless another process has made it ("reused") or is making it ("elsewhere")."""
    with store.claim(shard) as claimed:
        if not claimed:
            return "elsewhere"
        store.refresh()
        if store.fault(shard) is None:
            meter.add_shard(store, shard)
            return "reused"
        impressions = synthesizer.run(store.shard_ids(shard), progress=bar.update)
        with synthesizer.timer("io"):
            store.write_shard(shard, impressions)
    meter.add(impressions)
    return "made"


def _size(store: Store, shards: Iterable[int]) -> int:
    return sum(len(store.shard_ids(shard)) for shard in shards)
