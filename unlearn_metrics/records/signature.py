"""One line that fixes everything a number depends on but the checkpoints, after sacreBLEU's. Made here, and read back.

    tofu_forget05|n:all|tmpl:none|prompt:0f3a...|eos:prob+|ctl:mix.es.keep0.95|dtype:float32|data:9c1b...|seed:0|...

The benchmark comes first, then key:value fields. `src` is there only if somebody else's log was imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

from unlearn_metrics.errors import InputError
from unlearn_metrics.record import Control
from unlearn_metrics.wording import counted

# what each field fixes; of those in FREE, two records may differ and still be compared
FIELDS = {
    "n": "documents of each split: the first, so many drawn, or all",
    "tmpl": "chat template or none",
    "prompt": "the prompt of each split's first document (hash)",
    "eos": "whether probabilities include the end-of-sequence token",
    "ctl": "the control and its target",
    "dtype": "precision of the model",
    "data": "the documents (hash)",
    "draw": "settings of sampling, besides temperature 1, under which log-probabilities were taken",
    "util": "other lm-eval tasks, their documents and number (hash)",
    "seed": "the resampling of the intervals",
    "sem": "the models that read generations for cosine, entailment and judge (names and hashes)",
    "src": "the evaluator whose log was imported",
    "lm-eval": "its version",
    "v": "the version of this package",
}
# the seed moves intervals a little, not values; other tasks in a run move nothing of ours; what lm-eval feeds the model
# is in data and prompt; the setting that a value was drawn with is in its metric's name
FREE = ("draw", "seed", "util", "lm-eval")
_LINE = re.compile(r"[\w.-]{1,200}(\|[a-z-]{1,20}:[\w.,+@=-]{0,200}){1,20}", re.ASCII)


def make(benchmark: str, fields: Mapping[str, str]) -> str:
    """The signature line. Raises ValueError for what `parse` would not read back."""
    line = "|".join([benchmark, *(f"{key}:{value}" for key, value in fields.items())])
    if not _LINE.fullmatch(line):
        raise ValueError(f"no signature can be made of {line!r}")
    return line


def ctl(control: Control) -> str:
    """The field of a control: mix.es.keep0.95, mix.mmlu.acc.keep0.9, mix.alpha0.5, none. es = extraction_strength."""
    if control.method == "none":
        return "none"
    method = control.method
    if layers := control.parameters.get("layers"):
        method += f"-{short_hash([layers])}"
    if control.keep is None:
        return f"{method}.alpha{control.alpha:g}"
    metric = "es" if control.metric == "extraction_strength" else control.metric
    return f"{method}.{metric}.keep{control.keep:g}"


def short_hash(parts: Iterable[str]) -> str:
    """What a field tells of texts that are too long for it."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def parse(line: str) -> dict[str, str]:
    """{"benchmark": ..., field: value, ...} of a signature. InputError if it is none."""
    if not _LINE.fullmatch(line):
        raise InputError(f"not a signature: {line[:80]!r}")
    benchmark, *rest = line.split("|")
    fields = dict(field.split(":", 1) for field in rest)
    unknown = fields.keys() - FIELDS.keys()
    if unknown or len(fields) != len(rest):
        raise InputError(f"not a signature: field {min(unknown, default='twice')!r} in {line[:80]!r}")
    return {"benchmark": benchmark, **fields}


def comparable(line: str) -> tuple[tuple[str, str], ...]:
    """What two signatures must have in common for their numbers to stand in one ranking: a key for grouping."""
    fields = {key: value for key, value in parse(line).items() if key not in FREE}
    if "v" in fields:  # patch releases change no number
        fields["v"] = ".".join(fields["v"].split(".")[:2])
    return tuple(sorted(fields.items()))


def documents(line: str) -> str:
    """Of which documents of each split a number is, in words; empty for all of them."""
    n = parse(line).get("n", "all")
    if n == "all":
        return ""
    count, drawn = n.removesuffix("-drawn"), n.endswith("-drawn")
    many = counted(int(count), "document") if count.isdigit() else f"{count} documents"
    return f"{many} of each split, drawn at random" if drawn else f"the first {many} of each split"


def differences(
    a: str, b: str, besides: Collection[str] = (), words: tuple[str, str] = ("in one", "in the other")
) -> list[str]:
    """In which fields that matter two signatures differ, besides those named, in words; empty: they may be compared."""
    one, two = dict(comparable(a)), dict(comparable(b))
    # what is given there by a name of this package's alone, in words
    said = [{**of, "n": documents(line) or "all documents"} if "n" in of else of for of, line in ((one, a), (two, b))]
    return [
        f"{key} is {said[0].get(key, 'not given')} {words[0]}, {said[1].get(key, 'not given')} {words[1]}"
        for key in ("benchmark", *FIELDS)
        if key not in besides and one.get(key) != two.get(key)
    ]
