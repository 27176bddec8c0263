"""The input of a teacher as its own files describe it: timm's ``pretrained_cfg``, or an image processor's JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError

PROCESSOR_FILE = "preprocessor_config.json"
_SIZE_KEYS = (("height", "width"), ("shortest_edge", "shortest_edge"))


def find_input_spec(model: nn.Module, weights: str | Path | None) -> InputSpec:
    """Return the input that a teacher's own files describe.

    Read are the attribute ``pretrained_cfg`` of a timm model (``input_size``, ``mean``, ``std``) or, beside the file of
    weights, the ``preprocessor_config.json`` of a transformers model (``size`` or ``crop_size``, ``image_mean``,
    ``image_std``, ``do_normalize``, ``rescale_factor``). Raises InputError if neither is there or the file is damaged.
    """
    found = getattr(model, "pretrained_cfg", None)
    if isinstance(found, dict) and "input_size" in found:
        return _from_timm(found)
    path = Path(weights).parent / PROCESSOR_FILE if weights else None
    if path is not None and path.is_file():
        return _from_processor(path)
    raise InputError(
        "the shape of the input is not given, and the teacher has neither a pretrained_cfg nor a "
        f"{PROCESSOR_FILE} beside its weights; give --input.shape, such as --input.shape 3 32 32, or a preset "
        "(--input); in Python input_shape=(3, 32, 32)"
    )


def _from_timm(config: dict[str, Any]) -> InputSpec:
    return InputSpec(config["input_size"], mean=config.get("mean") or (), std=config.get("std") or ())


def _from_processor(path: Path) -> InputSpec:
    try:
        config = json.loads(path.read_text("utf-8"))
        height, width = _size(config.get("crop_size") or config["size"])
        normalizes = config.get("do_normalize", True)
        mean = tuple(config["image_mean"]) if normalizes else ()
        std = tuple(config["image_std"]) if normalizes else ()
        # Raw values are what normalization is given: 0 to 255 times the factor, 0 to 255 without rescaling.
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe an image input ({error!r}); give --input.shape") from error
    highest = 255 * factor
    return InputSpec((len(mean) or 3, height, width), (0.0, round(highest, 6)), mean, std)


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list):
        height, width = size
        return height, width
    for height, width in _SIZE_KEYS:
        if height in size:
            return size[height], size[width]
    raise KeyError("size")
