"""zskd_fast: a smaller student from a trained teacher alone, by Zero-Shot Knowledge Distillation.

Nayak, Mopuri, Shaj, Babu, Chakraborty: "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019.
"""

import importlib

__version__ = "0.1.0"

# Name -> module that defines it. Loaded on first use, so that `zskd-fast --help` need not wait for torch.
_EXPORTS = {
    "InputError": "errors",
    "build_info": "_extension",
    "InputSpec": "config.input_spec",
    "Recipe": "config.recipe",
    "load_recipe": "config.recipe",
    "recipe_names": "config.recipe",
    "Plan": "synthesis.plan",
    "class_similarity": "synthesis.class_similarity",
    "Synthesizer": "synthesis.synthesizer",
    "Distiller": "distillation.distiller",
    "Store": "store.store",
    "ImpressionDataset": "store.dataset",
    "ShardShuffle": "store.dataset",
    "MappedRows": "store.mapped_rows",
}
_MODULES = ("distributions", "models", "nn", "ops", "reference")

__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"zskd_fast.{_EXPORTS[name]}"), name)
        globals()[name] = value  # also over the module of the same name, which the import has just set
        return value
    if name in _MODULES:
        return importlib.import_module(f"zskd_fast.{name}")
    raise AttributeError(f"module 'zskd_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
