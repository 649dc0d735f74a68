"""A Hugging Face folder: config.json, weights as safetensors in one file or several, tokenizer.json.

The format is read and written here, not by the safetensors package, because that hands over bfloat16 in torch alone and
writes a file from tensors that are all in memory. A file is the length of a header (8 bytes, little endian), the header
(JSON: each tensor's dtype, shape and place), and the tensors' bytes, rows first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from model.exchange.marian_tokenizer import marian_tokenizer
from model.exchange.source import ExchangeError, Foreign

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True)
class _Place:
    file: Path
    start: int  # bytes from the beginning of the file
    dtype: str
    shape: tuple[int, ...]


class SafetensorsSource:
    """The tensors of one or several safetensors files."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for file in files:
            self._places |= _read_header(file)

    def names(self) -> Iterable[str]:
        """The name of every tensor."""
        return self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._places[name].shape

    def read(self, name: str) -> np.ndarray:
        """The tensor in the dtype that it is stored in: float32, float16 or bfloat16.

        Raises:
          ExchangeError: it is stored as something else, or the file ends before it does.
        """
        place = self._places[name]
        if place.dtype not in DTYPES:
            raise ExchangeError(
                f"The tensor {name} in {place.file} is stored as {place.dtype}; only {', '.join(DTYPES)} are read."
            )
        count = math.prod(place.shape)
        # Not memory-mapped: pages of the file would count as this process's memory until something else needs it.
        values = np.fromfile(place.file, DTYPES[place.dtype], count, offset=place.start)
        if values.size != count:
            raise ExchangeError(f"{place.file} is cut off: it ends within the tensor {name}.")
        return values.reshape(place.shape)


def _read_header(file: Path) -> dict[str, _Place]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header would be longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {
            name: _Place(file, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ExchangeError(f"{file} cannot be read as a safetensors file: {error}") from error


def open_folder(folder: Path, name: str | None = None) -> Foreign:
    """A Hugging Face folder, of which only headers are read.

    Raises:
      ExchangeError: there is no such folder, or no config.json or no safetensors file in it.
    """
    if not (folder / "config.json").is_file():
        raise ExchangeError(f"{folder} is not a Hugging Face folder: it has no config.json.")
    config = read_json(folder / "config.json")
    if (folder / INDEX).is_file():
        names = set(read_json(folder / INDEX)["weight_map"].values())
        if outside := sorted(name for name in names if Path(name).name != name):
            raise ExchangeError(f"{folder / INDEX} names {outside[0]}, which is not the name of a file in the folder.")
        files = sorted(folder / name for name in names)
    else:
        files = sorted(folder.glob("*.safetensors"))
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ExchangeError(f"{folder / INDEX} names files that are not there: {', '.join(missing)}.")
    if not files:
        hint = ""
        if list(folder.glob("pytorch_model*.bin")):
            hint = " It has weights as pytorch_model.bin: save them as safetensors with transformers (save_pretrained)."
        raise ExchangeError(f"{folder} has no *.safetensors file.{hint}")
    if (folder / "generation_config.json").is_file():
        # Where both say how a text begins and ends, this file is newer.
        generation = read_json(folder / "generation_config.json")
        config |= {key: value for key, value in generation.items() if key.endswith("token_id") and value is not None}
    tokenizer, tokenizer_json = folder / "tokenizer.json", None
    if tokenizer.is_file():
        tokenizer_json = tokenizer.read_text(encoding="utf-8")
    elif (folder / "source.spm").is_file() and (folder / "vocab.json").is_file():
        tokenizer_json = marian_tokenizer(folder)
    return Foreign(name or folder.resolve().name, config, SafetensorsSource(files), tokenizer_json, chat_of(folder))


def chat_of(folder: Path) -> dict[str, str]:
    """The chat template in a folder and the names of the tokens that it may use; empty where there is none.

    It stands in a file of its own, or in tokenizer_config.json, there perhaps as one of several with names.
    """
    described = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    template = described.get("chat_template")
    if isinstance(template, list):
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
    if not template:
        return {}
    tokens = {name: described.get(name) for name in ("bos_token", "eos_token")}
    named = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token}
    return {"chat_template": template, **named}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ExchangeError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExchangeError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ExchangeError(f"{file} does not hold a JSON object.")
    return values


@dataclasses.dataclass(frozen=True)
class Written:
    """A tensor to be written: its shape and dtype, and how to get it when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(folder: Path, tensors: dict[str, Written], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as model.safetensors, or as several files of at most `shard_bytes` and their index.

    One tensor at a time is in memory. A tensor that is larger than `shard_bytes` has a file to itself.
    """
    shards: list[dict[str, Written]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(other.nbytes for other in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_file(file: Path, tensors: dict[str, Written]) -> None:
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it.
    start = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor.read(), tensor.dtype).tofile(stream)
