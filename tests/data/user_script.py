"""What a user writes against the Python API; `mypy --strict` must take it, and know the types (tests/test_api.py)."""

from typing import assert_type

import unlearn_metrics as um

run = um.score("orig", "ga-52", benchmark="tofu_forget05", data="tofu/", keep=0.95, out="runs/ga-52")
assert_type(run, um.Run)
assert_type(run.scores["controlled", "forget", "extraction_strength"].value, float | None)
assert_type(run.residual["extraction_strength"].value.low, float | None)
assert_type(run.verdict, str)
table = run.to_pandas()
documents = run.documents()

again = um.load("runs/ga-52")
assert_type(um.rescore(again, metrics=["min_k"]), um.Run)
comparison = um.compare([run, "runs/ga-78"])
assert_type(comparison.sentences, list[str])
differences = comparison.to_pandas()

control = um.calibrate("orig", "ga-52", benchmark=um.OwnData({"forget": "mine.jsonl", "retain": "other.jsonl"}))
assert_type(control.alpha, float)
um.mix("orig", "ga-52", alpha=control.alpha, out="mixed", progress=False)


def words(generation: str) -> float:
    return len(generation.split())


um.register_metric("words", words, needs="generation", facet="fluency", better="neither")


def strengths(scores: list[um.TokenScores]) -> list[float]:
    return [um.metrics.extraction_strength(s) for s in scores]


try:
    um.score("orig", "ga-52", benchmark=um.OwnData({"forget": "mine.jsonl"}), progress=print)
except um.InputError as error:
    print(error)
