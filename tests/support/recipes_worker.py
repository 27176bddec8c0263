"""Distill small students by several recipes, in a process group; run by torchrun.

torchrun --nproc-per-node=W recipes_worker.py STORE OUT

Every rank writes to OUT/W-rank.json, for each case, its losses and the hash of its student.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from small_models import IMAGE
from torch import nn

from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.config.recipe_files import load_recipe, recipe_names
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.models.classifier import tensor_sha256
from zskd_fast.runtime.processes import process_group
from zskd_fast.store.store import Store

STEPS = 12


def model(*, seed: int, width: int) -> nn.Module:
    """A classifier with a ReLU, so that dormant units are found, and logits that are far from equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4))
    with torch.no_grad():
        layers[3].weight *= 10
    return layers


def shortened(name: str, *, fraction: float | None = None, mixed: bool = True, **changes) -> DistillationRecipe:
    """A shipped recipe cut to a few steps, with a search for dormant units among them if it has any.

    The student starts from its own weights: where the gradients are small, Adam enlarges the rounding of their sums.
    """
    whole = load_recipe(name).distillation
    units, noise, varied = whole.dormant_units, whole.fresh_noise, whole.augmentation
    if units.every:
        units = dataclasses.replace(units, every=4)
    if fraction is not None:
        noise = dataclasses.replace(noise, fraction=fraction)
    if not mixed:
        varied = dataclasses.replace(varied, mix_probability=0.0)
    parts = {"dormant_units": units, "fresh_noise": noise, "augmentation": varied}
    return dataclasses.replace(whole, **{"steps": STEPS, "pruned_start": False, **parts, **changes})


def cases() -> dict[str, DistillationRecipe]:
    """Every shipped recipe, a pruned start, and fractions and sizes of a batch that no number of processes divides."""
    shipped = {
        f"{name} {size}{'' if mixed else ' unmixed'}": shortened(name, batch_size=size, mixed=mixed)
        for name in recipe_names()
        for size in (32, 30)
        for mixed in (True, False)
    }
    fractions = {
        f"fraction {fraction} of {size}": shortened("fast", fraction=fraction, batch_size=size, mixed=False)
        for fraction in (0.0, 0.5, 1.0)
        for size in (5, 7, 31)
    }
    return shipped | fractions | {"pruned": shortened("fast", batch_size=32, mixed=False, pruned_start=True)}


def gloo_threads() -> list[str]:
    """The names of this process's threads that belong to gloo."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main(store: Path, out: Path) -> None:
    """Distill all cases and write what came of them."""
    torch.set_num_threads(1)
    results = {}
    with process_group(torch.device("cpu")) as world:
        for name, recipe in cases().items():
            student = model(seed=5, width=3)
            distiller = Distiller(model(seed=0, width=4), student, IMAGE, recipe, seed=1)
            history = distiller.fit(Store.open(store), progress=False)
            weights = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
            results[name] = {"loss": history.loss, "sha256": tensor_sha256(weights), "weights": weights.tolist()}
        inside = gloo_threads()
    results["threads"] = gloo_threads()
    assert inside or world.size == 1 or not Path("/proc").exists(), "the names of gloo's threads have changed"
    (out / f"{world.size}-{world.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
