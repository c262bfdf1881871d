"""What the package does on a GPU, checked and measured on one card without a network: one Markdown table.

    PYTHONPATH=. python tools/gpu_check.py                            # one card: under 8 minutes, mostly 2 to 4
    PYTHONPATH=. python tools/gpu_check.py --device cpu --sizes tiny  # the script itself, anywhere

Correctness is checked on the demo's trained checkpoints; speed on Llamas of random weights, of the shapes of Llama 3.2
1B and Llama 3.1 8B, whose texts mean nothing. Each part stands alone: one that fails is reported as failed, with its
error, and the exit status is 1. Results are printed as they come, and written to $OUT (gpu_check.md, gpu_check.json)
if that is set.

Near-ties: two texts part where two tokens are about equally likely. A parting counts as one if the two tokens' logits,
given the same text, lie no farther apart than twice the largest error of a logit there (against float32 of the same
weights). Anything beyond is a fault.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import unlearn_metrics
from unlearn_metrics.backends import decoding, encoding, hf
from unlearn_metrics.checkpoints.files import Checkpoint, open_checkpoint
from unlearn_metrics.checkpoints.tensors import from_memory
from unlearn_metrics.control import mixing

DEMO = Path(unlearn_metrics.__file__).parent / "demo"
# vocabulary, width, inner width, layers, heads, heads of keys and values
SHAPES = {
    "tiny": (2048, 64, 160, 2, 4, 2),
    "1b": (128256, 2048, 8192, 16, 32, 8),
    "8b": (128256, 4096, 14336, 32, 32, 8),
}
# documents (7 answers to a prompt each), texts decoded at once, tokens of a text, texts against generate one by one
WORK = {"tiny": (6, 8, 24, 4), "1b": (600, 128, 128, 16), "8b": (300, 64, 64, 0)}
ALPHAS = (0.25, 0.5, 0.7109375, 0.8671875, 0.1)

rows: list[tuple[str, str, str]] = []
data: dict[str, Any] = {}
failed: list[str] = []


def note(text: str) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


def row(what: str, figure: str, how: str = "", **values: Any) -> None:
    """One line of the table. values: the same as numbers, for the JSON file."""
    rows.append((what, figure, how))
    data[what] = {k: None if v != v else v for k, v in values.items()} or figure  # JSON has no NaN
    note(f"{what}: {figure}" + (f" ({how})" if how else ""))


def table() -> str:
    lines = [f"| {what} | {figure} | {how} |" for what, figure, how in rows]
    return "\n".join([f"GPU check: {data['card']}", "", "| what | figure | how |", "|---|---|---|", *lines, ""])


def save() -> None:
    if out := os.environ.get("OUT"):
        Path(out, "gpu_check.md").write_text(table(), encoding="utf-8")
        Path(out, "gpu_check.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def part(name: str, job: Callable[[], None]) -> None:
    """Run a part. Its failure is a line of the table, and the others go on."""
    if time.perf_counter() - START > LIMIT:
        failed.append(name)
        row(name, "**not done**", f"no time was left of {LIMIT:.0f} s")
    else:
        note(f"-- {name}")
        try:
            job()
        except Exception as error:
            failed.append(name)
            traceback.print_exc()
            row(name, "**failed**", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    save()


def expect(holds: bool, what: str) -> str:
    """ "yes", or a failure of the check."""
    if not holds:
        failed.append(what)
    return "yes" if holds else "**NO**"


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def seconds(job: Callable[[], Any], repeats: int = 3) -> float:
    """Median of the repeats."""
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        job()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(job: Callable[[], Any]) -> float:
    """GiB that torch held at most beyond what it held before; NaN on a CPU."""
    if DEVICE.type != "cuda":
        job()
        return math.nan
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    job()
    return (torch.cuda.max_memory_allocated(DEVICE) - before) / 2**30


def gib(size: float) -> str:
    return "memory not measured" if math.isnan(size) else f"{size:.1f} GiB"


# --- models and data


def demo_lm(name: str, device: str, dtype: str) -> HFLM:
    return HFLM(pretrained=str(DEMO / "checkpoints" / name), device=device, dtype=dtype, batch_size=1)


def demo_documents() -> list[dict[str, Any]]:
    files = [(DEMO / "data" / f"{name}_perturbed.json").read_text("utf-8") for name in ("forget", "retain")]
    return [json.loads(line) for file in files for line in file.splitlines()]


def prompt_of(document: dict[str, Any]) -> str:
    return f"Question: {document['question']}\nAnswer:"


def shaped(size: str, dtype: torch.dtype, tied: bool = False) -> LlamaForCausalLM:
    """A Llama of random weights, made on the device. tied: its greedy text repeats one token; else it wanders."""
    vocabulary, width, inner, layers, heads, kv = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        dtype=dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def wrapped(model: LlamaForCausalLM) -> HFLM:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "checkpoints" / "original")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=2048)


def count(model: LlamaForCausalLM) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e9


def tofu_like(size: str) -> list[encoding.Pair]:
    """Random ids of TOFU's lengths: 7 answers of 25 to 85 tokens to each prompt of 15 to 35."""
    rng = random.Random(0)
    vocabulary, documents = SHAPES[size][0], WORK[size][0]

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high)))

    prompts = [ids(15, 35) for _ in range(documents)]
    return [encoding.Pair(prompt, ids(25, 85)) for prompt in prompts for _ in range(7)]


# --- correctness


def difference(a: Sequence[Any], b: Sequence[Any]) -> dict[str, float]:
    gaps = np.concatenate([np.abs(x.logprob - y.logprob) for x, y in zip(a, b, strict=True)])
    other = np.concatenate([x.argmax != y.argmax for x, y in zip(a, b, strict=True)])
    return {
        "tokens": int(gaps.size),
        "largest": float(gaps.max()),
        "mean": float(gaps.mean()),
        "other_argmax": int(other.sum()),
    }


def scores_of_demo() -> None:
    documents = demo_documents()[:: 1 if DEVICE.type == "cuda" else 8]
    for name in ("original", "excessive"):
        found, pairs = {}, []
        for where, dtype in dict.fromkeys([("cpu", "float32"), (DEVICE.type, "float32"), (DEVICE.type, "bfloat16")]):
            lm = demo_lm(name, where, dtype)
            if not pairs:
                texts = [(prompt_of(d), f" {a}") for d in documents for a in (d["answer"], *d["perturbed_answer"])]
                pairs = [encoding.encode(lm, *text) for text in texts]
            found[where, dtype] = hf.token_scores(lm, pairs)
        exact = found[DEVICE.type, "float32"]
        what = f"demo {name}: float32 on {DEVICE.type} against float32 on cpu"
        if DEVICE.type == "cpu":
            row(what, "not done", "needs a card")
        else:
            d = difference(found["cpu", "float32"], exact)
            row(
                what,
                f"largest difference of log p {d['largest']:.1e}; other arg-max {d['other_argmax']} of {d['tokens']:,}",
                f"within 1e-3: {expect(d['largest'] < 1e-3, what)}",
                **d,
            )
        d = difference(exact, found[DEVICE.type, "bfloat16"])
        row(
            f"demo {name}: bfloat16 against float32, both on {DEVICE.type}",
            f"mean difference of log p {d['mean']:.4f}, largest {d['largest']:.2f}; "
            f"other arg-max {d['other_argmax'] / d['tokens']:.2%} of {d['tokens']:,}",
            "what the format costs",
            **d,
        )


class Partings:
    """How texts of one model, ours and another's, agree: equal, parted at a near-tie, parted beyond one."""

    def __init__(self, model: Any, exact: Any) -> None:
        self.model, self.exact = model, exact
        self.equal, self.ties, self.beyond = 0, 0, 0
        self.widest = 0.0

    def add(self, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], ends: set[int]) -> None:
        if list(ours) == list(theirs):
            self.equal += 1
            return
        n = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        a, b = ({t[n]} if n < len(t) else ends for t in (ours, theirs))
        ids = torch.tensor([[*prompt, *ours[:n]]], device=self.model.device)
        with torch.no_grad():
            said, right = (m(ids).logits[0, -1].float() for m in (self.model, self.exact))
        error = float((said - right).abs().max())
        gap = abs(max(float(right[t]) for t in a) - max(float(right[t]) for t in b))
        self.widest = max(self.widest, gap)
        if gap <= 2 * error or gap < 1e-4:
            self.ties += 1
        else:
            self.beyond += 1
            note(f"parted beyond a near-tie at token {n}: {a} and {b}, {gap:.4f} apart, errors of {error:.4f}")

    def report(self, what: str, how: str) -> None:
        total = self.equal + self.ties + self.beyond
        good = expect(not self.beyond, what)
        row(
            what,
            f"{self.equal} of {total} equal token for token; {self.ties} part at a near-tie; {self.beyond} beyond",
            f"{how}; all equal but for near-ties: {good}",
            texts=total,
            equal=self.equal,
            near_ties=self.ties,
            beyond=self.beyond,
            widest_gap=self.widest,
        )


def generate(model: Any, prompt: Sequence[int], limit: int, ends: set[int]) -> list[int]:
    """transformers' own greedy text, one by one: no padding."""
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )[0, len(prompt) :].tolist()
    return out[:-1] if out and out[-1] in ends else out


def ours_from_drafts(lm: HFLM, pairs: Sequence[encoding.Pair], limit: int) -> list[list[int]]:
    """What `decoding.greedy` does, in tokens: as far as teacher forcing settles the text, then drafted decoding."""
    scores = hf.token_scores(lm, pairs)
    texts, starts, places = [], [], []
    for i, (pair, score) in enumerate(zip(pairs, scores, strict=True)):
        miss = int(np.argmin(np.append(score.argmax == score.tokens, False)))
        known = [int(t) for t in score.tokens[:miss]][:limit]
        texts.append(known)
        if miss < len(score.tokens) and len(known) < limit:
            rest = tuple(int(t) for t in score.tokens)
            ids = [*pair.context, *known]
            starts.append(decoding.Start(ids, int(score.argmax[miss]), limit - len(known), rest))
            places.append(i)
        elif texts[-1] and texts[-1][-1] == lm.eot_token_id:
            texts[-1].pop()
    for i, rest in zip(places, decoding.continuations(lm, starts), strict=True):
        texts[i] = texts[i] + rest
    return texts


def texts_of_demo() -> None:
    every = demo_documents()
    for name in ("original", "moderate", "excessive"):
        for dtype, texts in (("bfloat16", 24), ("float32", 8)):
            documents = every[:: len(every) // (texts if DEVICE.type == "cuda" else 4)]
            lm = demo_lm(name, str(DEVICE), dtype)
            # the same weights without the rounding of bfloat16's arithmetic
            exact = demo_lm(name, str(DEVICE), "float32").model
            ends = {lm.eot_token_id, *decoding._ids(lm.model.generation_config.eos_token_id)}
            pairs = [encoding.encode(lm, prompt_of(d), f" {d['answer']}") for d in documents]
            hf.work(lm).clear()
            ours = ours_from_drafts(lm, pairs, 60)
            partings = Partings(lm.model, exact)
            for pair, text in zip(pairs, ours, strict=True):
                partings.add(pair.context, text, generate(lm.model, pair.context, 60, ends), ends)
            w = hf.work(lm)
            partings.report(
                f"demo {name}, {dtype}: drafted text against transformers' generate, one by one",
                f"{w['accepted']} of {w['proposed']} proposals accepted",
            )


def texts_of_shape(size: str) -> None:
    """Drafts that are right but for a token in the middle, on a model of realistic size."""
    texts, limit = WORK[size][3], WORK[size][2] // 2
    model = shaped(size, torch.bfloat16)
    lm, ends = wrapped(model), {1}
    exact = shaped(size, torch.float32)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    prompts = list(dict.fromkeys(pair.context for pair in tofu_like(size)))[:texts]
    theirs = [generate(model, prompt, limit, ends) for prompt in prompts]
    pairs = []
    for prompt, text in zip(prompts, theirs, strict=True):
        draft = [*text] or [5]
        draft[len(draft) // 2] = 7  # wrong here
        pairs.append(encoding.Pair(prompt, tuple(draft)))
    hf.work(lm).clear()
    ours = ours_from_drafts(lm, pairs, limit)
    w, partings = hf.work(lm), Partings(model, exact)
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        partings.add(prompt, a, b, ends)
    partings.report(
        f"{size}, random weights, bfloat16: text drafted by one wrong in the middle against generate",
        f"{w['accepted']} of {w['proposed']} proposals accepted",
    )


def two_devices() -> None:
    """The demo's model with every other module on the CPU, run by accelerate's hooks, as device_map runs it."""
    where = f"a model on {DEVICE.type} and cpu"
    places = {"model.embed_tokens": "cpu", "model.layers.0": DEVICE, "model.layers.1": "cpu", "model.layers.2": DEVICE}
    places |= {"model.norm": DEVICE, "model.rotary_emb": DEVICE, "lm_head": "cpu", "": DEVICE}
    whole, lm = (demo_lm("moderate", str(DEVICE), "float32") for _ in range(2))
    lm.model.config.tie_word_embeddings = False
    lm.model.lm_head.weight = torch.nn.Parameter(lm.model.lm_head.weight.detach().clone())
    for name, place in places.items():
        module = lm.model.get_submodule(name)
        if name:
            module.to(place)
        skip = lm.model._skip_keys_device_placement
        add_hook_to_module(module, AlignDevicesHook(place, io_same_device=not name, skip_keys=skip))
    pairs = [
        encoding.encode(lm, prompt_of(d), f" {a}")
        for d in demo_documents()[::10]
        for a in (d["answer"], *d["perturbed_answer"])
    ]
    for shared in (True, False):
        d = difference(hf.token_scores(whole, pairs, shared), hf.token_scores(lm, pairs, shared))
        row(
            f"{where}, prompts {'' if shared else 'not '}shared: token scores",
            f"largest difference of log p {d['largest']:.1e}; other arg-max {d['other_argmax']} of {d['tokens']:,}",
            f"within 1e-3: {expect(d['largest'] < 1e-3, 'token scores on two devices')}",
            **d,
        )
    prompts = list(dict.fromkeys(pair.context for pair in pairs))
    starts = [decoding.Start(p, 5, 10 + 3 * (i % 10), pairs[0].answer) for i, p in enumerate(prompts)]
    equal = sum(a == b for a, b in zip(*(decoding.continuations(m, starts) for m in (whole, lm)), strict=True))
    row(f"{where}: texts", f"{equal} of {len(starts)} equal", "float32, drafted")
    o, u = (open_checkpoint(str(DEMO / "checkpoints" / n)) for n in ("original", "moderate"))
    for model in (whole, lm):
        for alpha in (0.3, 0.6):
            mixing.mix_into(model.model, o, u, alpha)
    there = whole.model.state_dict()
    other = sum(int((t.cpu() != there[n].cpu()).sum()) for n, t in lm.model.state_dict().items())
    row(
        f"{where}: mixed in place",
        f"{other} parameters differ",
        f"from the model on one device: {expect(not other, 'mix on two devices')}",
    )


# --- speed


def teacher_forcing(size: str, dtype: torch.dtype) -> None:
    model = shaped(size, dtype)
    lm, pairs = wrapped(model), tofu_like(size)
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        pairs = pairs[: len(pairs) // 4]
    hf.token_scores(lm, pairs[:70])  # warm
    hf.work(lm).clear()
    memory = peak(lambda: hf.token_scores(lm, pairs))
    w = dict(hf.work(lm))
    ours = seconds(lambda: hf.token_scores(lm, pairs))
    whole = [p.context + p.answer for p in pairs]
    positions = sum(map(len, whole))

    def plain() -> None:
        """One forward over each pair, prompts and all, 32 at once, and log-probabilities of the answers: as most do."""
        with torch.no_grad():
            for i in range(0, len(whole), 32):
                batch = whole[i : i + 32]
                ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
                for r, ids_of in enumerate(batch):
                    ids[r, : len(ids_of)] = torch.tensor(ids_of)
                ids = ids.to(DEVICE)
                logits = model(ids).logits[:, :-1].float()
                torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(-1).tolist()

    theirs = seconds(plain, 1)
    row(
        f"{size} ({count(model):.2f} B), {name}: teacher forcing",
        f"{w['positions'] / ours:,.0f} positions/s, {w['scored'] / ours:,.0f} tokens scored/s",
        f"{len(pairs)} answers, 7 to a prompt, {w['positions']:,} positions in {ours:.2f} s, "
        f"{w['padding'] / w['positions']:.1%} padding; {gib(memory)} beyond the weights; one pass over each pair, "
        f"32 at once: {theirs:.2f} s ({theirs / ours:.1f} times)",
        seconds=ours,
        plain_seconds=theirs,
        plain_positions=positions,
        memory_gib=memory,
        parameters=count(model),
        **w,
    )


def text_speed(size: str, loops: bool = False) -> None:
    """loops: texts that repeat one token, of a model whose head is its embedding."""
    model = shaped(size, torch.bfloat16, tied=loops)
    lm = wrapped(model)
    texts, limit = WORK[size][1:3]
    rng = random.Random(1)
    prompts = [[rng.randrange(3, SHAPES[size][0]) for _ in range(rng.randint(15, 35))] for _ in range(texts)]
    starts = [decoding.Start(p, 5, limit, ()) for p in prompts]
    decoding.continuations(lm, [decoding.Start(p, 5, 4, ()) for p in prompts[:8]])  # warm
    kept: list[list[list[int]]] = []
    hf.work(lm).clear()
    memory = peak(lambda: kept.append(decoding.continuations(lm, starts)))
    w = dict(hf.work(lm))
    ours = seconds(lambda: decoding.continuations(lm, starts), 1)
    tokens = sum(map(len, kept[0]))
    width = max(map(len, prompts)) + 1
    ids = torch.zeros(texts, width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, p in enumerate(prompts):
        ids[r, width - 1 - len(p) :] = torch.tensor([*p, 5])
        mask[r, width - 1 - len(p) :] = 1
    ids, mask = ids.to(DEVICE), mask.to(DEVICE)

    def stock() -> None:
        with torch.no_grad():
            model.generate(
                ids, attention_mask=mask, max_new_tokens=limit - 1, do_sample=False, eos_token_id=1, pad_token_id=1
            )

    theirs = seconds(stock, 1)
    row(
        f"{size}, bfloat16: decoding {texts} texts of {limit} tokens{', which loop' * loops}, nothing to draft from",
        f"{tokens / ours:,.0f} tokens/s; transformers' generate, batched: {tokens / theirs:,.0f}",
        f"{ours:.1f} s against {theirs:.1f} s; {w.get('forward_passes')} passes, {w.get('accepted', 0)} of "
        f"{w.get('proposed', 0)} proposals accepted; {gib(memory)} beyond the weights",
        seconds=ours,
        generate_seconds=theirs,
        tokens=tokens,
        memory_gib=memory,
        **w,
    )
    for at_once in () if loops else (8, 32):
        some = [(p, t) for p, t in zip(prompts, kept[0], strict=True) if len(t) > 2][:at_once]
        if not some:
            continue
        drafted = []
        for p, t in some:
            draft = [*t]
            draft[len(draft) // 2] = 7
            drafted.append(decoding.Start(p, t[0], limit, tuple(draft)))
        bare = [decoding.Start(s.ids, s.token, limit, ()) for s in drafted]
        hf.work(lm).clear()
        drafted_seconds = seconds(lambda drafted=drafted: decoding.continuations(lm, drafted), 1)
        w = dict(hf.work(lm))
        bare_seconds = seconds(lambda bare=bare: decoding.continuations(lm, bare), 1)
        row(
            f"{size}, bfloat16: the same, {len(some)} texts, drafted by a reference wrong in one token",
            f"{bare_seconds / drafted_seconds:.1f} times as fast",
            f"{drafted_seconds:.2f} s against {bare_seconds:.2f} s; {w.get('accepted', 0)} of "
            f"{w.get('proposed', 0)} proposals accepted",
            seconds=drafted_seconds,
            undrafted_seconds=bare_seconds,
            **w,
        )


# --- mixing


def lerp_bits() -> None:
    """Whether a mix computed on the card has the bits of one computed on a CPU, as `control mix` writes it."""
    if DEVICE.type == "cpu":
        row("mix on a card against mix on a CPU", "not done", "needs a card")
        return
    generator = torch.Generator().manual_seed(0)
    size = 10_000_019
    for types in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32), (torch.float16,) * 2):
        o, u = (torch.randn(size, generator=generator).to(t) for t in types)
        u = (o.float() + 0.01 * u.float()).to(types[1])
        other, largest = 0, 0.0
        for alpha in ALPHAS:
            here, there = mixing.lerp(o, u, alpha), mixing.lerp(o.to(DEVICE), u.to(DEVICE), alpha).cpu()
            other += int((here != there).sum())
            largest = max(largest, float((here.double() - there.double()).abs().max()))
        names = " and ".join(dict.fromkeys(str(t).removeprefix("torch.") for t in types))
        row(
            f"mix on a card against mix on a CPU, {names}",
            f"{other} of {len(ALPHAS) * size:,} values differ",
            f"largest difference {largest:.1e}; bit for bit: {expect(not other, f'lerp in {names}')}",
            differ=other,
            values=len(ALPHAS) * size,
            largest=largest,
        )


def rewriting(size: str, dtype: torch.dtype) -> None:
    """Mixing in place: from two checkpoints' files at each alpha, and with both held beside the model."""
    with tempfile.TemporaryDirectory() as folder:
        rewritten(size, dtype, Path(folder))


def rewritten(size: str, dtype: torch.dtype, folder: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    model = shaped(size, dtype)
    model.save_pretrained(folder / "original")
    generator = torch.Generator(DEVICE).manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, device=DEVICE, dtype=dtype), alpha=1e-3)
    model.save_pretrained(folder / "unlearned")
    o, u = (open_checkpoint(str(folder / n)) for n in ("original", "unlearned"))
    gigabytes = sum(t.nbytes for t in u.tensors.values()) / 1e9
    room, expected = mixing._room, {}
    times: dict[str, list[float]] = {}
    for how in ("files", "held"):
        mixing._room = (
            (lambda device: 0) if how == "files" else room if DEVICE.type == "cuda" else lambda device: 1 << 60
        )
        model.__dict__.pop("unlearn_held", None)
        times[how] = []
        for alpha in ALPHAS[: 3 if how == "files" else None]:
            times[how].append(seconds(lambda alpha=alpha: mixing.mix_into(model, o, u, alpha), 1))
            if alpha in (0.25, 0.7109375):
                got = {n: t.cpu().clone() for n, t in model.state_dict().items()}
                if how == "files":
                    expected[alpha] = got
                else:
                    other = sum(int((got[n] != t).sum()) for n, t in expected.pop(alpha).items())
                    row(
                        f"{size}, {name}: model mixed from held checkpoints against mixed from files, alpha {alpha}",
                        f"{other} of {sum(t.numel() for t in got.values()):,} parameters differ",
                        f"bit for bit: {expect(not other, f'held {name}')}",
                        differ=other,
                    )
                del got
        if how == "held" and model.__dict__.get("unlearn_held", (None, None))[1] is None:
            failed.append(f"holding {size} {name}")
            row(f"{size}, {name}: holding both checkpoints", "**not held**", "no room")
    mixing._room = room
    files, held = statistics.median(times["files"][1:]), statistics.median(times["held"][1:])
    row(
        f"{size}, {name}, two checkpoints of {gigabytes:.1f} GB: a mix in place",
        f"{1000 * held:.1f} ms held in memory; {1000 * files:,.0f} ms from files",
        f"{files / held:,.0f} times; the first, which reads both: {times['held'][0]:.1f} s",
        held_ms=1000 * held,
        files_ms=1000 * files,
        first_seconds=times["held"][0],
        gigabytes=gigabytes,
    )


def rewriting_large(size: str) -> None:
    """The same of a model too large to write in the time: both checkpoints made on the card."""
    model = shaped(size, torch.bfloat16)
    pair = []
    for i in range(2):
        tensors = {n: from_memory(t.detach().clone() + i * 1e-3) for n, t in model.state_dict().items()}
        pair.append(Checkpoint(f"{size}-{i}", Path(), None, Path(), (), tensors))
    model.__dict__["unlearn_held"] = pair, pair
    mixing.mix_into(model, *pair, 0.3)
    times = [seconds(lambda a=a: mixing.mix_into(model, *pair, a), 1) for a in ALPHAS]
    used = torch.cuda.max_memory_allocated(DEVICE) / 2**30 if DEVICE.type == "cuda" else math.nan
    row(
        f"{size} ({count(model):.1f} B), bfloat16: a mix in place, both checkpoints held",
        f"{1000 * statistics.median(times):.1f} ms",
        f"median of {len(times)}; model and both checkpoints: {gib(used)}",
        held_ms=1000 * statistics.median(times),
    )


def main() -> None:
    sizes = ARGS.sizes.split(",")
    card = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else f"CPU ({platform.machine()})"
    data["card"] = card
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, lm-eval {lm_eval.__version__}"
    memory = f", {torch.cuda.mem_get_info(DEVICE)[1] / 2**30:.0f} GiB" if DEVICE.type == "cuda" else ""
    row("machine", card + memory, f"{versions}, python {platform.python_version()}")
    row("float32 products", torch.get_float32_matmul_precision(), "highest: no TF32")
    first = sizes[0]
    part("token scores of the demo", scores_of_demo)
    part("bits of a mix", lerp_bits)
    part("texts of the demo", texts_of_demo)
    part("a model on two devices", two_devices)
    part(f"{first}: teacher forcing in bfloat16", lambda: teacher_forcing(first, torch.bfloat16))
    part(f"{first}: decoding", lambda: text_speed(first))
    part(f"{first}: decoding of loops", lambda: text_speed(first, loops=True))
    part(f"{first}: mixing in place, bfloat16", lambda: rewriting(first, torch.bfloat16))
    part(f"{first}: texts", lambda: texts_of_shape(first))
    for size in sizes[1:]:
        part(f"{size}: teacher forcing in bfloat16", lambda s=size: teacher_forcing(s, torch.bfloat16))
        part(f"{size}: decoding", lambda s=size: text_speed(s))
        part(f"{size}: mixing in place", lambda s=size: rewriting_large(s))
    part(f"{first}: teacher forcing in float32", lambda: teacher_forcing(first, torch.float32))
    part(f"{first}: mixing in place, float32", lambda: rewriting(first, torch.float32))
    row("time", f"{time.perf_counter() - START:.0f} s", "all of the above")
    row("not done or not right", "; ".join(failed) or "nothing", "")
    save()
    print("\n" + table())
    sys.exit(bool(failed))


if __name__ == "__main__":
    START = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default="1b,8b", help=f"of {', '.join(SHAPES)}; the first gets every part")
    parser.add_argument("--seconds", type=float, default=400, help="no part begins after so many")
    ARGS = parser.parse_args()
    DEVICE, LIMIT = torch.device(ARGS.device), ARGS.seconds
    main()
