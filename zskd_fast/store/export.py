"""A store in the formats of others: tar files for WebDataset, and PNG files to look at."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, sync_folder
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store

_ARRAYS = ("x", "target", "teacher_logits")


def export_webdataset(store: Store, folder: str | Path) -> list[Path]:
    """Writes each shard as a tar file for WebDataset and returns their paths; same store, same bytes.

    An impression has the key of its id in nine digits and the entries ``x.npy``, ``target.npy``,
    ``teacher_logits.npy`` (float32, whatever the store keeps x in) and ``json`` (id, class, beta, loss, steps).
    Raises InputError if the folder is not empty or a shard is not as it was written.
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
    """Writes each image as ``CLASS/ID.png`` and returns how many; to look at, as 8 bits lose most levels.

    The valid range of the input becomes 0 to 255. Raises InputError if the inputs are not images of 1 or 3
    channels, the folder is not empty, a shard is not as it was written, or Pillow is not installed.
    """
    spec = InputSpec(**store.manifest["fingerprint"]["input"])
    if not spec.is_image or spec.shape[0] not in (1, 3):
        raise InputError(
            f"inputs of shape {list(spec.shape)} are no images of 1 or 3 channels, wanted for PNG"
        )
    image_module = _pillow()
    folder = _new_folder(folder)
    for shard in range(store.num_shards):
        impressions = store.read_shard(shard)
        rows = zip(impressions.id.tolist(), impressions.class_index.tolist(), strict=True)
        for pixels, (row_id, class_index) in zip(_as_bytes(impressions.x, spec), rows, strict=True):
            (folder / str(class_index)).mkdir(exist_ok=True)
            image_module.fromarray(pixels).save(folder / str(class_index) / f"{row_id:09d}.png")
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


def _add(tar, name, data):
    entry = tarfile.TarInfo(
        name
    )  # dated 1970 and owned by no one, so that the same store gives the same bytes
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _as_bytes(x: torch.Tensor, spec: InputSpec) -> np.ndarray:
    """[N, C, H, W] in the valid range -> [N, H, W] or [N, H, W, 3] uint8."""
    low, high = spec.valid_range
    levels = ((x - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
    return (levels[:, 0] if x.shape[1] == 1 else levels.permute(0, 2, 3, 1)).contiguous().numpy()


def _new_folder(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(entry.name for entry in folder.iterdir())
    if there:
        raise InputError(f"the folder {folder} is not empty (found {there[0]}); choose another folder")
    return folder


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("PNG files need Pillow: pip install 'zskd_fast[report]'") from error
    return Image
