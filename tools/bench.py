"""Ratios of our speed and memory to what peers do: `make bench`, by hand, on an idle machine.

    python -m tools.bench SHARED [a1 a2 b1 b2 b3 c d] [--repeats 5] [--documents 16] > docs/performance.md

Everything compared runs in one process, alternating; a figure is the median over the repeats, a ratio the median of
the paired ratios. SHARED holds checkpoints/ and data/tofu/. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from unlearn_metrics.backends import batching, decoding, encoding, hf
from unlearn_metrics.benchmarks.data import rows as read
from unlearn_metrics.checkpoints.files import open_checkpoint
from unlearn_metrics.control.mixing import mix_into
from unlearn_metrics.metrics.memorization import extraction_strength

Pairs = list[encoding.Pair]
Data = dict[str, list[dict[str, Any]]]
FILES = {
    "forget": "forget05_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def alternate(repeats: int, **jobs: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each job, run in turn (A B A B ...)."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
            note(f"  {name}: {times[name][-1]:.2f} s")
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


# --- data and models


def load(shared: Path, documents: int | None = None) -> Data:
    folder = shared / "data" / "tofu"
    return {s: [row for _, row in read(folder / f"{f}.json")][:documents] for s, f in FILES.items()}


def prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def answers(split: str, doc: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """metric input -> (prompt, answer) pairs of one document, as peers batch them: one pass over each."""
    q = prompt(doc["question"])
    sets = {"answer": [(q, doc["answer"])], "wrong": [(q, w) for w in doc["perturbed_answer"]]}
    if split in ("forget", "retain"):
        sets["paraphrased_answer"] = [(q, doc["paraphrased_answer"])]
    if split == "forget":
        sets["paraphrased_question"] = [(prompt(doc["paraphrased_question"]), doc["answer"])]
    return sets


def suite(lm: HFLM, data: Data) -> Pairs:
    texts = [p for s, docs in data.items() for d in docs for pairs in answers(s, d).values() for p in pairs]
    return list(dict.fromkeys(encoding.encode(lm, q, f" {a}") for q, a in texts))


def big_llama(shared: Path, vocabulary: int = 131072, hidden: int = 768, layers: int = 12) -> HFLM:
    """A randomly initialised Llama, by default of about 185 M parameters with a 128 k vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(shared / "checkpoints" / "original")
    return HFLM(pretrained=LlamaForCausalLM(config), tokenizer=tokenizer, batch_size=1, max_length=512)


def small(shared: Path, name: str) -> HFLM:
    return HFLM(pretrained=str(shared / "checkpoints" / name), dtype="float32", device="cpu")


# --- (a) teacher forcing against a bare forward


def bare_forward(lm: HFLM, pairs: Pairs) -> None:
    """Hugging Face's forward over the pairs, sorted by length, right-padded; no metric at all."""
    rows = [p.context + p.answer for p in pairs]
    with torch.no_grad():
        for batch in batching.batches(rows, len, batching.budget(lm)):
            ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
            for r, row in enumerate(batch):
                ids[r, : len(row)] = torch.tensor(row)
            lm.model(input_ids=ids.to(lm.device), use_cache=False)


def bench_a(label: str, lm: HFLM, data: Data, repeats: int) -> list[str]:
    pairs = suite(lm, data)
    t = alternate(
        repeats,
        bare=lambda: bare_forward(lm, pairs),
        whole=lambda: hf.token_scores(lm, pairs, share_prompts=False),
        shared=lambda: hf.token_scores(lm, pairs),
    )
    hf.work(lm).clear()
    hf.token_scores(lm, pairs)
    w = hf.work(lm)
    return [
        f"| (a) {label} | {ratio(t['whole'], t['bare']):.2f} | at most 1.10 | without prompt sharing: "
        f"{statistics.median(t['whole']):.2f} s against {statistics.median(t['bare']):.2f} s |",
        f"| (a) {label} | {ratio(t['shared'], t['bare']):.2f} | at most 0.85 | with prompt sharing: "
        f"{statistics.median(t['shared']):.2f} s; {len(pairs):,} pairs, {w['positions']:,} positions of which "
        f"{w['padding'] / w['positions']:.1%} padding, {w['scored']:,} scored |",
    ]


# --- (b) the suite against one pass per metric and model.generate


def peer_suite(lm: HFLM, data: Data, batch_size: int = 32) -> int:
    """What peers do: for every metric its own pass in document order, full logits, then `generate` for every text.

    Passes: probability, extraction strength and exact memorization each over the answers; probabilities of
    paraphrased and wrong answers; the three again on paraphrased questions. Returns the positions forwarded.
    """
    positions = 0
    texts: list[str] = []
    for split, docs in data.items():
        sets = [answers(split, d) for d in docs]
        repeat = {"answer": 3 if split == "forget" else 1, "paraphrased_question": 3}
        for name in sets[0]:
            pairs = [p for s in sets for p in s[name]]
            encoded = [encoding.encode(lm, q, f" {a}") for q, a in pairs]
            for _ in range(repeat.get(name, 1)):
                for i in range(0, len(encoded), batch_size):
                    positions += peer_pass(lm, encoded[i : i + batch_size])
        texts += [prompt(d["question"]) for d in docs]
    tokenizer = lm.tokenizer
    tokenizer.padding_side = "left"
    for i in range(0, len(texts), batch_size):
        batch = tokenizer(texts[i : i + batch_size], return_tensors="pt", padding=True).to(lm.device)
        out = lm.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=200,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return positions


def peer_pass(lm: HFLM, batch: Pairs) -> int:
    rows = [[*p.context, *p.answer, lm.eot_token_id] for p in batch]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for r, (row, p) in enumerate(zip(rows, batch, strict=True)):
        ids[r, : len(row)] = torch.tensor(row)
        labels[r, len(p.context) : len(row)] = ids[r, len(p.context) : len(row)]
    ids, labels = ids.to(lm.device), labels.to(lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, :-1]
        torch.nn.functional.cross_entropy(
            logits.transpose(-1, -2).float(), labels[:, 1:], ignore_index=-100, reduction="none"
        ).sum(-1).tolist()
    return ids.numel()


def our_suite(lm: HFLM, data: Data) -> list[str]:
    """Token scores and texts of the suite, tokenization included, as `score` gets them."""
    pairs, requests, first = [], [], []
    for split, docs in data.items():
        for doc in docs:
            first.append(len(pairs))
            pairs += [encoding.encode(lm, q, f" {a}") for s in answers(split, doc).values() for q, a in s]
            requests.append((prompt(doc["question"]), {"until": [], "max_gen_toks": 200}))
    scores = hf.token_scores(lm, pairs)
    return decoding.greedy(lm, requests, [scores[i] for i in first])


def limit_suite(lm: HFLM, pairs: Pairs, steps: list[tuple[int, int]]) -> None:
    """The arithmetic limit: one bare forward over as many positions as distinct prompts and answers have, and bare
    batched decoding of only the tokens that the reference did not settle: steps = (prompt and known, tokens to come).
    """
    prompts = list(dict.fromkeys(p.context for p in pairs))
    with torch.no_grad():
        for rows in (prompts, [p.answer for p in pairs]):
            for batch in batching.batches(rows, len, batching.budget(lm)):
                ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
                lm.model(input_ids=ids, use_cache=False)
        order = sorted(steps, key=lambda s: -s[1])
        rows_at_once = decoding.decode_rows(lm)
        for i in range(0, len(order), rows_at_once):
            batch = order[i : i + rows_at_once]
            cache = DynamicCache(config=lm.model.config)
            ids = torch.zeros(len(batch), max(s[0] for s in batch), dtype=torch.long)
            for step in range(batch[0][1]):
                live = sum(s[1] > step for s in batch)
                if live < len(ids):
                    ids = ids[:live]
                    cache.batch_select_indices(torch.arange(live))
                lm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = ids[:, :1]


def unsettled(lm: HFLM, data: Data) -> list[tuple[int, int]]:
    """(tokens known, tokens to generate) for every text that is not the reference itself."""
    lines = []
    keep = decoding._decode

    def spy(lm: HFLM, batch: list[Any], ends: set[int], bar: Any) -> None:
        before = [len(line.prompt) + len(line.text) for line in batch]
        had = [len(line.text) for line in batch]
        keep(lm, list(batch), ends, bar)
        for line, b, h in zip(batch, before, had, strict=True):
            lines.append((b, len(line.text) - h + (len(line.text) < line.limit)))

    decoding._decode = spy
    try:
        our_suite(lm, data)
    finally:
        decoding._decode = keep
    return lines


def bare_passes(lm: HFLM, positions: int) -> None:
    """Bare forward passes over as many positions, in batches of ours: no draft and no score costs less."""
    with torch.no_grad():
        for start in range(0, positions, batching.budget(lm)):
            ids = torch.zeros(16, max(1, min(batching.budget(lm), positions - start) // 16), dtype=torch.long)
            lm.model(input_ids=ids, use_cache=False)


def bench_b(label: str, lm: HFLM, data: Data, repeats: int) -> list[str]:
    pairs, steps = suite(lm, data), unsettled(lm, data)
    forwarded = []
    hf.work(lm).clear()
    our_suite(lm, data)
    positions = hf.work(lm)["positions"] - hf.work(lm)["padding"]
    t = alternate(
        repeats,
        ours=lambda: our_suite(lm, data),
        limit=lambda: limit_suite(lm, pairs, steps),
        bare=lambda: bare_passes(lm, positions),
        peer=lambda: forwarded.append(peer_suite(lm, data)),
    )
    ours, peers, limit = (statistics.median(t[k]) for k in ("ours", "peer", "limit"))
    return [
        f"| (b) {label} | {ratio(t['peer'], t['ours']):.1f} | at least 3 | one pass per metric ({forwarded[0]:,} "
        f"positions) and `generate`: {peers:.1f} s; ours: {ours:.1f} s |",
        f"| (b) {label} | {ratio(t['ours'], t['limit']):.2f} | at most 1.25 | arithmetic limit: {limit:.1f} s "
        f"({sum(s[1] for s in steps):,} tokens to generate) |",
        f"| (b) {label} | {ratio(t['peer'], t['bare']):.2f} | | bare passes over our {positions:,} positions: "
        f"{statistics.median(t['bare']):.1f} s |",
    ]


# --- (c) calibration and report against bisection over generation


def peer_strength(lm: HFLM, docs: list[tuple[str, str]]) -> float:
    """Extraction strength as the authors find it: bisection over the revealed prefix, all documents in a batch, greedy
    generation at every step (200 tokens in all), the rest compared token by token."""
    pairs = [encoding.encode(lm, q, a) for q, a in docs]
    low, high = [0] * len(pairs), [len(p.answer) for p in pairs]
    while any(lo < hi for lo, hi in zip(low, high, strict=True)):
        open_ = [i for i in range(len(pairs)) if low[i] < high[i]]
        middle = {i: (low[i] + high[i]) // 2 for i in open_}
        rows = [[*pairs[i].context, *pairs[i].answer[: middle[i]]] for i in open_]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for r, row in enumerate(rows):
            ids[r, width - len(row) :] = torch.tensor(row)
            mask[r, width - len(row) :] = 1
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_length=max(200, width + 1),
            do_sample=False,
            pad_token_id=lm.tokenizer.pad_token_id,
        )
        for r, i in enumerate(open_):
            rest = list(pairs[i].answer[middle[i] :])
            if out[r, width : width + len(rest)].tolist() == rest:
                high[i] = middle[i]
            else:
                low[i] = middle[i] + 1
    return sum(1 - h / len(p.answer) for h, p in zip(high, pairs, strict=True)) / len(pairs)


def our_strength(lm: HFLM, docs: list[tuple[str, str]]) -> float:
    pairs = [encoding.encode(lm, q, a) for q, a in docs]
    return sum(map(extraction_strength, hf.token_scores(lm, pairs))) / len(pairs)


def protocol(
    shared: Path, lm: HFLM, data: Data, strength: Callable[[HFLM, list[tuple[str, str]]], float]
) -> list[float]:
    """Calibrate to 95 % of retention, then report exact and paraphrased strength on both sides, before and after."""
    o, u = (open_checkpoint(str(shared / "checkpoints" / n)) for n in ("original", "ga/checkpoint-39"))

    def docs(split: str, field: str) -> list[tuple[str, str]]:
        return [(prompt(d[field]), f" {d['answer']}") for d in data[split]]

    def at(alpha: float, split: str, field: str) -> float:
        mix_into(lm.model, o, u, alpha)
        return strength(lm, docs(split, field))

    target = 0.95 * at(0, "retain", "question")
    alpha, high, tried = 0.0, 1.0, []
    for step in range(8, 0, -1):  # the paper's protocol: a scan from the top, then bisection
        tried.append(at(step / 8, "retain", "question"))
        if tried[-1] >= target:
            alpha = step / 8
            break
        high = step / 8
    while alpha < 1 and high - alpha > 1 / 128:
        tried.append(at(middle := (alpha + high) / 2, "retain", "question"))
        alpha, high = (middle, high) if tried[-1] >= target else (alpha, middle)
    report = [
        at(a, s, f) for a in (1, alpha) for s in ("forget", "retain") for f in ("question", "paraphrased_question")
    ]
    return [target, alpha, *tried, *report]


def bench_c(shared: Path, repeats: int, documents: int = 10) -> list[str]:
    lm = small(shared, "original")
    data = {s: d for s, d in load(shared, documents).items() if s in ("forget", "retain")}
    results: dict[str, list[float]] = {}
    t = alternate(
        repeats,
        ours=lambda: results.update(ours=protocol(shared, lm, data, our_strength)),
        authors=lambda: results.update(authors=protocol(shared, lm, data, peer_strength)),
    )
    same = max(abs(a - b) for a, b in zip(results["ours"], results["authors"], strict=True))
    return [
        f"| (c) calibration and report, {documents} documents a split | {ratio(t['authors'], t['ours']):.0f} | at least 50 "
        f"| bisection over generation: {statistics.median(t['authors']):.1f} s; ours: {statistics.median(t['ours']):.2f} "
        f"s; largest difference between the two results {same:.1e} |"
    ]


# --- (d) peak memory against vocabulary size

CHILD = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
from tools import bench
from unlearn_metrics.backends import batching, decoding, encoding, hf
lm = bench.big_llama(Path({shared!r}), {vocabulary}, hidden=128, layers=2)
pairs = [encoding.Pair(tuple(range(3, 20)), tuple(range(20 + i % 7, 60 + i % 7))) for i in range(600)]
pairs = [encoding.Pair((i % 4000 + 3, *p.context[1:]), p.answer) for i, p in enumerate(pairs)]
hf.token_scores(lm, pairs[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hf.token_scores(lm, pairs)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before * 1024, after * 1024]))
"""


def bench_d(shared: Path, repeats: int) -> list[str]:
    """Growth of the peak resident set while scoring 600 pairs (a fresh process each), less one chunk of logits."""
    growth = {}
    for vocabulary in (4096, 16384, 65536, 131072, 262144):
        code = CHILD.format(here=str(Path(__file__).parents[1]), shared=str(shared), vocabulary=vocabulary)
        peaks = []
        for _ in range(max(1, repeats // 2)):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
        chunk = max(hf.CHUNK_POSITIONS, hf.CHUNK_LOGITS // vocabulary) * vocabulary * 4
        peak = statistics.median(after for _, after in peaks)
        model = vocabulary * 128 * 4
        growth[vocabulary] = (peak - chunk - model) / 2**20
        note(f"  {vocabulary}: peak {peak / 2**20:.0f} MiB, chunk {chunk / 2**20:.0f}, embeddings {model / 2**20:.0f}")
    spread = max(growth.values()) / min(growth.values()) - 1
    figures = ", ".join(f"{v // 1024} k: {g:.0f} MiB" for v, g in growth.items())
    return [
        f"| (d) peak memory, vocabulary 4 k to 256 k | {spread:+.0%} | within 10 % | peak less one chunk of logits and the "
        f"embedding matrix: {figures} |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("parts", nargs="*", help="a1 a2 b1 b2 b3 c d; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, help="of each split in b1 and b2; default: all")
    args = parser.parse_args()
    s, n = args.shared, args.repeats
    jobs: dict[str, Callable[[], list[str]]] = {
        "a1": lambda: bench_a("4 M, 4 k vocabulary, whole suite", small(s, "original"), load(s), n),
        "a2": lambda: bench_a("185 M, 128 k vocabulary, 3 documents a split", big_llama(s), load(s, 3), n),
        "b1": lambda: bench_b("4 M, knows the answers", small(s, "original"), load(s, args.documents), n),
        "b2": lambda: bench_b("4 M, collapsed", small(s, "ga/checkpoint-78"), load(s, args.documents), n),
        "b3": lambda: bench_b("185 M, random, 2 documents a split", big_llama(s), load(s, 2), n),
        "c": lambda: bench_c(s, n),
        "d": lambda: bench_d(s, n),
    }
    lines = []
    for part in args.parts or jobs:
        note(f"({part})")
        found = jobs[part]()
        note("\n".join(found))  # what a run that is cut short has shown so far
        lines += found
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("# Performance\n")
    print("Made by `make bench` on an idle machine: everything compared runs in one process, alternating; medians of")
    print(f"{args.repeats} runs. {platform.machine()}, {torch.get_num_threads()} threads, float32,")
    print(f"torch {torch.__version__}, commit {commit}, peak memory of the benchmark {memory:.1f} GiB.\n")
    print("| what | ratio | target | measured |\n|---|---:|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
