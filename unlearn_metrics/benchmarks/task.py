"""The lm-eval task class that the YAML names, and what lm-eval needs before it builds one.

Importing this module gives every lm-eval LM the methods `token_scores`, `greedy_until`, `similar_strength` and
`gradnorm` (dispatch on the backend is in unlearn_metrics.backends), so that the stock `lm_eval run` works unchanged,
and registers the metrics, so that lm-eval does not look for them on the network.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import apply_template, env

from unlearn_metrics import backends
from unlearn_metrics.attacks.attack import Around, Attack, Impossible
from unlearn_metrics.backends import GenerateInstance, ScoreInstance
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.benchmarks import data
from unlearn_metrics.benchmarks.lm_eval_metrics import mean_scored, register_all
from unlearn_metrics.documents import Document, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, good, value
from unlearn_metrics.observations import OBSERVATIONS, layout, observed
from unlearn_metrics.settings import PREFIX

log = logging.getLogger(__name__)

# what lm-eval asks a model for, by the names that it looks up on every LM
REQUESTS = {name: it.request for name, it in OBSERVATIONS.items() if it.request is not None}
for _request in {*REQUESTS.values()}:
    setattr(LM, _request, getattr(backends, _request))

BYPASS = "bypass"  # lm-eval's metric under --predict_only
# what a metric needs -> the field of the data that it comes from
FIELDS = {"reference": "answer"} | {name: it.answer for name, it in OBSERVATIONS.items() if it.answer is not None}


def _declared(entry: Mapping[str, Any], split: str) -> dict[str, Any]:
    """An entry of a metric_list with what lm-eval would warn of if it were missing."""
    name = entry["metric"]
    may_lack = name in METRICS and "generation" in METRICS[name].needs  # a text can be too short to have a value
    aggregation = "mean_scored" if may_lack else "mean"  # which has a standard error
    return {"metric": name, "aggregation": aggregation, "higher_is_better": good(name, split) == "higher"} | dict(entry)


class TokenScoreTask(ConfigurableTask):
    """An lm-eval task whose documents are scored by teacher forcing and, if a metric needs it, by greedy generation.

    The YAML's metric_list decides which requests are made, and they which of these fields a document must have:
    question, answer, paraphrased_question, paraphrased_answer, perturbed_answer (a list of wrong answers). Under a chat
    template the bare question is the user's turn, unless there is a gen_prefix: then it is doc_to_text, and the prefix
    begins the answer. Without target_delimiter a task brings its own prompt and no chat template applies. Examples for
    a few-shot prompt are all rows of fewshot_split, in order.

    metadata: split (forget, retain, holdout, ...; `forget_verbmem` for a further part of the forget set),
    fields (field -> column where the names differ; further columns that templates use; `text` alone: plain text, whose
    first part is the question and the rest the answer), prefix (how much of a text is its first part, see
    data.split_text), made (field -> template over the others, such as `cluster`, or `kind`: what an aggregate counts a
    document under), cluster (this many consecutive documents, or those with the same value of this field, are not
    independent of one another; a list: where clusters begin), sample (only so many documents, drawn with a fixed seed),
    data_dir (a local folder instead of the hub, see data.local_file), file (the name there, where the hub has no such
    configuration), lines (field -> text file there with one value in each line), packaged (as data_dir, in this
    package), own (the user's file at metadata's <split>_file).

    `under` gives a task whose prompts are attacked; what an attack adds to a document is in attacks.attack.Attack.
    """

    said: dict[Pair, TokenScores] | None = None  # where token scores of generations are put, see GenerateInstance
    _bare_question = False
    _metric_fn_list: dict[str, Any]
    _clusters: list[int]

    def __init__(self, config: Mapping[str, Any]) -> None:
        register_all()
        split = (config.get("metadata") or {}).get("split", "forget")
        declared = {"metric_list": [_declared(entry, split) for entry in config.get("metric_list") or ()]}
        super().__init__(config={k: v for k, v in config.items() if k != "class"} | declared)
        self._yaml_metrics = list(self._metric_fn_list)
        if self.config.fewshot_split:
            self.set_config("num_fewshot", len(self.fewshot_docs()))

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
        """Others than in the YAML, and so other requests."""
        self._metric_fn_list = {name: METRICS[name].fn for name in names}

    @property
    def needs(self) -> set[str]:
        """The roles that must be requested: the YAML's under lm-eval's --predict_only, which computes no metric."""
        metrics = self._yaml_metrics if BYPASS in self.metrics else self.metrics
        return {need for name in metrics for need in METRICS[name].needs if need in REQUESTS}

    # --- data

    @property
    def clusters(self) -> list[int]:
        """The cluster of each document, in order."""
        return self._clusters

    @cached_property
    def data_sha256(self) -> str:
        """sha256 over the documents in order."""
        digest = hashlib.sha256()
        for doc in self.eval_docs:
            digest.update(repr(sorted(doc.items())).encode())
        return digest.hexdigest()

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        fields = self._fields()
        docs = self._read(self.config.test_split, fields, dataset_kwargs)
        for name, template in self._setting("made", {}).items():
            render = env.from_string(template).render
            docs = [doc | {name: render(**doc)} for doc in docs]
        self._clusters = data.clusters(docs, self._setting("cluster", 1))
        sample = self._setting("sample")
        if sample is not None and sample < len(docs):
            chosen = sorted(random.Random(0).sample(range(len(docs)), sample))
            docs, self._clusters = [docs[i] for i in chosen], [self._clusters[i] for i in chosen]
        found = {self.config.test_split: docs}
        if self.config.fewshot_split:
            found[self.config.fewshot_split] = self._read(self.config.fewshot_split, fields, dataset_kwargs)
        self.dataset = {split: datasets.Dataset.from_list(rows) for split, rows in found.items()}
        if "text" in fields:  # a text is its own prompt
            self.set_config("doc_to_text", "{{question}}")
            self.set_config("target_delimiter", "")

    def _own(self) -> Path | None:
        if not self._setting("own"):
            return None
        if (path := self._setting(f"{self.split}_file")) is None:
            raise InputError(f"""{self.config.task} needs --metadata '{{"{self.split}_file": "my.jsonl"}}'""")
        return Path(str(path))

    def _fields(self) -> dict[str, str]:
        """Field -> column, for all that the metrics and the YAML name."""
        given = self._setting("fields")
        if own := self._own():
            given = data.own_fields(own) if given is None else given
        given = data.parse_fields(given) if isinstance(given, str) else given or {}
        if "text" in given:
            return dict(given)
        names = {need for m in self.config.metric_list for need in METRICS[m["metric"]].needs}
        wanted = {"question"} | {FIELDS[need] for need in names if need in FIELDS}
        return {name: given.get(name, name) for name in sorted(wanted | given.keys())}

    def _read(self, split: str, fields: Mapping[str, str], dataset_kwargs: dict[str, Any] | None = None) -> list[Any]:
        prefix = float(self._setting("prefix", PREFIX))
        folder = self._setting("data_dir")
        if folder is None and self._setting("packaged"):
            folder = Path(__file__).parent.parent / self._setting("packaged")
        path = self._own()
        if path is None and folder is not None:
            if lines := self._setting("lines"):
                return data.lines(self.config.task, Path(str(folder)), lines)
            name = self._setting("file")
            place = (self.config.dataset_name, split) if name is None else (name, "train")
            path = data.local_file(self.config.task, Path(str(folder)), *place)
        if path is not None:
            return data.documents(str(path), data.rows(path), fields, prefix)
        if self._setting("lines"):
            raise InputError(f"{self.config.task} takes its data from a local folder: --data")
        super().download(dataset_kwargs)
        source = f"{self.config.dataset_path}, {self.config.dataset_name}, {split}"
        return data.documents(source, data.numbered(source, self.dataset[split]), fields, prefix)

    def under(self, attack: Attack, retain: Sequence[Document] = ()) -> TokenScoreTask:
        """This task with its prompts attacked. `Impossible`, naming the document, where the data have not got what the
        attack takes. retain: documents of the retain split."""
        docs = list(self.eval_docs)
        members: dict[int, list[int]] = {}
        for i, cluster in enumerate(self._clusters):
            members.setdefault(cluster, []).append(i)
        changed = []
        for i, doc in enumerate(docs):
            together = members[self._clusters[i]]
            place = together.index(i)
            around = Around(i, [docs[j] for j in (*together[place + 1 :], *together[:place])], retain)
            try:
                changed.append(attack.fn(doc, around))
            except Impossible as error:
                raise Impossible(f"{self.config.task}, document {i}, {error}") from None
        if not self.config.target_delimiter and any(doc.get("begun") or doc.get("examples") for doc in changed):
            raise Impossible(f"{self.config.task} brings its own prompt, into which nothing can be put")
        task = copy.copy(self)
        task.dataset = {self.config.test_split: datasets.Dataset.from_list(changed)}
        asked = {"answer", "true_answer", "wrong_answers"} | (set() if attack.tokens_only else {"generation"})
        task.metrics = [name for name in self.metrics if {*METRICS[name].needs} & {*REQUESTS} <= asked]
        return task

    # --- prompts and requests

    def build_all_requests(self, **kwargs: Any) -> None:
        # lm-eval's --cache_requests goes by the task's name, whatever data, fields and prefix --metadata names
        if kwargs.pop("cache_requests", False):
            log.warning("%s is not taken from lm-eval's cache of requests", self.config.task)
        super().build_all_requests(**kwargs)

    def doc_to_text(self, doc: Document, doc_to_text: Any = None) -> str:
        # a chat template brings its own "Question:" and "Answer:"
        return str(doc["question"]) if self._bare_question else super().doc_to_text(doc, doc_to_text)

    def doc_to_prefix(self, doc: Document) -> str | None:
        own: str | None = super().doc_to_prefix(doc)
        return " ".join(filter(None, (own, doc["begun"]))) if doc.get("begun") else own

    def doc_to_target(self, doc: Document, doc_to_target: Any = None) -> str:
        # as it is rendered: lm-eval would read an answer in square brackets as a list
        return str(apply_template(doc_to_target or self.config.doc_to_target, doc))

    def fewshot_context(self, doc: Document, *args: Any, **kwargs: Any) -> list[str]:
        """The contexts of a document: with its question and, if a metric needs it, with the paraphrased one."""
        if not doc["question"]:  # a whole text is scored as it is, whatever template the others have
            return [""]
        if kwargs.get("num_fewshot") and not self.config.fewshot_split:
            raise InputError(f"{self.config.task} is asked without examples; num_fewshot must be 0")
        chat = bool(kwargs.get("apply_chat_template"))
        if chat and not self.config.target_delimiter:
            raise InputError(f"{self.config.task} brings its own prompt; it does not go with a chat template")
        self._bare_question = chat and self.config.gen_prefix is None
        if examples := doc.get("examples"):  # of an attack; as turns of their own under a chat template
            self.sampler = _These(examples)
            kwargs |= {"num_fewshot": len(examples), "fewshot_as_multiturn": chat}
        docs = [doc]
        if "paraphrased_question" in self.needs:
            docs.append({**doc, "question": doc["paraphrased_question"]})
        return [super(TokenScoreTask, self).fewshot_context(d, *args, **kwargs) for d in docs]

    def construct_requests(self, doc: Document, ctx: list[str], **kwargs: Any) -> list[Instance]:
        chat_template = kwargs.pop("chat_template", None) if kwargs.pop("apply_chat_template", False) else None
        kwargs.pop("chat_template", None)
        gap = self.config.target_delimiter
        if chat_template is not None and ctx[0] and not self.doc_to_prefix(doc):
            undone, written, gap = _before_answer(chat_template, self.config.task)
            if undone or written:  # never of a prompt that a chat server renders itself
                ctx = [prompt.removesuffix(undone) + written for prompt in ctx]
        question, answer = ctx[0], self.doc_to_target(doc)
        pairs: list[tuple[str, str]] = []
        for role, _ in self.layout(doc):
            match role:
                case "answer":
                    pairs.append((question, answer))
                case "paraphrased_question":
                    pairs.append((ctx[1], answer))
                case "true_answer":
                    pairs.append((question, str(doc["paraphrased_answer"])))
                case "wrong_answers":
                    pairs += [(question, str(wrong)) for wrong in doc["perturbed_answer"]]
        kwargs["rendered"] = chat_template is not None
        name, doc_id, _ = kwargs["metadata"]
        for i, (_, text) in enumerate(pairs):
            if not text.strip():
                raise InputError(f"{name}, document {doc_id}: answer {i + 1} of {len(pairs)} is empty")
        requests = [
            ScoreInstance("token_scores", doc, (prompt, gap + text), i, **kwargs, noise=float(doc.get("noise") or 0))
            for i, (prompt, text) in enumerate(pairs)
        ]
        draft = requests[0] if requests and pairs[0] == (question, answer) else None
        for role, _ in self.layout(doc):
            request, place = REQUESTS[role], len(requests)
            match role:
                case "generation":
                    arguments = (question, dict(self.config.generation_kwargs))
                    requests.append(
                        GenerateInstance(request, doc, arguments, place, **kwargs, draft=draft, said=self.said)
                    )
                case "revealed":
                    requests.append(
                        GenerateInstance(request, doc, (question, gap + answer), place, **kwargs, draft=draft)
                    )
                case _ if OBSERVATIONS[role].kind is not TokenScores:
                    requests.append(ScoreInstance(request, doc, (question, gap + answer), place, **kwargs))
        return requests

    def layout(self, doc: Document) -> list[tuple[str, int]]:
        """(role, how many requests) in the order of construct_requests."""
        return layout(self.needs, doc)

    def document(self, doc: Document, responses: Sequence[Any], doc_id: int = 0) -> Document:
        """A Document for the metrics, from lm-eval's doc and the responses in request order."""
        result: Document = {"id": doc_id, "split": self.split, "cluster": self._clusters[doc_id]}
        result |= {"question": doc["question"]} | ({"reference": doc["answer"]} if "answer" in doc else {})
        result |= {"kind": doc["kind"]} if "kind" in doc else {}
        return result | observed(self.layout(doc), responses)

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, float]:
        if BYPASS in self.metrics:
            return {BYPASS: math.nan}
        document = self.document(doc, results)
        values = {name: value(name, document) for name in self.metrics}
        unscored = {name: math.isnan(v) for name, v in values.items()}
        # "mean", which has a standard error, would be NaN
        self._aggregation_list |= dict.fromkeys([name for name in unscored if unscored[name]], mean_scored)
        # always there: of several processes, lm-eval gathers what the first one has
        return values | {f"{name}_unscored": int(is_nan) for name, is_nan in unscored.items()}

    def aggregation(self) -> dict[str, Any]:
        """Beside the metrics NAME_unscored, how many documents have no value."""
        if len({*self._clusters}) < len(self._clusters):
            _warn_of_standard_errors()
        known = dict.fromkeys(self.metrics, mean_scored) | self._aggregation_list
        if dist.is_initialized() and dist.get_world_size() > 1:  # where another process may have unscored documents
            known |= dict.fromkeys([name for name in known if name in METRICS], mean_scored)
        return known | {f"{name}_unscored": sum for name in {*self._yaml_metrics, *self.metrics}}


class _These:
    """A sampler of lm-eval's that always gives the same examples."""

    def __init__(self, examples: Sequence[Document]) -> None:
        self.examples = examples

    def sample(self, n: int, eval_doc: Document | None = None) -> Sequence[Document]:
        return self.examples


@cache
def _warn_of_standard_errors() -> None:
    """Once, where lm-eval is about to print them."""
    log.warning(
        "lm-eval's standard errors (+/-) take every document for independent. Questions about one author are not: "
        "`unlearn-metrics score` has intervals that resample them together."
    )


def _before_answer(chat_template: Any, task: str) -> tuple[str, str, str]:
    """(what a generation prompt has that comes before no answer, what comes before one instead, the white space with
    which the answer begins): ("", "", "") for most chat templates.

    Read off a dialogue. Words of the template's own, such as an empty think block, are no part of an answer. InputError
    for a template that does not show what comes before an answer.
    """
    asked, said = "unlearn-metrics asks", "and is answered"
    turn = [{"role": "user", "content": asked}]
    prompt = chat_template(turn, add_generation_prompt=True)
    if not isinstance(prompt, str):  # a chat server renders it itself
        return "", "", ""
    whole = chat_template([*turn, {"role": "assistant", "content": said}], add_generation_prompt=False)
    before, found, _ = whole.rpartition(said)
    common = next(prompt[:i] for i in range(len(prompt), -1, -1) if before.startswith(prompt[:i]))
    if not found or asked not in common:
        raise InputError(
            f"{task}: the chat template renders a question otherwise once it is answered; it can't be used"
        )
    undone, written = prompt[len(common) :], before[len(common) :]
    return ("", "", written) if not undone and written.isspace() else (undone, written, "")
