"""Hugging Face checkpoints on disk: open, check, identify, write. Tensors stay memory-mapped until asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

from unlearn_metrics.types import CheckpointInfo, InputError, first_line

INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
# What may differ between two configs of one architecture without changing what the parameters mean.
HARMLESS = frozenset(
    [
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "dtype",
        "torch_dtype",
        "use_cache",
        "architectures",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "_attn_implementation",
        "output_attentions",
        "output_hidden_states",
    ]
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: where its tensors lie, with handles to the memory-mapped files."""

    name: str
    folder: Path
    revision: str | None
    shards: dict[str, list[str]]
    files: dict[str, Any]

    @property
    def tensors(self) -> dict[str, str]:
        """tensor name -> file name."""
        return {name: file for file, names in self.shards.items() for name in names}

    def shape(self, tensor: str) -> tuple[int, ...]:
        return tuple(self.files[self.tensors[tensor]].get_slice(tensor).get_shape())

    def read(self, tensor: str) -> torch.Tensor:
        loaded: torch.Tensor = self.files[self.tensors[tensor]].get_tensor(tensor)
        return loaded


def open_checkpoint(name: str) -> Checkpoint:
    """Open a local folder, or a hub id with an optional @revision.

    Raises InputError, in one line, for a folder that is missing or is no checkpoint, and for weights that are not
    whole safetensors files.
    """
    folder, revision = _locate(name)
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{name} is no checkpoint: it has no config.json")
    if "quantization_config" in read_json(config):
        raise InputError(f"{name} is quantized; its parameters cannot be mixed (use the unquantized checkpoint)")
    if (folder / INDEX).is_file():
        files = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    else:
        files = ["model.safetensors"]
    if any(os.path.basename(file) != file for file in files):
        raise InputError(f"{folder / INDEX} points outside the checkpoint")
    shards: dict[str, list[str]] = {}
    handles: dict[str, Any] = {}
    for file in files:
        if not (folder / file).is_file():
            raise InputError(f"{name} has no {file}; weights must be safetensors")
        try:
            handles[file] = safe_open(folder / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / file} is no whole safetensors file: {error}") from None
        shards[file] = sorted(handles[file].keys())
    return Checkpoint(name, folder, revision, shards, handles)


def _locate(name: str) -> tuple[Path, str | None]:
    folder = Path(name)
    if folder.is_dir():
        return folder, None
    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith(("./", "../")) or folder.exists():
        raise InputError(f"checkpoint {name} is not a folder")
    try:
        found = Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=["*.safetensors", "*.json", *TOKENIZER_FILES]
            )
        )
    except (OSError, ValueError) as error:  # every hub and network error is one of these
        reason = first_line(error)
        raise InputError(f"checkpoint {name} is neither a folder here nor to be had from the hub ({reason})") from None
    return found, found.name  # the cache names a snapshot by its commit


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def check_finite(checkpoint: Checkpoint) -> None:
    """InputError naming the first tensor with a NaN or an infinity."""
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{checkpoint.name}: tensor {name} has NaN or infinite values; the checkpoint is broken")


def check_pair(original: Checkpoint, unlearned: Checkpoint) -> None:
    """InputError naming the first difference in architecture, tensors, shapes or tokenizer."""
    configs = []
    for checkpoint in (original, unlearned):
        try:
            configs.append(AutoConfig.from_pretrained(checkpoint.folder).to_dict())
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{checkpoint.name}: config.json cannot be used: {first_line(error)}") from None
    names = f"{original.name} and {unlearned.name}"
    for key in ("model_type", *sorted((configs[0].keys() | configs[1].keys()) - HARMLESS - {"model_type"})):
        a, b = (config.get(key) for config in configs)
        if a != b:
            raise InputError(f"{names} differ in architecture: {key} is {a} in one, {b} in the other")
    a_tensors, b_tensors = original.tensors, unlearned.tensors
    for tensor in sorted(a_tensors.keys() | b_tensors.keys()):
        for checkpoint, tensors in ((original, a_tensors), (unlearned, b_tensors)):
            if tensor not in tensors:
                raise InputError(f"{names} differ: {checkpoint.name} has no tensor {tensor}")
        if (a := original.shape(tensor)) != (b := unlearned.shape(tensor)):
            raise InputError(f"{names} differ: {tensor} has shape {list(a)} in one, {list(b)} in the other")
    _check_tokenizers(original, unlearned)


def _check_tokenizers(original: Checkpoint, unlearned: Checkpoint) -> None:
    if not any((unlearned.folder / file).is_file() for file in TOKENIZER_FILES[:2]):
        return  # many published checkpoints come without one: the original's is used
    try:
        a, b = (AutoTokenizer.from_pretrained(c.folder) for c in (original, unlearned))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(
            f"the tokenizer of {original.name} or {unlearned.name} cannot be loaded: {first_line(error)}"
        ) from None
    va, vb = a.get_vocab(), b.get_vocab()
    for token in sorted(va.keys() | vb.keys()):
        if va.get(token) != vb.get(token):
            raise InputError(
                f"the tokenizers of {original.name} and {unlearned.name} differ: token {token!r} has id "
                f"{va.get(token)} in one, {vb.get(token)} in the other"
            )
    for what in ("eos_token", "bos_token"):
        if getattr(a, what) != getattr(b, what):
            raise InputError(
                f"the tokenizers of {original.name} and {unlearned.name} differ: {what} is {getattr(a, what)!r} "
                f"in one, {getattr(b, what)!r} in the other"
            )
    parts = [json.loads(t.backend_tokenizer.to_str()) for t in (a, b) if hasattr(t, "backend_tokenizer")]
    if len(parts) == 2:
        for key in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder"):
            if parts[0].get(key) != parts[1].get(key):
                raise InputError(f"the tokenizers of {original.name} and {unlearned.name} differ in their {key}")


def identify(checkpoint: Checkpoint) -> CheckpointInfo:
    """sha256 of the weights (over file names and contents), of config.json and of the tokenizer's files."""

    def digest(names: list[str]) -> str:
        total = hashlib.sha256()
        for name in names:
            with (checkpoint.folder / name).open("rb") as file:
                total.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    tokenizer = [name for name in TOKENIZER_FILES if (checkpoint.folder / name).is_file()]
    return CheckpointInfo(
        path=checkpoint.name,
        revision=checkpoint.revision,
        weights_sha256=digest(sorted(checkpoint.shards)),
        config_sha256=digest(["config.json"]),
        tokenizer_sha256=digest(tokenizer) if tokenizer else None,  # many come without: the original's is used
    )


def check_free(out: Path) -> None:
    """InputError if something already lies where a checkpoint is to be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; choose another --out or remove it")


def write_checkpoint(
    out: Path, like: Checkpoint, tokenizer: Checkpoint, read: Callable[[str], torch.Tensor], readme: str
) -> None:
    """Write a checkpoint split into shards as `like` is, with tensors from `read`, one shard in memory at a time.

    Everything goes to a hidden folder beside `out` first: `out` appears whole or not at all.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        for file, names in like.shards.items():
            save_file({name: read(name).contiguous() for name in names}, partial / file, metadata={"format": "pt"})
        for name in (INDEX, "config.json", "generation_config.json"):
            if (like.folder / name).is_file():
                shutil.copyfile(like.folder / name, partial / name)
        for name in TOKENIZER_FILES:
            if (tokenizer.folder / name).is_file():
                shutil.copyfile(tokenizer.folder / name, partial / name)
        (partial / "README.md").write_text(readme, encoding="utf-8")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
