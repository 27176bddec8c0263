"""Counts of the expensive checks of a run: hashes and probes of models, hashes of shards."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from zskd_fast.models import classifier
from zskd_fast.store import store
from zskd_fast.store.manifest import shard_name

Counts = dict[str, Counter]


@contextmanager
def counted() -> Iterator[Counts]:
    """Count while the context is active: "hashes" and "probes" by the id of a module, "read" and "written" by shard.

    "read" counts the shards that are hashed in their file, "written" those that are hashed as they are written.
    """
    counts: Counts = {name: Counter() for name in ("hashes", "probes", "read", "written")}
    hash_model, probe = classifier._weights_sha256, classifier.Classifier._probe
    hash_file, write = store.file_sha256, store.Store.write_shard

    def counted_hash(model: torch.nn.Module) -> str:
        counts["hashes"][id(model)] += 1
        return hash_model(model)

    def counted_probe(self: classifier.Classifier) -> torch.Tensor:
        counts["probes"][id(self.model)] += 1
        return probe(self)

    def counted_file(path: Path) -> str:
        counts["read"][path.name] += 1
        return hash_file(path)

    def counted_write(self: store.Store, shard: int, impressions: object) -> None:
        counts["written"][shard_name(shard)] += 1
        write(self, shard, impressions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_weights_sha256", counted_hash)
        patch.setattr(classifier.Classifier, "_probe", counted_probe)
        patch.setattr(store, "file_sha256", counted_file)
        patch.setattr(store.Store, "write_shard", counted_write)
        yield counts


def once(*models: torch.nn.Module) -> Counter:
    """The counts of models that are each used once."""
    return Counter({id(model): 1 for model in models})


def shards_once(*shards: int) -> Counter:
    """The counts of shards that are each hashed once."""
    return Counter({shard_name(shard): 1 for shard in shards})
