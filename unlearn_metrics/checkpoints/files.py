"""Hugging Face checkpoints on disk, whole models and LoRA adapters: open, check, identify, write."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from unlearn_metrics.checkpoints import adapters
from unlearn_metrics.checkpoints.names import repository
from unlearn_metrics.checkpoints.tensors import LazyTensor, bin_file, one_thread, safetensors_file, write_safetensors
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.record import CheckpointInfo

# whole, sharded
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MAX_SHARD = "5GB"
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


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: tensors by name, each read when it is used.

    folder: where its files lie. config: its config.json (an adapter's: its base's). files: the weights' files.
    changes: how a config.json written for it differs. notes: for the user, on how it was read.
    logit_scale: what the logits of its model are multiplied by.
    """

    name: str
    folder: Path
    revision: str | None
    config: Path
    files: tuple[Path, ...]
    tensors: dict[str, LazyTensor]
    changes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    logit_scale: float = 1.0


def open_checkpoint(name: str, base: Checkpoint | None = None) -> Checkpoint:
    """Open a local folder, or a hub id with an optional @revision: a whole model, or a LoRA adapter of `base`.

    Raises InputError, in one line, for a folder that is missing or is no checkpoint, for weights that are not whole
    and for what can't be mixed: quantized weights, adapters other than plain LoRA.
    """
    folder, revision = _locate(name)
    present = {path.name for path in folder.iterdir()}
    if adapters.CONFIG in present and not _is_adapter(present):
        raise InputError(
            f"{name} holds a whole model and, beside it, an adapter ({adapters.CONFIG}), which transformers would "
            "apply to it: move the adapter to a folder of its own, or merge it"
        )
    if _is_adapter(present):
        return _open_adapter(name, folder, revision, present, base)
    if "config.json" not in present:
        raise InputError(f"{name} is no checkpoint: it has no config.json")
    if "quantization_config" in read_json(folder / "config.json"):
        raise InputError(f"{name} is quantized; its parameters cannot be mixed (use the unquantized checkpoint)")
    files = tuple(folder / file for file in weight_files(name, present, lambda file: read_json(folder / file)))
    tensors = {n: t for file in files for n, t in _read_file(file).items()}
    return Checkpoint(name, folder, revision, folder / "config.json", files, tensors)


def _is_adapter(present: Collection[str]) -> bool:
    return adapters.CONFIG in present and not any(file in present for files in WEIGHTS for file in files)


def _open_adapter(
    name: str, folder: Path, revision: str | None, present: Collection[str], base: Checkpoint | None
) -> Checkpoint:
    if base is None:
        raise InputError(f"{name} is an adapter, not a whole model; merge it into its base to use it as the original")
    config = read_json(folder / adapters.CONFIG)
    file = next((folder / file for file in ADAPTER_WEIGHTS if file in present), None)
    if file is None:
        raise InputError(f"{name} has no {' or '.join(ADAPTER_WEIGHTS)}")
    tied = tied_names(skeleton(base)) if read_config(base).get("tie_word_embeddings") else {}
    try:
        tensors = adapters.lora(name, config, _read_file(file), base.tensors, tied)
    except (TypeError, AttributeError, ZeroDivisionError, re.error) as error:
        raise InputError(f"{folder / adapters.CONFIG} cannot be used: {first_line(error)}") from None
    notes = [f"{name} is a LoRA adapter: merged into {base.name} tensor by tensor, on the fly"]
    named = str(config.get("base_model_name_or_path"))
    if Path(named).name != Path(base.name.partition("@")[0]).name:
        notes.append(f"{name} names {named} as its base; it is applied to {base.name}")
    return Checkpoint(name, folder, revision, base.config, (file,), tensors, notes=tuple(notes))


def _read_file(file: Path) -> dict[str, LazyTensor]:
    return safetensors_file(file) if file.suffix == ".safetensors" else bin_file(file)


def weight_files(name: str, present: Collection[str], read: Callable[[str], dict[str, Any]]) -> list[str]:
    """The files that hold a model's weights, in transformers' order of preference. read: an index file by its name."""
    for single, index in WEIGHTS:
        if single in present:
            return [single]
        if index in present:
            shards = read(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
                raise InputError(f"{name}: {index} has no weight_map")
            files = sorted(set(shards.values()))
            if any(os.path.basename(file) != file for file in files):
                raise InputError(f"{name}: {index} points outside the checkpoint")
            for file in files:
                if file not in present:
                    raise InputError(f"{name} has no {file}, which its {index} names")
            return files
    raise InputError(f"{name} has no weights: no {' and no '.join(single for single, _ in WEIGHTS)}, whole or sharded")


def _locate(name: str) -> tuple[Path, str | None]:
    if (hub := repository(name)) is None:
        return Path(name), None
    repo, revision = hub
    try:
        found = _download(name, repo, revision)
    except InputError:
        raise
    except Exception as error:  # the hub's, HTTP's and the file system's errors have no base of their own
        reason = first_line(error)
        raise InputError(f"checkpoint {name} is neither a folder here nor to be had from the hub ({reason})") from None
    return found, found.name  # the cache names a snapshot by its commit


def _download(name: str, repo: str, revision: str | None) -> Path:
    """The snapshot's folder, only what is read fetched: many repositories hold their weights several times."""
    try:
        info = huggingface_hub.model_info(repo, revision=revision)
    except OfflineModeIsEnabled:
        for file in ("config.json", adapters.CONFIG):
            if isinstance(cached := huggingface_hub.try_to_load_from_cache(repo, file, revision=revision), str):
                return Path(cached).parent
        raise
    present = {file.rfilename for file in info.siblings or ()}

    def read(file: str) -> dict[str, Any]:
        return read_json(Path(huggingface_hub.hf_hub_download(repo, file, revision=revision)))

    wanted = {"config.json", "generation_config.json", adapters.CONFIG, *TOKENIZER_FILES}
    wanted |= {index for _, index in WEIGHTS}
    if _is_adapter(present):
        wanted |= {file for file in ADAPTER_WEIGHTS[:1] if file in present} or {*ADAPTER_WEIGHTS}
    else:
        wanted |= {*weight_files(name, present, read)}
    return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=sorted(wanted & present)))


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def check_finite(checkpoint: Checkpoint) -> None:
    """InputError naming the first tensor with a NaN or an infinity."""
    with one_thread():
        for name, tensor in checkpoint.tensors.items():
            if not tensor.dtype.is_floating_point:
                continue
            # a NaN is both ends of its part
            if not all(math.isfinite(end) for part in tensor.parts() for end in tensor.rows(*part).aminmax()):
                raise InputError(
                    f"{checkpoint.name}: tensor {name} has NaN or infinite values; the checkpoint is broken"
                )


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json with what it leaves out filled in."""
    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(checkpoint.config.parent).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{checkpoint.name}: config.json cannot be used: {first_line(error)}") from None
    return config


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """transformers' model of the architecture, without memory for its parameters."""
    try:
        config = AutoConfig.from_pretrained(checkpoint.config.parent)
        if (getattr(config, "pad_token_id", None) or 0) >= getattr(config, "vocab_size", math.inf):
            config.pad_token_id = None  # a row that the embedding does not have: no number depends on it
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, ImportError, AssertionError) as error:
        raise InputError(f"{checkpoint.name}: transformers has no such causal model: {first_line(error)}") from None


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Parameter -> the parameter that it is, where the model ties its embeddings."""
    return dict(getattr(model, "_tied_weights_keys", None) or {})


def precision(checkpoint: Checkpoint) -> str:
    """The dtype that transformers loads it in by itself: its config's, else that of most of its tensors."""
    if said := checkpoint.changes.get("dtype") or read_config(checkpoint).get("dtype"):
        return str(said)
    dtypes = Counter(t.dtype for t in checkpoint.tensors.values() if t.dtype.is_floating_point)
    return str(dtypes.most_common(1)[0][0]).removeprefix("torch.")


def identify(checkpoint: Checkpoint) -> CheckpointInfo:
    """sha256 of the weights (over file names and contents), of the config and of the tokenizer's files.

    An adapter's are those of its own files, not of its base's.
    """

    def digest(paths: Iterable[Path]) -> str:
        total = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    own = checkpoint.config.parent == checkpoint.folder
    tokenizer = [path for name in TOKENIZER_FILES if (path := checkpoint.folder / name).is_file()]
    return CheckpointInfo(
        path=checkpoint.name,
        revision=checkpoint.revision,
        weights_sha256=digest(sorted(checkpoint.files)),
        config_sha256=digest([checkpoint.config if own else checkpoint.folder / adapters.CONFIG]),
        tokenizer_sha256=digest(tokenizer) if tokenizer else None,  # many come without: the original's is used
    )


def check_free(out: Path) -> None:
    """InputError if something already lies where a checkpoint is to be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; choose another --out or remove it")


def write_checkpoint(
    out: Path, checkpoint: Checkpoint, tokenizer: Checkpoint, readme: str, max_shard: str = MAX_SHARD
) -> None:
    """Write a checkpoint as transformers does, reading and writing it part by part: shards are never in memory.

    Everything goes to a hidden folder beside `out` first: `out` appears whole or not at all.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    tensors = checkpoint.tensors
    split = huggingface_hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard,
    )
    try:
        partial.mkdir()
        for file, names in split.filename_to_tensors.items():
            write_safetensors(partial / file, {name: tensors[name] for name in names})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (partial / WEIGHTS[0][1]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        config = read_json(checkpoint.config) | checkpoint.changes
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for folder, names in (
            (checkpoint.config.parent, ["generation_config.json"]),
            (tokenizer.folder, [*TOKENIZER_FILES]),
        ):
            for name in names:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, partial / name)
        (partial / "README.md").write_text(readme, encoding="utf-8")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
