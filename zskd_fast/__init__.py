"""zskd_fast: Zero-Shot Knowledge Distillation, a smaller student from a trained classifier without data.

Nayak, Mopuri, Shaj, Babu, Chakraborty: "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Name -> module that defines it. Loaded on first use, so that `zskd-fast --help` does not load torch.
_EXPORTS = {
    "InputError": "errors",
    "build_info": "_extension",
    "distill": "run.distill",
    "InputSpec": "config.input_spec",
    "Recipe": "config.recipe",
    "load_recipe": "config.recipe_files",
    "recipe_names": "config.recipe_files",
    "Plan": "synthesis.plan",
    "class_similarity": "synthesis.class_similarity",
    "Synthesizer": "synthesis.synthesizer",
    "Distiller": "distillation.distiller",
    "Impressions": "store.impressions",
    "Store": "store.store",
    "ImpressionDataset": "store.dataset",
    "ShardShuffle": "store.dataset",
    "MappedRows": "store.mapped_rows",
}
_MODULES = ("distributions", "models", "nn", "ops", "reference")

__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"zskd_fast.{_EXPORTS[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"zskd_fast.{name}")
    raise AttributeError(f"module 'zskd_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
