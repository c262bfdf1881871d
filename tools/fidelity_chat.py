"""Our values beside OpenUnlearning's under a chat template: python -m tools.fidelity_chat SHARED FAMILY [ROWS]

FAMILY is the SmolLM2 family (tools.smollm2 builds it), ROWS how many rows of every split, at most and by default 20.
Prints the table in docs/smollm2.md. What we differ in is explained only if their way, applied by us, gives their value.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from tools.fidelity import ATTACKS, UNEXPLAINED, Row, aggregate, gap, judge, number, per_document
from unlearn_metrics.backends import encoding, hf
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.documents import Document, TokenScores
from unlearn_metrics.metrics import METRICS

REFERENCE = "open_unlearning_smollm2_original_chat_20.json"
MASKED = "their labels and mask"
ROLES = ("answer", "paraphrased_question", "true_answer", "wrong_answers")


def as_they_do(lm: HFLM, documents: Sequence[Document]) -> list[Document]:
    """With token scores of what they label: the answer, end of turn, newline, and end of turn once more, which is the
    padding too. Attention is masked wherever a token is that of padding, so no turn of the prompt has an end."""
    ids = [[*lm.tok_encode(d["prompt"])] for d in documents]
    width, pad = max(map(len, ids)), lm.tokenizer.pad_token_id
    rows = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    said = lm.model.generate(rows, attention_mask=(rows != pad).long(), do_sample=False, max_new_tokens=200)
    found = []
    for document, text in zip(documents, said[:, width:], strict=True):
        texts = iter([text for text in document["answers"] if isinstance(text, str)])
        labelled = document | {"generation": lm.tokenizer.decode(text, skip_special_tokens=True)}
        for role in (role for role in ROLES if role in document):
            if role == "paraphrased_question":  # another prompt; no value of theirs needs it
                next(texts)
            elif isinstance(document[role], list):
                labelled[role] = [masked_scores(lm, document["prompt"], next(texts)) for _ in document[role]]
            else:
                labelled[role] = masked_scores(lm, document["prompt"], next(texts))
        found.append(labelled)
    return found


def masked_scores(lm: HFLM, prompt: str, text: str) -> TokenScores:
    pair, pad = encoding.encode(lm, prompt, text, rendered=True), lm.tokenizer.pad_token_id
    target = torch.tensor([*pair.answer, *lm.tok_encode("<|im_end|>\n", add_special_tokens=False), pad])
    ids = torch.cat([torch.tensor(pair.context), target])[None]
    with torch.no_grad():
        logits = lm.model(input_ids=ids, attention_mask=(ids != pad).long()).logits[0, len(pair.context) - 1 : -1]
    argmax, *rest = (values.numpy() for values in hf.reduce(logits, target))
    return TokenScores(target.numpy().astype(np.int32), argmax.astype(np.int32), *rest)


def their_attack(name: str, document: Document) -> float:
    if name == "zlib":  # what they label, as text: the newline of the tail instead of the space before an answer
        loss: float = document["answer"].loss
        return loss / len(zlib.compress(f"{document['reference']}\n".encode()))
    return METRICS[name](document)


def rows(shared: Path, family: Path, most: int) -> list[Row]:
    logs = json.loads((shared / "reference" / REFERENCE).read_text())["logs"]
    lm = HFLM(pretrained=str(family / "original"), dtype="float32", device="cpu")
    tasks = suites.load("tofu_forget05_privacy", shared / "data" / "tofu")
    seen = suites.evaluate(lm, tasks, limit=most, apply_chat_template=True)
    labelled = {split: as_they_do(lm, documents) for split, documents in seen.items()}

    def row(name: str, ours: Any, emulated: Any, theirs: Any, sums: Sequence[float]) -> Row:
        verdict = judge(*sums, ours, emulated, theirs, MASKED)
        return Row("", name, "OpenUnlearning", sums[0], sums[2], float(gap(ours, theirs).max()), verdict)

    found = []
    for name, (split, mine, emulate, field) in per_document().items():
        documents, by_index = seen[split], logs[name]["value_by_index"]
        ours, emulated = np.array([mine(d) for d in documents]), np.array([emulate(d) for d in labelled[split]])
        theirs = np.array([np.mean(by_index[str(d["id"])][field]) for d in documents])
        mean = aggregate(name, ours, theirs, documents)
        sums = (mean[0], aggregate(name, ours, emulated, documents)[1], mean[1])
        found.append(row(name, ours, emulated, theirs, sums))
    for attack in ATTACKS:
        for split in ("forget", "holdout"):
            by_index = logs[f"mia_{attack}"][split]["value_by_index"]
            ours = np.array([METRICS[attack](d) for d in seen[split]])
            emulated = np.array([their_attack(attack, d) for d in labelled[split]])
            theirs = np.array([by_index[str(d["id"])]["score"] for d in seen[split]])
            found.append(
                row(f"mia_{attack}, {split}", ours, emulated, theirs, [v.mean() for v in (ours, emulated, theirs)])
            )
    return found


def render(found: Sequence[Row], most: int) -> str:
    lines = [
        f"Means over the first {most} rows of every split, and the largest difference of a document:\n",
        "| metric | ours | theirs | largest difference | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r.metric} | {number(r.ours)} | {number(r.theirs)} | {number(r.difference)} | {r.verdict} |" for r in found
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    asked = int(sys.argv[3]) if len(sys.argv) == 4 else 20
    compared = rows(Path(sys.argv[1]), Path(sys.argv[2]), asked)
    sys.stdout.write(render(compared, asked))
    if any(r.verdict == UNEXPLAINED for r in compared):
        sys.exit("a difference is not explained")
