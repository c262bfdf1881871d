"""Where lm-eval and this package meet: the task class that the YAML names, and one function that runs tasks.

Importing this module gives every lm-eval LM the methods `token_scores` and `greedy_until` (dispatch on the
backend is in unlearn_metrics.backends), so that the stock `lm_eval run` works unchanged, and registers the metrics, so
that lm-eval does not look for them on the network.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_aggregation, register_metric
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import apply_template

from unlearn_metrics import tasks_path
from unlearn_metrics.backends import GenerateInstance, greedy_until, token_scores
from unlearn_metrics.metrics import JUDGED, METRICS
from unlearn_metrics.types import Document, InputError, TokenScores, first_line

log = logging.getLogger(__name__)

LM.token_scores = token_scores
LM.greedy_until = greedy_until


@register_aggregation("mean_scored")
def mean_scored(values: Sequence[float]) -> float:
    """Mean over the documents that have a value; says how many have none. NaN if none has."""
    scored = [v for v in values if not math.isnan(v)]
    if len(scored) < len(values):
        log.warning("%d of %d documents unscored, in no mean", len(values) - len(scored), len(values))
    return float(np.mean(scored)) if scored else math.nan


for _name, _metric in METRICS.items():
    if _name not in JUDGED:  # "perplexity" is another thing in lm-eval, and needs a judge here
        register_metric(metric=_name, higher_is_better=_metric.better == "higher", aggregation="mean_scored")(
            _metric.fn
        )

BYPASS = "bypass"  # lm-eval's metric under --predict_only
ROLES = ("answer", "paraphrased_question", "true_answer", "wrong_answers", "generation")


class TokenScoreTask(ConfigurableTask):
    """An lm-eval task whose documents are scored by teacher forcing and, if a metric needs it, by greedy generation.

    The YAML's metric_list decides which requests are made. Documents have TOFU's fields: question, answer and, where
    a metric needs them, paraphrased_question, paraphrased_answer, perturbed_answer (a list of wrong answers).
    metadata: split (forget, retain, ...), cluster (this many consecutive documents are not independent of one
    another), sample (only so many documents, drawn with a fixed seed), data_dir (read <data_dir>/<dataset_name>.json,
    JSON lines, or <data_dir>/<dataset_name>/<split>.json, instead of the hub), packaged (as data_dir, in this package).
    """

    _question_only = False
    _metric_fn_list: dict[str, Any]

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={k: v for k, v in config.items() if k != "class"})
        self._yaml_metrics = list(self._metric_fn_list)

    def _setting(self, name: str, default: Any = None) -> Any:
        return (self.config.metadata or {}).get(name, default)

    @property
    def split(self) -> str:
        return str(self._setting("split", "forget"))

    @property
    def metrics(self) -> list[str]:
        return list(self._metric_fn_list)

    @metrics.setter
    def metrics(self, names: Iterable[str]) -> None:
        """Fewer metrics than in the YAML, and so fewer requests."""
        self._metric_fn_list = {name: self._metric_fn_list[name] for name in names}

    @property
    def needs(self) -> set[str]:
        """The roles that must be requested: the YAML's under lm-eval's --predict_only, which computes no metric."""
        metrics = self._yaml_metrics if BYPASS in self.metrics else self.metrics
        return {need for name in metrics for need in METRICS[name].needs if need in ROLES}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        folder = self._setting("data_dir")
        if folder is None and self._setting("packaged"):
            folder = Path(__file__).parent / self._setting("packaged")
        sample = self._setting("sample")
        if folder is None:
            super().download(dataset_kwargs, **kwargs)
        else:
            self.dataset = {self.config.test_split: datasets.Dataset.from_list(self._local(Path(str(folder))))}
        rows = self.dataset[self.config.test_split]
        if sample is not None and sample < len(rows):
            chosen = sorted(random.Random(0).sample(range(len(rows)), sample))
            self.dataset = {self.config.test_split: rows.select(chosen).add_column("row", chosen)}

    def _local(self, folder: Path) -> list[Document]:
        path = local_file(self.config.task, folder, self.config.dataset_name, self.config.test_split)
        names = {need for m in self.config.metric_list for need in METRICS[m["metric"]].needs}
        fields = {"question", "answer"}
        fields |= {"paraphrased_question"} & names
        fields |= {"perturbed_answer"} if "wrong_answers" in names else set()
        fields |= {self._true_answer} if "true_answer" in names else set()
        # only what is needed: other fields need not even have one type throughout the file
        return [{name: doc[name] for name in sorted(fields)} for doc in read_json_lines(path, fields)]

    @property
    def _true_answer(self) -> str:
        return str(self._setting("true_answer", "paraphrased_answer"))

    def doc_to_text(self, doc: Document, doc_to_text: Any = None) -> str:
        # a chat template brings its own "Question:" and "Answer:"
        return str(doc["question"]) if self._question_only else super().doc_to_text(doc, doc_to_text)

    def doc_to_target(self, doc: Document, doc_to_target: Any = None) -> str:
        # as it is rendered: lm-eval would read an answer in square brackets as a list
        return str(apply_template(doc_to_target or self.config.doc_to_target, doc))

    def fewshot_context(self, doc: Document, *args: Any, **kwargs: Any) -> list[str]:
        """The contexts of a document: with its question and, if a metric needs it, with the paraphrased one."""
        if kwargs.get("num_fewshot"):
            raise InputError(f"{self.config.task} is asked without examples; num_fewshot must be 0")
        self._question_only = bool(kwargs.get("apply_chat_template"))
        if self._question_only and not self.config.target_delimiter:
            raise InputError(f"{self.config.task} brings its own prompt; it does not go with a chat template")
        docs = [doc]
        if "paraphrased_question" in self.needs:
            docs.append({**doc, "question": doc["paraphrased_question"]})
        return [super(TokenScoreTask, self).fewshot_context(d, *args, **kwargs) for d in docs]

    def construct_requests(self, doc: Document, ctx: list[str], **kwargs: Any) -> list[Instance]:
        chat_template = kwargs.pop("chat_template", None) if kwargs.pop("apply_chat_template", False) else None
        kwargs.pop("chat_template", None)
        gap = self.config.target_delimiter if chat_template is None else self._chat_delimiter(chat_template)
        question, answer = ctx[0], self.doc_to_target(doc)
        pairs: list[tuple[str, str]] = []
        for role, _ in self.layout(doc):
            match role:
                case "answer":
                    pairs.append((question, answer))
                case "paraphrased_question":
                    pairs.append((ctx[1], answer))
                case "true_answer":
                    pairs.append((question, str(doc[self._true_answer])))
                case "wrong_answers":
                    pairs += [(question, str(wrong)) for wrong in doc["perturbed_answer"]]
        name, doc_id, _ = kwargs["metadata"]
        for i, (_, text) in enumerate(pairs):
            if not text.strip():
                raise InputError(f"{name}, document {doc_id}: answer {i + 1} of {len(pairs)} is empty")
        requests = [
            Instance("token_scores", doc, (prompt, gap + text), i, **kwargs) for i, (prompt, text) in enumerate(pairs)
        ]
        if "generation" in self.needs:
            draft = requests[0] if requests and pairs[0] == (question, answer) else None
            arguments = (question, dict(self.config.generation_kwargs))
            requests.append(GenerateInstance("greedy_until", doc, arguments, len(requests), **kwargs, draft=draft))
        return requests

    def _chat_delimiter(self, chat_template: Any) -> str:
        """What the chat template puts between its generation prompt and an answer: often "", sometimes a space."""
        turn = [{"role": "user", "content": "q"}]
        prompt = chat_template(turn, add_generation_prompt=True)
        whole = chat_template([*turn, {"role": "assistant", "content": "a"}], add_generation_prompt=False)
        found = whole.startswith(prompt) and whole.endswith("a")
        return str(whole[len(prompt) : -1]) if found else ""

    def layout(self, doc: Document) -> list[tuple[str, int]]:
        """(role, how many requests) in the order of construct_requests."""
        counts = dict.fromkeys(ROLES, 1) | {"wrong_answers": len(doc.get("perturbed_answer") or ())}
        return [(role, counts[role]) for role in ROLES if role in self.needs]

    def document(self, doc: Document, responses: Sequence[Any], doc_id: int = 0) -> Document:
        """A Document for the metrics, from lm-eval's doc and the responses in request order."""
        row = doc.get("row", doc_id)  # of the file, where a sample was drawn
        result: Document = {"id": doc_id, "split": self.split, "cluster": row // int(self._setting("cluster", 1))}
        result |= {"question": doc["question"], "reference": doc["answer"]}
        rest = iter(responses)
        for role, count in self.layout(doc):
            if role == "generation":
                result[role] = next(rest)
            elif role == "wrong_answers":
                result[role] = [TokenScores.from_lists(next(rest)) for _ in range(count)]
            else:
                result[role] = TokenScores.from_lists(next(rest))
        return result

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, float]:
        if BYPASS in self.metrics:
            return {BYPASS: math.nan}
        document = self.document(doc, results)
        return {name: METRICS[name](document) for name in self.metrics}


def local_file(task: str, folder: Path, name: str, split: str) -> Path:
    """<folder>/<name>.json or <folder>/<name>/<split>.json; InputError if neither is there."""
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    for path in (folder / f"{name}.json", folder / name / f"{split}.json"):
        if path.is_file():
            return path
    raise InputError(f"{task} needs {folder / name}.json (JSON lines), which does not exist")


def read_json_lines(path: Path, fields: set[str]) -> list[Document]:
    """Read documents; InputError names the line of the first that is not JSON or lacks a field."""
    docs: list[Document] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            doc = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(doc, dict):
            raise InputError(f"{path}, line {number}: not a JSON object")
        for name in sorted(fields):
            value, wanted = doc.get(name), "a list of strings" if name == "perturbed_answer" else "a string"
            if value is None:
                raise InputError(f"{path}, line {number}: field '{name}' is missing")
            items = value if name == "perturbed_answer" else [value]
            if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
                raise InputError(f"{path}, line {number}: field '{name}' is not {wanted}")
            if not all(item.strip() for item in items):
                raise InputError(f"{path}, line {number}: field '{name}' is empty")
        docs.append(doc)
    if not docs:
        raise InputError(f"{path} holds no documents")
    return docs


# --- benchmarks: groups of tasks, one task for each split ---------------------------------------------------------


def benchmarks() -> dict[str, list[str]]:
    """Name for `--benchmark` -> its tasks: every group NAME_suite of ours."""
    index = _manager({}).task_index
    suites = {name.removesuffix("_suite"): index[name].cfg for name in index if name.endswith("_suite")}
    return {name: list(cfg["task"]) for name, cfg in suites.items() if cfg}


def _manager(metadata: dict[str, Any]) -> TaskManager:
    return TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)


def load(benchmark: str, data_dir: Path | None) -> dict[str, TokenScoreTask]:
    """split -> task of a benchmark. InputError for an unknown one, with near names."""
    known = list(benchmarks())
    name = benchmark.removesuffix("_suite")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise InputError(f"unknown benchmark '{benchmark}'; did you mean {' or '.join(near)}?")
    manager = _manager({} if data_dir is None else {"data_dir": str(data_dir)})
    try:
        tasks = manager.load(f"{name}_suite")["tasks"]
    except (OSError, ValueError) as error:  # datasets: no such repository, no network, no such config
        source = f"in {data_dir}" if data_dir else "on the hub (give a local folder with --data)"
        raise InputError(f"cannot load the data of {name} {source}: {first_line(error)}") from error
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
    return {task.split: task for task in tasks.values()}


def evaluate(
    lm: LM, tasks: Mapping[str, TokenScoreTask], limit: int | None = None, apply_chat_template: bool = False
) -> dict[str, list[Document]]:
    """Run the tasks by lm-eval's own evaluate() and return split -> documents, each with "prompt" beside."""
    with quiet():
        results = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task for task in tasks.values()}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=apply_chat_template,
        )
    documents = {}
    for split, task in tasks.items():
        samples = sorted(results["samples"][task.task_name], key=lambda s: int(s["doc_id"]))
        documents[split] = [
            task.document(s["doc"], [r[0] for r in s["resps"]], s["doc_id"])
            | {"prompt": s["arguments"][0][0], "answers": [a[1] for a in s["arguments"]]}
            for s in samples
        ]
    return documents


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """lm-eval narrates every step at INFO; a `score` run says what matters itself, unscored documents too."""
    loggers = [logging.getLogger("lm_eval"), log]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
