"""Export of a store: tar files for WebDataset, and PNG files to look at."""

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, sync_folder
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store

_ARRAYS = ("x", "target", "teacher_logits")


def export_webdataset(store: Store, folder: str | Path) -> list[Path]:
    """Write each shard as a tar file for WebDataset and return the paths; the same store gives the same bytes.

    The key of an impression is its id in nine digits; its entries are ``x.npy``, ``target.npy``, ``teacher_logits.npy``
    (float32, whatever type the store keeps x in) and ``json`` (id, class, beta, loss, steps). Raises InputError if the
    folder is not empty or a shard was changed.
    """
    folder = _new_folder(folder)
    paths = [folder / f"shard-{shard:06d}.tar" for shard in range(store.num_shards)]
    for shard, path in enumerate(paths):
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with tarfile.open(temporary, "w") as tar:
            _add_shard(tar, store.read_shard(shard))
        temporary.replace(path)
    sync_folder(folder)
    return paths


def export_png(store: Store, folder: str | Path) -> int:
    """Write each image as ``CLASS/ID.png`` and return how many; for looking at, since 8 bits lose most levels.

    The valid range of the input becomes 0 to 255. Raises InputError if the inputs are no images of 1 or 3 channels, the
    folder is not empty, a shard was changed, or Pillow is not installed.
    """
    spec = store.identity.input
    if not spec.is_image or spec.shape[0] not in (1, 3):
        raise InputError(f"inputs of shape {list(spec.shape)} are no images of 1 or 3 channels, which PNG files need")
    image_module = _pillow()
    folder = _new_folder(folder)
    for shard in range(store.num_shards):
        impressions = store.read_shard(shard)
        rows = zip(impressions.id.tolist(), impressions.class_index.tolist(), strict=True)
        for pixels, (impression, class_index) in zip(_as_bytes(impressions.x, spec), rows, strict=True):
            (folder / str(class_index)).mkdir(exist_ok=True)
            image_module.fromarray(pixels).save(folder / str(class_index) / f"{impression:09d}.png")
    return store.num_impressions


def _add_shard(tar: tarfile.TarFile, impressions: Impressions) -> None:
    for row in range(len(impressions)):
        one = {name: tensor[row] for name, tensor in impressions.tensors().items()}
        key = f"{int(one['id']):09d}"
        for name in _ARRAYS:
            file = io.BytesIO()
            np.save(file, one[name].numpy())
            _add(tar, f"{key}.{name}.npy", file.getvalue())
        facts = {name: one[name].item() for name in ("id", "beta", "loss", "steps")}
        facts["class"] = one["class_index"].item()
        _add(tar, f"{key}.json", json.dumps(facts, sort_keys=True).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # dated 1970, without an owner: the same store gives the same bytes
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _as_bytes(x: torch.Tensor, spec: InputSpec) -> np.ndarray:
    """Return [N, C, H, W] in the valid range as [N, H, W] or [N, H, W, 3] uint8."""
    low, high = spec.valid_range
    levels = ((x - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
    return (levels[:, 0] if x.shape[1] == 1 else levels.permute(0, 2, 3, 1)).contiguous().numpy()


def _new_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    existing = sorted(entry.name for entry in folder.iterdir())
    if existing:
        raise InputError(f"the folder {folder} is not empty (found {existing[0]}); choose another folder")
    return folder


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("PNG files need Pillow: pip install 'zskd_fast[report]'") from error
    return Image
