"""Checkpoints of other programs, in and out: Hugging Face folders and GGUF files.

`read` and `read_config` take what `--checkpoint=` takes: a folder, `hf:ORG/NAME`, `gguf:FILE`, `smollm2`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from configs import schema
from configs.convert import override
from configs.schema import Config
from model.exchange import config_json, families, folder, stream
from model.exchange.source import ExchangeError, Foreign, TensorSource
from model.sharding import make_mesh

HUB_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "source.spm", "vocab.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network that another program trained."""

    name: str
    config: Config
    params: Any  # as ours: nested dictionaries of jax arrays, on the devices of a mesh
    tokenizer_json: str | None  # of the tokenizers library; None where the checkpoint has none
    start: int | None  # the token that a translation begins with; None: as the tokenizer begins a text
    ends: tuple[int, ...]  # the tokens that end a text
    chat: dict[str, str]  # as `Foreign` has it


def is_foreign(spec: str) -> bool:
    """Whether `spec` names a checkpoint of another program, not a run of ours."""
    if spec == "smollm2" or spec.startswith(("hf:", "gguf:")):
        return True
    config = Path(spec) / "config.json"
    return config.is_file() and "model_type" in folder.read_json(config)


def open_foreign(spec: str) -> Foreign:
    """Open a checkpoint of another program; only headers are read.

    Raises:
      ExchangeError: it is not there, or cannot be read.
    """
    if spec == "smollm2" or spec.startswith("gguf:"):
        from model.exchange import gguf

        return gguf.open_gguf(gguf.find_smollm2() if spec == "smollm2" else spec.removeprefix("gguf:"))
    if spec.startswith("hf:"):
        return folder.open_folder(_download(spec.removeprefix("hf:")), spec.rpartition("/")[2])
    return folder.open_folder(Path(spec))


def _download(name: str) -> Path:
    """The folder of a repository on the Hugging Face hub, downloaded if it is not there yet; `ORG/NAME@REVISION`."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ExchangeError(f"hf:{name} needs the package huggingface_hub: pip install huggingface_hub.") from error
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # Of many classes, from several libraries.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExchangeError(
            f"hf:{name} cannot be downloaded ({reason[:200]}). Without a network, give the path of a folder with its "
            f"config.json, tokenizer.json and *.safetensors."
        ) from error


def read_config(spec: str) -> Config:
    """The config that computes what the network of a foreign checkpoint does; reads no weights.

    Raises:
      ExchangeError: it cannot be read, or has a part that is not known here.
    """
    return _config(open_foreign(spec))


def _config(foreign: Foreign) -> Config:
    family, _ = config_json.find_family(foreign.config)
    names = {families.canonical_name(family, name) for name in foreign.tensors.names()}
    return config_json.to_config(foreign.config, names, foreign.name)


def read(spec: str, mesh: Mesh | None = None, param_dtype: str = "float32") -> Imported:
    """A foreign checkpoint as a network of ours, its weights streamed to the devices of `mesh` (by default, all).

    Raises:
      ExchangeError: it cannot be read; a part is not known here; a tensor is missing, too many or of another shape.
    """
    foreign = open_foreign(spec)
    described = _describe(foreign)
    config = override(described.config, {"model.param_dtype": param_dtype})
    family, _ = config_json.find_family(foreign.config)
    params = stream.load(family, config, foreign.tensors, mesh or make_mesh(schema.Mesh()))
    return dataclasses.replace(described, config=config, params=params)


def describe(spec: str) -> Imported:
    """A foreign checkpoint without its weights (`params` is None).

    Raises:
      ExchangeError: it cannot be read, or has a part that is not known here.
    """
    return _describe(open_foreign(spec))


def _describe(foreign: Foreign) -> Imported:
    config = _config(foreign)
    _, fields = config_json.find_family(foreign.config)
    ends = foreign.config.get("eos_token_id", fields.get("eos_token_id"))
    start = None
    if config.model.network == "encoder_decoder":
        start = fields.get("decoder_start_token_id")
        start = fields.get("pad_token_id", 0) if start is None else start
    return Imported(
        foreign.name, config, None, foreign.tokenizer_json, start,
        tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,), foreign.chat,
    )  # fmt: skip


def write(
    where: str | Path,
    config: Config,
    params: Any,
    tokenizer_json: str | None,
    family: str | None = None,
    *,
    start: int | None = None,
    ends: tuple[int, ...] = (),
    chat: dict[str, str] | None = None,
    shard_bytes: int = folder.SHARD_BYTES,
) -> str:
    """Write a network as a Hugging Face folder that `transformers` loads; returns its `model_type`.

    Args:
      where: the folder, which is made if need be.
      config: the network's.
      params: its parameters; written as `model.param_dtype`.
      tokenizer_json: of the tokenizers library, or None to write none.
      family: the kind of network in `transformers`; by default the first that can hold it.
      start: the token that a translation begins with.
      ends: the tokens that end a text.
      chat: how messages become a text, as `Foreign` has it.
      shard_bytes: weights of more bytes than this are written as several files.

    Raises:
      ExchangeError: no kind of network that `transformers` has computes the same; names the settings.
    """
    kind, fields = config_json.to_fields(config, family)
    tensors = stream.unload(kind, config, params)
    where = Path(where)
    where.mkdir(parents=True, exist_ok=True)
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if ends:
        tokens["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    if start is not None:
        tokens |= {"decoder_start_token_id": start, "pad_token_id": start}
    _write_json(where / "config.json", fields | tokens)
    folder.write_safetensors(where, tensors, shard_bytes)
    if tokenizer_json is not None:
        (where / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        _write_json(where / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **(chat or {})})
    return kind.model_type


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


__all__ = [
    "ExchangeError", "Foreign", "Imported", "TensorSource", "describe", "is_foreign", "open_foreign", "read",
    "read_config", "write",
]  # fmt: skip
