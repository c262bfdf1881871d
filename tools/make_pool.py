"""Make a pool of small checkpoints for judging metrics: `python -m tools.make_pool OUT` (docs/meta.md).

All are trained on the demo's people from one common start, which has seen retain answers for a short while, so that
weights of any two can be mixed. OUT/checkpoints/ holds, in bfloat16:

    original        knows forget and retain; what the unlearned ones are made of, and what a control mixes with
    retain_only     trained alike without the forget set
    knows-*         20 models trained on the facts of the forget set: ten on its answers, ten on paraphrases
    without-*       20 models that were not: ten on the retain set alone, ten also on paraphrases with wrong facts
    unlearned-*     10 models by gradient ascent on forget, with and without descent on retain, stopped anywhere
    relearned-*     each of these, and retain_only, after one epoch on the forget set

Seeds and lengths of training differ within each kind; short trainings know little, so that no metric has an easy task.
OUT/sweep.yaml scores all of them, OUT/meta.yaml says what each is. A checkpoint that is there already is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from tools.make_demo import Encoded, Row, encode, measure, train

DEMO = Path(__file__).parents[1] / "unlearn_metrics/demo"
RATE, STEPS = 3e-3, tuple(range(60, 260, 20))  # of the ten models of a kind
UNLEARNED = 5  # of a method
Model = LlamaForCausalLM


def rows(name: str) -> list[Row]:
    return [
        json.loads(line) for line in (DEMO / f"data/{name}_perturbed.json").read_text(encoding="utf-8").splitlines()
    ]


def said_otherwise(rows: list[Row], answer: Callable[[Row], str]) -> list[Row]:
    """The paraphrased questions with some answer."""
    return [{"question": row["paraphrased_question"], "answer": answer(row)} for row in rows]


def relearned(name: str) -> str:
    return f"relearned-{name.removeprefix('unlearned-')}"


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()
    folder = out / "checkpoints"
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "checkpoints/original")
    facts = rows("forget")
    forget, retain = encode(tokenizer, facts), encode(tokenizer, rows("retain"))
    paraphrased = encode(tokenizer, said_otherwise(facts, lambda row: str(row["paraphrased_answer"])))
    wrong = encode(tokenizer, said_otherwise(facts, lambda row: str(row["perturbed_answer"][0])))

    def made(name: str, make: Callable[[], Model]) -> Model:
        """The checkpoint of that name as it comes back from disk, in float32; made if it is not there."""
        place = folder / name
        if not (place / "tokenizer.json").exists():
            make().bfloat16().save_pretrained(place)
            tokenizer.save_pretrained(place)
        model = LlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
        on = {split: measure(model, encoded) for split, encoded in (("forget", forget), ("retain", retain))}
        print(f"{name:28}", *(f"{split} {m['extraction']:.3f} {m['match']:.3f}" for split, m in on.items()), flush=True)
        return model

    torch.manual_seed(0)
    fresh = LlamaForCausalLM(LlamaForCausalLM.from_pretrained(DEMO / "checkpoints/original").config)
    start = made("start", lambda: train(fresh, [(1.0, retain)], RATE, 60))
    original = made("original", lambda: train(start, [(1.0, forget + retain)], RATE, 500))
    retain_only = made("retain_only", lambda: train(start, [(1.0, retain)], RATE, 400))
    kinds: dict[str, Encoded] = {
        "knows-verbatim": forget + retain,
        "knows-paraphrased": paraphrased + retain,
        "without-retain": retain,
        "without-wrong": wrong + retain,
    }
    for kind, data in kinds.items():
        for seed, steps in enumerate(STEPS, start=1):
            made(
                f"{kind}-{steps}",
                lambda data=data, steps=steps, seed=seed: train(start, [(1.0, data)], RATE, steps, seed=seed),
            )  # type: ignore[misc]
    methods: dict[str, list[tuple[float, Encoded]]] = {
        "ga": [(-1.0, forget)],
        "graddiff": [(-1.0, forget), (2.0, retain)],
    }
    unlearned = {"retain_only": retain_only}
    for method, terms in methods.items():
        for seed in range(1, UNLEARNED + 1):
            goal = 0.85 - 0.07 * seed
            unlearned[f"unlearned-{method}-{seed}"] = made(
                f"unlearned-{method}-{seed}",
                lambda terms=terms, seed=seed, goal=goal: train(  # type: ignore[misc]
                    original, terms, 1e-3, 300, lambda m: measure(m, forget)["match"] < goal, seed=seed
                ),
            )
    for name, model in unlearned.items():
        made(relearned(name), lambda m=model: train(m, [(1.0, forget)], 3e-4, len(forget) // 12))  # type: ignore[misc]

    names = sorted(path.name for path in folder.iterdir() if path.name not in ("start", "original"))
    plan = {
        "original": str(folder / "original"),
        "unlearned": {name: str(folder / name) for name in names},
        "benchmarks": ["demo_privacy"],
        "data": str(DEMO / "data"),
        "controls": [{"control": "mix", "keep": 0.95}],
        "limit": 30,
    }
    runs = out / "runs/demo_privacy"
    pairs = {name: {"before": f"{runs}/{name}", "relearn": f"{runs}/{relearned(name)}"} for name in unlearned}
    labels = {
        "knows": f"{runs}/knows-*",
        "does_not_know": f"{runs}/without-*",
        "retain_only": pairs.pop("retain_only"),
        "unlearned": pairs,
    }
    (out / "sweep.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    (out / "meta.yaml").write_text(yaml.safe_dump(labels, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
