"""Layers patched from one model into another, against plain hooks on one text at a time; several architectures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hft
from lm_eval.models.huggingface import HFLM

from tests import CHECKPOINTS
from unlearn_metrics.backends import hf, patching
from unlearn_metrics.backends.patching import Span
from unlearn_metrics.errors import InputError

VOCABULARY = 512
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
NEOX = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
OPT = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64}
ARCHITECTURES = {  # name: (config, its layers)
    "llama": (lambda: hft.LlamaConfig(**SIZES), "model.layers"),
    "qwen2": (lambda: hft.Qwen2Config(**SIZES), "model.layers"),
    "gemma2, capped": (lambda: hft.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0), "model.layers"),
    "gpt-neox": (lambda: hft.GPTNeoXConfig(**NEOX), "gpt_neox.layers"),
    "gpt2": (lambda: hft.GPT2Config(**GPT2), "transformer.h"),
    "opt": (lambda: hft.OPTConfig(**OPT, max_position_embeddings=64, init_std=0.3), "model.decoder.layers"),
}
SPANS = [
    Span(tuple(range(5, 25)), 8, 20),  # a whole answer
    Span(tuple(range(40, 52)), 3, 6),  # a part of one: what follows is never seen
    Span(tuple(range(100, 131)), 30, 31),
    Span(tuple(range(7, 25)), 1, 2),
]


@pytest.fixture(scope="module")
def tokenizer() -> hft.PreTrainedTokenizerBase:
    return hft.AutoTokenizer.from_pretrained(CHECKPOINTS / "original")


def two(config: Callable[[], hft.PreTrainedConfig], tokenizer: hft.PreTrainedTokenizerBase):
    """A model, and what makes it one or another; also the two by themselves."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(hft.AutoModelForCausalLM.from_config(config()).eval())
    torch.manual_seed(2)
    lm = HFLM(hft.AutoModelForCausalLM.from_config(config()).eval(), tokenizer=tokenizer, max_length=63, batch_size=1)
    source, target = (lambda m=m: lm.model.load_state_dict(m.state_dict()) and None for m in models)
    return lm, source, target, models


def drops(lm, spans, source, target):
    target()
    return patching.drops(lm, spans, patching.readings(lm, spans), source, target)


def plainly(model: torch.nn.Module, span: Span) -> float:
    """Mean log-probability of the span's tokens, from the whole text's logits."""
    with torch.no_grad():
        logprobs = model(torch.tensor([span.ids])).logits[0].float().log_softmax(-1)
    return float(np.mean([logprobs[i - 1, span.ids[i]] for i in range(span.start, span.stop)]))


def patched(target: torch.nn.Module, source: torch.nn.Module, layers: str, at: int, span: Span, put: int) -> float:
    """The same, with the output of the target's layer `put` taken from the source's layer `at` before the span."""
    seen = {}

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    def replace(_module, _args, output):
        states = first(output)
        for i in range(span.start - 1, span.stop - 1):
            states[0, i] = seen["states"][0, i]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = source.get_submodule(f"{layers}.{at}").register_forward_hook(
        lambda _module, _args, output: seen.update(states=first(output).clone())
    )
    plainly(source, span)
    handle.remove()
    handle = target.get_submodule(f"{layers}.{put}").register_forward_hook(replace)
    found = plainly(target, span)
    handle.remove()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_against_plain_hooks(name, tokenizer):
    config, layers = ARCHITECTURES[name]
    lm, source, target, (u, f) = two(config, tokenizer)
    assert [*patching.decoder_layers(lm.model)] == [lm.model.get_submodule(f"{layers}.{i}") for i in range(3)]
    found = drops(lm, SPANS, source, target)
    for i, span in enumerate(SPANS):
        for layer in range(3):
            drop = plainly(f, span) - patched(f, u, layers, layer, span, put=layer)
            assert found["patched"][i, layer] == pytest.approx(drop, abs=2e-4)
            lens = [patched(f, m, layers, layer, span, put=2) for m in (f, u)]
            assert found["lens"][i, layer] == pytest.approx(lens[0] - lens[1], abs=2e-4)
    assert np.abs(found["patched"]).min(0).max() > 0.01  # something happened
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_a_model_patched_into_itself_lacks_nothing(tokenizer):
    lm, _, target, _ = two(ARCHITECTURES["llama"][0], tokenizer)
    found = drops(lm, SPANS, target, target)
    assert np.abs(found["patched"]).max() < 1e-5
    assert np.abs(found["lens"]).max() < 1e-5


def test_passes_are_counted(tokenizer):
    """A pass for each layer and three more over the texts: states of both, and plain. The lens is no whole pass."""
    lm, source, target, _ = two(ARCHITECTURES["llama"][0], tokenizer)
    hf.work(lm).clear()
    drops(lm, SPANS[:1], source, target)
    assert hf.work(lm)["forward_passes"] == 3 + 3
    assert hf.work(lm)["positions"] == (3 + 3) * (SPANS[0].stop - 1)


def test_a_long_text_is_cut_from_the_left(tokenizer):
    lm, source, target, (u, f) = two(ARCHITECTURES["llama"][0], tokenizer)
    long = Span(tuple(range(3, 103)), 90, 95)
    cut = Span(long.ids[95 - 64 : 95], 90 - 31, 95 - 31)
    found = drops(lm, [long], source, target)["patched"][0]
    assert found == pytest.approx(
        [plainly(f, cut) - patched(f, u, "model.layers", i, cut, i) for i in range(3)], abs=2e-4
    )
    with pytest.raises(InputError, match="an answer does not fit the model's 63 tokens"):
        drops(lm, [Span(tuple(range(100)), 10, 90)], source, target)


def test_what_has_no_layers_and_what_is_broken(tokenizer):
    lm, source, target, (u, _) = two(ARCHITECTURES["llama"][0], tokenizer)
    with torch.no_grad():
        u.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        drops(lm, SPANS, source, target)
    lm.model.config.num_hidden_layers = 5
    with pytest.raises(InputError, match="LlamaForCausalLM has no list of 5 decoder layers"):
        drops(lm, SPANS, target, target)
    assert not any(Path().glob("source"))
