"""Our values beside those of other implementations, from a real run: writes docs/fidelity.md.

    python -m tools.fidelity SHARED > docs/fidelity.md      (or: make fidelity SHARED=...)

SHARED holds checkpoints/, data/tofu/ and reference/ (what OpenUnlearning's evaluator and the paper authors' code gave).
Every value is compared by aggregate and by document. Where we differ, their formula is applied to our token scores;
only if that gives their value is the difference explained, else the verdict is UNEXPLAINED.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from scipy.stats import hmean, ks_2samp

from unlearn_metrics.backends import encoding, hf
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.benchmarks.data import rows as read
from unlearn_metrics.checkpoints.files import open_checkpoint
from unlearn_metrics.control.mixing import mix_into
from unlearn_metrics.documents import Document, TokenScores
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.metrics.memorization import extraction_strength, log_truth_ratio, probability
from unlearn_metrics.record import Score
from unlearn_metrics.scores.composites import compose

CHECKPOINTS = {
    "original": "original",
    "retain": "retain",
    "ga39": "ga/checkpoint-39",
    "ga78": "ga/checkpoint-78",
}
AGGREGATE, DOCUMENT = 1e-4, 1e-3
EPSILON = 1e-10
SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")

EQUAL = "equal"
FLOOR = "they score a total miss 1/n, not 0"
DRAGGED = "their epsilon moves ratios towards 0"
PREFIX = "they count from inside the prompt"
EMPTY = "they count an early stop as a match"
HALF = "they use 0.5 where the reference is missing"
UNDEFINED = "they divide by epsilon where undefined"
UNEXPLAINED = "UNEXPLAINED"


@dataclass
class Row:
    """One value of one checkpoint. Per-document differences are relative above 1 (losses and ratios have no bound)."""

    checkpoint: str
    metric: str
    peer: str
    ours: float | None
    theirs: float
    difference: float | None
    verdict: str
    example: str = ""


# --- OpenUnlearning


def their_extraction_strength(scores: TokenScores) -> float:
    """The loop over k ends at n - 1 whether or not the rest matches."""
    return max(extraction_strength(scores), 1 / len(scores))


def their_ratio(document: Document) -> float:
    """wrong / (true + 1e-10), each exp of minus a mean loss."""
    wrong = np.exp(-np.mean([w.loss for w in document["wrong_answers"]]))
    return float(wrong / (np.exp(-document["true_answer"].loss) + EPSILON))


def their_normalised(document: Document) -> float:
    p = probability(document["answer"])
    return p / (p + sum(probability(w) for w in document["wrong_answers"]) + EPSILON)


def true_min(ratios: np.ndarray) -> np.ndarray:
    return np.minimum(ratios, 1 / (ratios + EPSILON))


Values = Callable[[Document], float]


def per_document() -> dict[str, tuple[str, Values, Values, str]]:
    """reference key -> (split, our value of a document, theirs by their formula, the reference's field)."""
    m = METRICS
    table: dict[str, tuple[str, Values, Values, str]] = {
        "extraction_strength": (
            "forget",
            m["extraction_strength"],
            lambda d: their_extraction_strength(d["answer"]),
            "score",
        ),
        "exact_memorization": ("forget", m["exact_memorization"], m["exact_memorization"], "score"),
    }
    for short, split in SPLITS.items():
        table[f"{short}_Q_A_Prob"] = (split, m["probability"], m["probability"], "prob")
        table[f"{short}_Q_A_PERT_Prob"] = (split, m["probability_wrong"], m["probability_wrong"], "prob")
        table[f"{short}_Q_A_ROUGE"] = (split, m["rouge"], m["rouge"], "rougeL_recall")
        name = "forget_truth_ratio" if short == "forget" else f"{short}_Truth_Ratio"
        table[name] = (split, lambda d: float(np.exp(log_ratio(d))), their_ratio, "score")
        if short in ("forget", "retain"):
            para = m["probability_paraphrased_answer"]
            table[f"{short}_Q_A_PARA_Prob"] = (split, para, para, "prob")
        else:
            table[f"{short}_Q_A_Prob_normalised"] = (split, m["probability_normalised"], their_normalised, "prob")
    return table


def log_ratio(document: Document) -> float:
    return log_truth_ratio(document["true_answer"], document["wrong_answers"])


def aggregate(name: str, ours: np.ndarray, theirs: np.ndarray, documents: list[Document]) -> tuple[float, float]:
    """(ours, theirs by their formula)."""
    if name == "forget_truth_ratio":
        return float(np.mean([METRICS["truth_ratio"](d) for d in documents])), float(true_min(theirs).mean())
    if name.endswith("Truth_Ratio"):
        return float(np.mean([METRICS["truth_ratio"](d) for d in documents])), float(np.maximum(0, 1 - theirs).mean())
    return float(ours.mean()), float(theirs.mean())


def judge(
    ours: float,
    emulated: float,
    theirs: float,
    ours_doc: np.ndarray,
    emulated_doc: np.ndarray,
    ref_doc: np.ndarray,
    why: str,
) -> str:
    """equal; or why we differ, if their formula on our scores gives their values; or UNEXPLAINED."""

    def agree(value: float, documents: np.ndarray) -> bool:
        return abs(value - theirs) <= AGGREGATE * max(1, abs(theirs)) and bool(
            (gap(documents, ref_doc) <= DOCUMENT).all()
        )

    if agree(ours, ours_doc):
        return EQUAL
    return why if why and agree(emulated, emulated_doc) else UNEXPLAINED


def gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b) / np.maximum(1, np.abs(b))


def open_unlearning(name: str, seen: dict[str, Any], retain: dict[str, Any], shared: Path) -> list[Row]:
    """All rows of one checkpoint. seen / retain: what `observe` gives for it and for the retain-only model."""
    reference = json.loads((shared / "reference" / f"open_unlearning_{name}.json").read_text())
    summary, logs, rows = reference["summary"], reference["logs"], []
    for key, (split, mine, emulate, field) in per_document().items():
        documents = seen[split]
        by_index = logs[key]["value_by_index"]
        ref = np.array([np.mean(by_index[str(d["id"])][field]) for d in documents])
        ours, theirs = (np.array([f(d) for d in documents]) for f in (mine, emulate))
        mean, emulated = aggregate(key, ours, theirs, documents)
        why = FLOOR if key == "extraction_strength" else DRAGGED if "atio" in key or "normalised" in key else ""
        verdict = judge(mean, emulated, summary[key], ours, theirs, ref, why)
        gaps = gap(ours, ref)
        worst = int(gaps.argmax())
        example = ""
        if verdict not in (EQUAL, UNEXPLAINED):
            example = f"{split} document {documents[worst]['id']}: ours {ours[worst]:.4g}, theirs {ref[worst]:.4g}"
        rows.append(Row(name, key, "OpenUnlearning", mean, summary[key], float(gaps.max()), verdict, example))
    # a copy of the retain-only model is compared with it too, as the peer does
    ours_of = compose(seen, dict(retain))
    rows += attacks(name, seen, compose(retain), ours_of, summary, logs)
    rows += composites(name, seen, retain, ours_of, summary)
    return rows


def attacks(
    name: str, seen: dict[str, Any], retain: dict[str, Score], found: dict[str, Score], summary: Any, logs: Any
) -> list[Row]:
    rows = []
    for attack in ATTACKS:
        ours = found[f"auc_{attack}"].value
        gaps = []
        for split in ("forget", "holdout"):
            by_index = logs[f"mia_{attack}"][split]["value_by_index"]
            ref = np.array([by_index[str(i)]["score"] for i in range(len(seen[split]))])
            gaps.append(gap(np.array([METRICS[attack](d) for d in seen[split]]), ref).max())
        theirs = summary[f"mia_{attack}"]
        equal = abs(ours - theirs) <= AGGREGATE and max(gaps) <= DOCUMENT
        verdict = EQUAL if equal else UNEXPLAINED
        rows.append(Row(name, f"mia_{attack}", "OpenUnlearning", ours, theirs, float(max(gaps)), verdict))
    if summary["privleak"] is None:
        return rows
    mine, base = (model["auc_min_k"].value for model in (found, retain))
    emulated = ((1 - mine) - (1 - base)) / (1 - base + EPSILON) * 100
    ours = found["privleak"].value
    theirs = summary["privleak"]
    # an AUC counts pairs: 1 of 40,000 is worth 0.005 here
    close = ours is not None and abs(ours - theirs) <= AGGREGATE * max(1, abs(theirs))
    verdict = EQUAL if close else UNEXPLAINED
    if verdict != EQUAL:
        half = ((1 - mine) - 0.5) / (0.5 + EPSILON) * 100
        verdict = next((v for e, v in ((emulated, UNDEFINED), (half, HALF)) if abs(e - theirs) <= AGGREGATE), verdict)
    return [*rows, Row(name, "privleak", "OpenUnlearning", ours, theirs, None, verdict)]


def composites(
    name: str, seen: dict[str, Any], retain: dict[str, Any], found: dict[str, Score], summary: Any
) -> list[Row]:
    emulated = ks_2samp(*([their_ratio(d) for d in model["forget"]] for model in (seen, retain))).pvalue
    rows = []
    for key, emulation in (("forget_quality", emulated), ("model_utility", their_utility(seen))):
        value, ref = found[key].value, summary[key]
        if ref is None:  # the retain-only model is its own reference: the peer gives none
            continue
        close = [abs(v - ref) <= AGGREGATE * abs(ref) + 1e-12 for v in (value, emulation)]
        verdict = EQUAL if close[0] or abs(value - ref) <= 1e-6 else DRAGGED if close[1] else UNEXPLAINED
        rows.append(Row(name, key, "OpenUnlearning", value, ref, None, verdict))
    return rows


def their_utility(seen: dict[str, Any]) -> float:
    parts = []
    for split in ("retain", "real_authors", "world_facts"):
        documents = seen[split]
        p = METRICS["probability"] if split == "retain" else their_normalised
        truth = [max(0, 1 - their_ratio(d)) for d in documents]
        parts += [np.mean([p(d) for d in documents]), np.mean([METRICS["rouge"](d) for d in documents]), np.mean(truth)]
    return float(hmean(parts))


# --- the paper's authors

PROMPTS = {"plain": ("Question: {}", "\nAnswer: {}"), "theirs": ("### Question: {}", "\n ### Answer: {}")}


def authors(lm: HFLM, shared: Path) -> list[Row]:
    """Extraction strength with everything after the question as the answer, in three models."""
    reference = json.loads((shared / "reference" / "authors_es.json").read_text())
    folder = shared / "checkpoints"
    o, u = open_checkpoint(str(folder / "original")), open_checkpoint(str(folder / CHECKPOINTS["ga39"]))
    data = {
        split: [row for _, row in read(shared / "data" / "tofu" / f"{file}.json")][:20]
        for split, file in (("forget", "forget05_perturbed"), ("retain", "retain_perturbed"))
    }
    rows = []
    for kind, (question, answer) in PROMPTS.items():
        for result in reference[kind]["results"]:
            mix_into(lm.model, o, u, {"original": 0.0, "unlearned": 1.0}.get(result["model"], 0.5))
            field = {"exact": "question", "perturb": "paraphrased_question"}[result["ps_type"]]
            documents = data[result["split"]]
            pairs = [encoding.encode(lm, question.format(d[field]), answer.format(d["answer"])) for d in documents]
            scores = hf.token_scores(lm, pairs)
            ours = np.array([extraction_strength(s) for s in scores])
            # their "answer" starts as many tokens into prompt and answer as the bare question has
            start = [len(lm.tok_encode(d[field])) for d in documents]
            whole = [(*p.context, *p.answer) for p in pairs]
            theirs = [encoding.Pair(ids[:q], ids[q:]) for ids, q in zip(whole, start, strict=True)]
            emulated = np.array([extraction_strength(s) for s in hf.token_scores(lm, theirs)])
            ref = np.array([item["es"] for item in result["per_item"]])
            off = np.flatnonzero(gap(emulated, ref) > 1e-6)
            verdict = EQUAL if (gap(ours, ref) <= 1e-6).all() else PREFIX
            if len(off):
                # an early stop that counts as a match can only raise the value
                stopped = len(off) <= result["short_match"] and bool((ref[off] > emulated[off]).all())
                verdict = f"{PREFIX}; {EMPTY} ({len(off)})" if stopped else UNEXPLAINED
            worst = int(gap(ours, ref).argmax())
            name = f"ES {result['ps_type']} {result['split']}, prompt {kind}"
            example = f"document {worst}: ours {ours[worst]:.4f}, theirs {ref[worst]:.4f}" if verdict != EQUAL else ""
            rows.append(
                Row(
                    str(result["model"]),
                    name,
                    "authors",
                    float(ours.mean()),
                    result["es"],
                    float(gap(ours, ref).max()),
                    verdict,
                    example,
                )
            )
    return rows


# --- the run


def observe(lm: HFLM, shared: Path) -> dict[str, Any]:
    return suites.evaluate(lm, suites.load("tofu_forget05_privacy", shared / "data" / "tofu"))


def measure(shared: Path) -> list[Row]:
    lms = {
        name: HFLM(pretrained=str(shared / "checkpoints" / p), dtype="float32", device="cpu")
        for name, p in CHECKPOINTS.items()
    }
    seen = {name: observe(lm, shared) for name, lm in lms.items()}
    rows = [row for name in CHECKPOINTS for row in open_unlearning(name, seen[name], seen["retain"], shared)]
    return rows + authors(lms["original"], shared)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}" if value and abs(value) < 1e-3 else f"{value:.6g}"


HEADER = """# Agreement with other implementations

    make fidelity SHARED=FOLDER

This page comes from a real run (float32, CPU). A test repeats the run and fails when a verdict changes. Reference values come from
other implementations' own code on the same checkpoints and data: OpenUnlearning's evaluator, unmodified, and the paper
authors' extraction-strength protocol (first 20 rows). Under a chat template, see [the SmolLM2 family](smollm2.md).

"Equal" means: the aggregate within 1e-4 and every document within 1e-3 (relative above 1, where values have no bound);
extraction_strength and exact_memorization are fractions and agree exactly. Any other verdict names the cause. It is given
only if their formula, applied to our token scores, gives their values.

## Where their formula differs, and what we do

| verdict | their formula | ours |
|---|---|---|
| they score a total miss 1/n, not 0 | the loop over k = 0 .. n - 1 ends on its last k, so a missed last token gives 1 - (n - 1)/n | 1 - k/n with k = n: 0 |
| their epsilon moves ratios towards 0 | wrong / (true + 1e-10); p / (p + sum + 1e-10): both vanish once probabilities near 1e-10 | exp of a difference of losses; no epsilon |
| they count from inside the prompt | 1 - (shown - q) / (all - q), "all" with the words before the question, q without: the prompt's last tokens are part of what is to be extracted | 1 - k/n over the tokens after the prompt |
| they count an early stop as a match | only the tokens that were generated are compared | decoding must give every token of the rest |
| they use 0.5 where the reference is missing | privleak of the retain-only model itself, against an AUC of 0.5 | 0: it is its own reference |
| they divide by epsilon where undefined | (1 - a_retain + 1e-10) in the denominator of privleak | an error |
"""


def render(rows: list[Row]) -> str:
    text = [HEADER]
    for checkpoint in dict.fromkeys((row.peer, row.checkpoint) for row in rows):
        text += [f"\n## {checkpoint[0]}, checkpoint {checkpoint[1]}\n"]
        text += [
            "| metric | ours | theirs | largest per-document difference | verdict | example |",
            "|---|---:|---:|---:|---|---|",
        ]
        text += [
            f"| {r.metric} | {number(r.ours)} | {number(r.theirs)} | {number(r.difference)} | {r.verdict} | {r.example} |"
            for r in rows
            if (r.peer, r.checkpoint) == checkpoint
        ]
    return "\n".join(text) + "\n"


def verdicts(page: str) -> dict[tuple[str, str], str]:
    """(heading, metric) -> verdict, read back from a rendered page."""
    found, heading = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 8 and cells[1] != "metric" and not cells[1].startswith("-"):
            found[heading, cells[1]] = cells[5]
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.write(render(measure(Path(sys.argv[1]))))
