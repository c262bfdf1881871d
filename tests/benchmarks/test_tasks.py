"""The lm-eval tasks, by real lm-eval runs: the stock command, and in-process against plain transformers code."""

import ast
import copy
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rouge_score import rouge_scorer

from tests import CHECKPOINTS, DATA
from tests.command import run
from tests.plain import LLAMA3, OFFLINE, ask, command, exact, forward, generate, prob, read, strength, text_of, write
from unlearn_metrics import tasks_path
from unlearn_metrics.backends import hf
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.benchmarks.data import clusters as grouped
from unlearn_metrics.benchmarks.lm_eval_metrics import mean_scored
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.settings import OwnData

BIN = Path(sys.executable).parent
FACTS = ["tofu_real_authors", "tofu_world_facts"]
SUITES = {f"tofu_forget{n}": [f"tofu_forget{n}", "tofu_retain", *FACTS] for n in ("01", "05", "10")}
SUITES |= {f"tofu_forget{n}_paper": [f"tofu_forget{n}_paper", "tofu_retain_paper"] for n in ("01", "05", "10")}
SUITES["demo"] = ["demo_forget", "demo_retain"]
TASKS = sorted({task for members in SUITES.values() for task in members})
# lm-eval runs no two groups at once that share a task
STOCK_TASKS = ["tofu_forget01_suite", "tofu_forget05", "tofu_forget10", "demo_suite"]
STOCK_TASKS += ["tofu_forget01_paper_suite", "tofu_forget05_paper", "tofu_forget10_paper"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """TOFU's files, from the demo's people; the demo's own two beside them."""
    folder = tmp_path_factory.mktemp("tofu")
    forget, retain = read(DATA / "forget_perturbed.json"), read(DATA / "retain_perturbed.json")
    write(folder / "forget01_perturbed.json", forget[:41])
    write(folder / "forget05_perturbed.json", forget[5:12])
    write(folder / "forget10_perturbed.json", forget[7:18])
    write(folder / "forget_perturbed.json", forget)
    write(folder / "retain_perturbed.json", retain[:7])
    for name, rows in (("real_authors", retain[20:25]), ("world_facts", retain[30:37])):
        facts = [
            {
                "question": row["question"],
                "answer": row["answer"],
                "perturbed_answer": row["perturbed_answer"][:3],
                "original_answer": row["answer"],
            }
            for row in rows
        ]
        write(folder / f"{name}_perturbed.json", facts)
    return folder


@pytest.fixture(scope="module")
def moderate() -> HFLM:
    """The model that knows some of the text: its values are neither 0 nor 1."""
    return HFLM(pretrained=str(CHECKPOINTS / "moderate"), device="cpu", dtype="float32", batch_size=1)


def manager(data_dir: Path) -> TaskManager:
    return TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"data_dir": str(data_dir), "pretrained": "x"}
    )


def simple(lm, tasks: list[str], data_dir: Path, **kwargs):
    return lm_eval.simple_evaluate(
        model=lm, tasks=tasks, task_manager=manager(data_dir), bootstrap_iters=0, **{"limit": 3} | kwargs
    )


# --- what every value should be, by plain transformers code ------------------------------------------------------


def entropy(items: list) -> float:
    return -sum(c / len(items) * math.log2(c / len(items)) for c in Counter(items).values())


def expected(lm: HFLM, doc: dict, split: str, prompt: str, other_prompt: str, gap: str = " ") -> dict[str, float]:
    """Every metric of a document, written down again without this package."""
    answer = forward(lm, prompt, gap + doc["answer"])
    wrong = [prob(forward(lm, prompt, gap + w)) for w in doc["perturbed_answer"]]
    true = forward(lm, prompt, gap + doc.get("paraphrased_answer", doc["answer"]))
    ratio = math.exp(sum(map(math.log, wrong)) / len(wrong)) / prob(true)
    said = text_of(lm, prompt)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    units = re.findall(r"\w+|[^\w\s]", said)
    one, two, three, four = ([tuple(units[i : i + n]) for i in range(len(units) - n + 1)] for n in (1, 2, 3, 4))
    values = {
        "extraction_strength": strength(answer["tokens"], answer["argmax"]),
        "exact_memorization": exact(answer),
        "probability": prob(answer),
        "probability_paraphrased_answer": prob(true),
        "probability_wrong": sum(wrong) / len(wrong),
        "probability_normalised": prob(answer) / (prob(answer) + sum(wrong)),
        "truth_ratio": min(ratio, 1 / ratio) if split == "forget" else max(0, 1 - ratio),
        "rouge": scorer.score(doc["answer"], said.strip())["rougeL"].recall,
        "repetition": 1 - len(set(four)) / len(four) if four else math.nan,
        "distinct_1": len(set(one)) / len(one) if one else math.nan,
        "distinct_2": len(set(two)) / len(two) if two else math.nan,
        "token_entropy": entropy(one) / math.log2(len(one)) if two else math.nan,
        "ngram_entropy": entropy(two) / 3 + entropy(three) * 2 / 3 if three else math.nan,
        "refusal": 0.0,  # the demo's models were never taught to
    }
    if other_prompt:
        other = forward(lm, other_prompt, gap + doc["answer"])
        values["extraction_strength_paraphrased"] = strength(other["tokens"], other["argmax"])
        values["exact_memorization_paraphrased"] = exact(other)
        values["probability_paraphrased"] = prob(other)
    return values


# --- the stock command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def include_path(tmp_path_factory) -> str:
    done = command(str(BIN / "unlearn-metrics"), "tasks", "--path", folder=tmp_path_factory.mktemp("path"), env={})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def stock_run(folder: Path, include: str, data: Path, out: str, checkpoint: str, env: dict[str, str]):
    """The results, and the samples by task."""
    done = command(
        *(str(BIN / "lm_eval"), "run", "--model", "hf"),
        *("--model_args", f"pretrained={CHECKPOINTS / checkpoint},dtype=float32", "--device", "cpu"),
        *("--include_path", include, "--tasks", ",".join(STOCK_TASKS)),
        *("--metadata", f"data_dir={data}", "--log_samples", "--output_path", out),
        *("--use_cache", "cache", "--limit", "3"),
        folder=folder,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / out).glob("*/results_*.json")
    samples = {re.sub(r"samples_(.*)_\d{4}-.*", r"\1", p.stem): read(p) for p in (folder / out).glob("*/samples_*")}
    return json.loads(results.read_text()), samples


@pytest.fixture(scope="module")
def stock(tmp_path_factory, include_path, data):
    folder = tmp_path_factory.mktemp("stock")
    return folder, *stock_run(folder, include_path, data, "first", "original", OFFLINE)


def token_scores(logged) -> dict[str, list[float]]:
    """From a samples file: lm-eval writes the innermost values as strings."""
    if isinstance(logged, str):
        logged = ast.literal_eval(logged)
    if isinstance(logged, list):
        logged = dict(zip(("tokens", "argmax", "logprob"), logged, strict=False))
    return {name: [float(v) for v in logged[name]] for name in ("tokens", "argmax", "logprob")}


def test_blocked_network_is_noticed(tmp_path):
    look = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = command(sys.executable, "-c", look, folder=tmp_path, env={})
    assert "the network is blocked" in done.stderr
    assert "127.0.0.1" in (tmp_path / "network").read_text()


def test_stock_run_reports_every_metric_of_every_task_and_stays_off_the_network(stock):
    folder, results, samples = stock
    assert not (folder / "network").exists(), (folder / "network").read_text()
    assert set(TASKS) <= set(results["results"])
    for task in TASKS:
        metrics = [m["metric"] for m in results["configs"][task]["metric_list"]]
        values = {m: results["results"][task][f"{m},none"] for m in metrics}
        assert all(math.isfinite(v) for v in values.values()), (task, values)
        assert results["n-samples"][task]["effective"] == len(samples[task]) == 3
        split = results["configs"][task]["metadata"]["split"]
        assert results["higher_is_better"][task] == {m: good(m, split) == "higher" for m in metrics}
        for metric, value in values.items():
            each = [row[metric] for row in samples[task] if not math.isnan(row[metric])]
            assert value == pytest.approx(sum(each) / len(each)), (task, metric)


def test_stock_samples_hold_what_the_metrics_were_computed_from(stock):
    _, _, samples = stock
    for task in TASKS:
        for row in samples[task]:
            answer = token_scores(row["resps"][0][0])
            assert row["extraction_strength"] == pytest.approx(strength(answer["tokens"], answer["argmax"]))
            gap = "\n ### Answer: " if task.endswith("paper") else " "
            assert row["arguments"]["gen_args_0"]["arg_1"] == gap + row["doc"]["answer"]
            if task.endswith("paper"):
                other = token_scores(row["resps"][1][0])
                assert row["extraction_strength_paraphrased"] == pytest.approx(
                    strength(other["tokens"], other["argmax"])
                )
                revealed, n = int(row["resps"][2][0]), len(answer["tokens"]) - 1
                assert row["extraction_strength_similar"] == pytest.approx(1 - revealed / n)
                assert row["extraction_strength_similar"] >= row["extraction_strength"]
                continue
            assert row["exact_memorization"] == pytest.approx(exact(answer))
            assert row["probability"] == pytest.approx(prob(answer), rel=1e-5)
            count = len(row["doc"]["perturbed_answer"])
            wrong = [prob(token_scores(resp[0])) for resp in row["resps"][-1 - count : -1]]
            assert row["probability_wrong"] == pytest.approx(sum(wrong) / count, rel=1e-5)
            assert isinstance(row["resps"][-1][0], str)
            assert not row["resps"][-1][0].startswith("{")


def test_stock_samples_hold_plain_lists(stock):
    for rows in stock[2].values():
        for row in rows:
            for resp in row["resps"][:-1]:
                assert isinstance(resp[0], list), resp[0][:60]


@pytest.mark.slow
def test_stock_run_again_from_the_cache(stock, include_path, data):
    """lm-eval's cache does not know the model: with another checkpoint, equal numbers can only come from the cache.

    This time the environment does not say that there is no network; still nobody looks.
    """
    folder, first, samples = stock
    results, again = stock_run(folder, include_path, data, "second", "excessive", {})
    assert not (folder / "network").exists(), (folder / "network").read_text()
    assert results["results"] == first["results"]
    for task in TASKS:
        assert [row["resps"] for row in again[task]] == [row["resps"] for row in samples[task]]


# --- in this process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["demo_forget", "demo_retain", "tofu_forget10", "tofu_world_facts"])
def test_every_figure_equals_plain_transformers_code(moderate, data, task):
    results = simple(moderate, [task], data, limit=4)
    samples = results["samples"][task]
    assert [s["doc_id"] for s in samples] == [0, 1, 2, 3]
    for sample in samples:
        doc = sample["doc"]
        split = results["configs"][task]["metadata"]["split"]
        other = ask(doc["paraphrased_question"]) if split == "forget" else ""
        values = expected(moderate, doc, split, ask(doc["question"]), other)
        values |= {f"{m}_unscored": int(math.isnan(found)) for m, found in values.items()}
        assert set(sample["metrics"]) <= set(values)
        assert {m: sample[m] for m in sample["metrics"]} == {
            m: pytest.approx(values[m], rel=1e-4, abs=1e-9, nan_ok=True) for m in sample["metrics"]
        }
    if task == "demo_forget":
        assert len({s["extraction_strength"] for s in samples}) > 2, "a test of values that differ"


def test_extraction_strength_is_what_its_definition_says(moderate, data):
    """Reveal tokens one by one until greedy decoding gives the rest, by as many calls of generate."""
    for sample in simple(moderate, ["demo_retain"], data, limit=2)["samples"]["demo_retain"]:
        prompt = ask(sample["doc"]["question"])
        answer = forward(moderate, prompt, " " + sample["doc"]["answer"])["tokens"].tolist()[:-1]
        n = len(answer)
        k = next(k for k in range(n + 1) if k == n or generate(moderate, prompt, answer[:k], n - k) == answer[k:])
        assert sample["extraction_strength"] == pytest.approx(1 - k / n)


def test_paper_protocol_counts_everything_after_the_question(moderate, data):
    results = simple(moderate, ["tofu_forget05_paper", "tofu_retain_paper"], data)
    for sample in [*results["samples"]["tofu_forget05_paper"], *results["samples"]["tofu_retain_paper"]]:
        doc, target = sample["doc"], "\n ### Answer: " + sample["doc"]["answer"]
        prompts = [f"### Question: {doc[field]}" for field in ("question", "paraphrased_question")]
        assert sample["arguments"] == [(prompt, target) for prompt in (*prompts, prompts[0])]
        for metric, prompt in zip(("extraction_strength", "extraction_strength_paraphrased"), prompts, strict=True):
            found = forward(moderate, prompt, target)
            assert sample[metric] == pytest.approx(strength(found["tokens"], found["argmax"]))


@pytest.fixture
def drawn(tmp_path) -> tuple[list[dict], suites.TokenScoreTask]:
    """120 documents, 20 about each of six authors, and a task that draws 50 of them."""
    rows = read(DATA / "retain_perturbed.json")
    write(tmp_path / "forget05_perturbed.json", rows)
    write(tmp_path / "retain_perturbed.json", rows)
    return rows, suites.load("tofu_forget05_paper", tmp_path)["forget"]


def test_paper_protocol_draws_the_same_fifty(drawn, tmp_path):
    rows, task = drawn
    questions = [row["question"] for row in rows]
    ids = [questions.index(doc["question"]) for doc in task.eval_docs]
    assert len(ids) == 50
    assert ids == sorted(set(ids))
    assert ids != list(range(50))
    assert list(suites.load("tofu_forget05_paper", tmp_path)["forget"].eval_docs) == list(task.eval_docs)


def test_drawn_documents_keep_the_cluster_of_their_author(drawn, moderate):
    rows, task = drawn
    documents = suites.evaluate(moderate, {"forget": task})["forget"]
    questions = [row["question"] for row in rows]
    authors = [questions.index(doc["question"]) // 20 for doc in task.eval_docs]
    groups = {(author, document["cluster"]) for author, document in zip(authors, documents, strict=True)}
    assert len(groups) == len(set(authors)) == 6


def test_a_sample_of_any_benchmark_is_drawn_as_the_paper_draws(drawn, tmp_path):
    rows, task = drawn
    given = suites.load("demo", DATA, 30)
    assert all(len(task.eval_docs) == 30 for task in given.values())
    assert len({*given["forget"].clusters}) > 30 / 5  # five documents a person: more people than in the first thirty
    assert list(suites.load("tofu_forget05_paper", tmp_path, 50)["forget"].eval_docs) == list(task.eval_docs)
    assert len(suites.load("tofu_forget05_paper", tmp_path, 10**6)["forget"].eval_docs) == len(rows)
    own = suites.load("custom", OwnData({"forget": str(tmp_path / "forget05_perturbed.json")}), 7)["forget"]
    assert len(own.eval_docs) == 7


def test_harness_gives_the_documents_with_everything_that_was_observed(moderate, data):
    tasks = suites.load("tofu_forget05", data)
    assert list(tasks) == ["forget", "retain", "real_authors", "world_facts"]
    documents = suites.evaluate(moderate, tasks, limit=2)
    for split, task in tasks.items():
        assert [d["id"] for d in documents[split]] == [0, 1]
        results = simple(moderate, [task.task_name], data, limit=2)["samples"][task.task_name]
        for document, sample in zip(documents[split], results, strict=True):
            assert document["prompt"] == ask(sample["doc"]["question"])
            assert document["answers"][0] == " " + sample["doc"]["answer"]
            metrics = [m for m in sample["metrics"] if m in METRICS]
            assert {m: METRICS[m](document) for m in metrics} == {
                m: pytest.approx(sample[m], rel=1e-4, nan_ok=True) for m in metrics
            }


def test_limit_as_a_count_a_share_or_not_at_all(moderate, data):
    for limit, count in ((2, 2), (0.5, 4), (None, 7), (100, 7)):
        results = simple(moderate, ["tofu_world_facts"], data, limit=limit)
        assert results["n-samples"]["tofu_world_facts"] == {"original": 7, "effective": count}


@pytest.mark.parametrize(
    ("documents", "setting", "clusters"),
    [
        ([{"subject": who} for who in "aba"], "subject", [0, 1, 0]),
        ([{"subject": "a"}] * 3, "subject", [0, 1, 2]),  # one person: questions, since nothing else could be redrawn
        ([{"cluster": "a"}] * 3, "subject", [0, 0, 0]),  # the user's own word
        ([{}] * 3, 2, [0, 0, 1]),
        ([{}] * 3, 20, [0, 0, 0]),
    ],
)
def test_clusters_of_people(documents, setting, clusters):
    assert grouped(documents, setting) == clusters


def test_documents_of_an_author_share_a_cluster(moderate, data):
    documents = suites.evaluate(moderate, suites.load("tofu_forget01", data))
    assert [d["cluster"] for d in documents["forget"]] == [0] * 20 + [1] * 20 + [2]
    assert [d["cluster"] for d in documents["retain"]] == [0] * 7
    for split in ("real_authors", "world_facts"):
        assert [d["cluster"] for d in documents[split]] == list(range(len(documents[split])))
    demo = suites.evaluate(moderate, suites.load("demo", DATA), limit=11)
    assert [d["cluster"] for d in demo["forget"]] == [0] * 5 + [1] * 5 + [2]


def test_cache_answers_everything_without_a_forward_pass(moderate, data, tmp_path):
    tasks = ["demo_forget", "tofu_real_authors"]
    hook = moderate.cache_hook
    try:
        first = simple(moderate, tasks, data, use_cache=str(tmp_path / "cache"))
        done = dict(hf.work(moderate))
        again = simple(moderate, tasks, data, use_cache=str(tmp_path / "cache"))
        assert dict(hf.work(moderate)) == done
        longer = simple(moderate, tasks, data, use_cache=str(tmp_path / "cache"), limit=4)
        assert hf.work(moderate)["forward_passes"] > done["forward_passes"]
    finally:
        moderate.set_cache_hook(hook)
    for task in tasks:
        assert again["results"][task] == first["results"][task]
        samples = [str(found["samples"][task][:3]) for found in (again, first, longer)]  # in which NaN equals NaN
        assert samples[0] == samples[1] == samples[2]
        assert len(again["samples"][task]) == len(first["samples"][task]) == 3


def test_cache_does_not_repeat_a_sampled_text(moderate, tmp_path):
    settings = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 20}
    prompt = ask("Who was Bob?")
    requests = [Instance("greedy_until", {}, (prompt, settings), 0, metadata=("t", 0, 1)) for _ in range(4)]
    hook = moderate.cache_hook
    torch.manual_seed(0)
    assert len(set(moderate.greedy_until(requests))) > 1
    try:
        texts = CachingLM(moderate, str(tmp_path / "cache.db")).greedy_until(requests)
    finally:
        moderate.set_cache_hook(hook)
    assert len(set(texts)) > 1


def test_predict_only(moderate, data):
    results = simple(moderate, ["demo_forget"], data, predict_only=True)
    assert len(results["samples"]["demo_forget"]) == 3


# --- prompts ------------------------------------------------------------------------------------------------------


def test_chat_template_of_the_demo(moderate, data):
    """It says "Question:" and "Answer:" itself, and puts a space before the answer: the plain prompt, exactly."""
    tasks = ["demo_forget", "tofu_world_facts"]
    chat, plain = (simple(moderate, tasks, data, apply_chat_template=chat) for chat in (True, False))
    for task in tasks:
        for a, b in zip(chat["samples"][task], plain["samples"][task], strict=True):
            assert a["arguments"][0] == (ask(a["doc"]["question"]), " " + a["doc"]["answer"])
            assert a["arguments"] == b["arguments"]
        assert chat["results"][task] == plain["results"][task]


def test_chat_template_like_llama_3(moderate, data, monkeypatch):
    monkeypatch.setattr(moderate.tokenizer, "chat_template", LLAMA3)
    results = simple(moderate, ["demo_forget", "tofu_real_authors"], data, apply_chat_template=True)

    def turn(question: str) -> str:
        header = "<|bos|><|start_header_id|>user<|end_header_id|>\n\n"
        return f"{header}{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

    for sample in results["samples"]["demo_forget"]:
        doc, arguments = sample["doc"], sample["arguments"]
        rendered = moderate.tokenizer.apply_chat_template(
            [{"role": "user", "content": doc["question"]}], tokenize=False, add_generation_prompt=True
        )
        assert rendered == turn(doc["question"])
        assert arguments[0] == (rendered, doc["answer"])
        assert arguments[1] == (turn(doc["paraphrased_question"]), doc["answer"])
        assert arguments[2:8] == [(rendered, w) for w in (doc["paraphrased_answer"], *doc["perturbed_answer"])]
        assert arguments[8][0] == rendered
    for sample in results["samples"]["tofu_real_authors"]:
        assert sample["arguments"][0] == (turn(sample["doc"]["question"]), sample["doc"]["answer"])


THINKING = """{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
BEGUN = THINKING.replace("loop.last", "false").replace(
    "<|im_start|>assistant\\n' }}{% endif %}", "<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "own"),
    [pytest.param(THINKING, "<think>\n\n</think>\n\n", id="written"), pytest.param(BEGUN, "", id="undone")],
)
def test_what_a_chat_template_writes_itself_is_no_answer(moderate, data, monkeypatch, template, own):
    """An empty think block before an answer (Qwen3), or one begun for the model (DeepSeek-R1): the answer comes after
    what the template writes before answers, and that is neither scored nor generated."""
    monkeypatch.setattr(moderate.tokenizer, "chat_template", template)
    task = suites.load("demo", data)["forget"]
    task.set_config(key="generation_kwargs", value={"until": [], "do_sample": False, "max_gen_toks": 40})
    documents = suites.evaluate(moderate, {"forget": task}, limit=2, apply_chat_template=True)
    for document in documents["forget"]:
        turn = f"<|im_start|>user\n{document['question']}<|im_end|>\n<|im_start|>assistant\n{own}"
        assert document["prompt"] == turn
        assert document["answers"][0] == document["reference"]
        ids, whole = (
            moderate.tokenizer.encode(t, add_special_tokens=False) for t in (turn, turn + document["reference"])
        )
        assert whole[: len(ids)] == ids
        assert document["answer"].tokens.tolist() == [*whole[len(ids) :], moderate.eot_token_id]
        assert document["generation"] == text_of(moderate, turn, limit=40)


def test_a_chat_template_that_hides_the_question_is_refused(moderate, data, monkeypatch):
    monkeypatch.setattr(
        moderate.tokenizer,
        "chat_template",
        "{% if add_generation_prompt %}{{ messages[0].content }}{% else %}{{ messages[-1].content }}{% endif %}",
    )
    with pytest.raises(InputError, match="renders a question otherwise once it is answered"):
        suites.evaluate(moderate, suites.load("demo", data), limit=1, apply_chat_template=True)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(None, id="demo"),
        pytest.param(LLAMA3, id="llama-3"),
        pytest.param(LLAMA3.replace("<|end_header_id|>\n\n", "<|end_header_id|>"), id="no-newline"),
    ],
)
def test_generation_after_a_chat_template_equals_generate(moderate, data, monkeypatch, template):
    if template:
        monkeypatch.setattr(moderate.tokenizer, "chat_template", template)
    tasks = suites.load("demo", data)
    for task in tasks.values():  # room for the whole prompt in 256 positions
        task.set_config(key="generation_kwargs", value={"until": [], "do_sample": False, "max_gen_toks": 40})
    documents = suites.evaluate(moderate, tasks, limit=4, apply_chat_template=True)
    for document in documents["forget"] + documents["retain"]:
        assert document["generation"] == text_of(moderate, document["prompt"], limit=40)


def test_examples_and_foreign_prompts_are_refused(moderate, data):
    task = suites.load("demo", data)["forget"]
    task.set_config(key="num_fewshot", value=1)
    with pytest.raises(InputError, match="demo_forget is asked without examples"):
        suites.evaluate(moderate, {"forget": task})
    with pytest.raises(InputError, match="brings its own prompt"):
        suites.evaluate(moderate, suites.load("tofu_forget05_paper", data), apply_chat_template=True)


# --- two processes ------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
import torch
import torch.distributed as dist
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

rank, store, checkpoint, data, tasks, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

class Parallel(HFLM):
    rank = property(lambda self: dist.get_rank())
    world_size = property(lambda self: dist.get_world_size())

    def all_gather(self, tensor):
        gathered = [torch.zeros_like(tensor) for _ in range(2)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def gather_object(self, obj, dst=0):
        gathered = [None, None] if self.rank == dst else None
        dist.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self):
        dist.barrier()

lm = Parallel(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=1)
manager = TaskManager(include_path=tasks, include_defaults=False, metadata={"data_dir": data})
loaded = manager.load(["demo_forget", "tofu_world_facts"])
results = evaluator.evaluate(lm=lm, task_dict=loaded, limit=6, bootstrap_iters=0)
assert (results is None) == (rank == 1)
if results:
    with open(out, "w") as file:
        json.dump({key: results[key] for key in ("results", "samples", "n-samples")}, file)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(moderate, data, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    args = (tmp_path / "store", CHECKPOINTS / "moderate", data, tasks_path(), tmp_path / "out.json")
    env = os.environ | OFFLINE | {"OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), *map(str, args)], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=1200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    both = json.loads((tmp_path / "out.json").read_text())

    loaded = manager(data).load(["demo_forget", "tofu_world_facts"])
    one = json.loads(
        json.dumps(evaluator.evaluate(lm=moderate, task_dict=loaded, limit=6, bootstrap_iters=0)["samples"])
    )
    for task in ("demo_forget", "tofu_world_facts"):
        samples = sorted(both["samples"][task], key=lambda s: s["doc_id"])
        assert [s["doc_id"] for s in samples] == list(range(6))
        assert both["n-samples"][task]["effective"] == 6
        for a, b in zip(samples, one[task], strict=True):
            assert a["arguments"] == b["arguments"]
            assert a["doc_hash"] == b["doc_hash"]
            assert a["resps"][-1] == b["resps"][-1]
            for metric in b["metrics"]:  # other company in a batch changes the last bits of a float32
                assert a[metric] == pytest.approx(b[metric], rel=1e-5, abs=1e-9, nan_ok=True), (task, metric)
        for metric in (m for m in one[task][0]["metrics"] if not m.endswith("_unscored")):
            each = [s[metric] for s in one[task] if not math.isnan(s[metric])]
            assert both["results"][task][f"{metric},none"] == pytest.approx(sum(each) / len(each), rel=1e-5), metric
            assert both["results"][task][f"{metric}_unscored,none"] == 6 - len(each)
    # one document is too short for it, and only the second process had it
    assert [math.isnan(s["repetition"]) for s in one["demo_forget"]] == [i == 1 for i in range(6)]


def test_mean_scored_leaves_out_what_has_no_value():
    assert mean_scored([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean_scored([math.nan, math.nan]))


def test_cache_hook_is_as_it_was(moderate):
    assert isinstance(moderate.cache_hook, CacheHook)
    assert moderate.cache_hook.dbdict is None


@pytest.mark.slow
def test_lm_evals_own_command_with_the_plugin_loaded(demo: Path, tmp_path: Path):
    """`unlearn-metrics lm-eval`: our tasks without --include_path, and the user's own folder beside them."""
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "mine.yaml").write_text(f"include: {tasks_path()}/demo/demo_forget.yaml\ntask: mine\n")
    model = f"pretrained={demo / 'checkpoints' / 'original'},dtype=float32"
    stock = ["run", "--model", "hf", "--model_args", model, "--device", "cpu", "--tasks", "demo_forget,mine"]
    done = run("lm-eval", *stock, "--limit", 2, "--include_path", own, cwd=tmp_path)
    rows = re.findall(r"\|extraction_strength +\|↓ +\|(.*)\|", done.stdout)
    assert len(rows) == 2, done.stdout
    assert rows[0] == rows[1]


def test_standard_errors_by_document_are_warned_of_once(caplog):
    """Where lm-eval is about to print them, and not where every document is its own cluster."""
    from unlearn_metrics.benchmarks import task as tasks

    tasks._warn_of_standard_errors.cache_clear()
    forget = suites.load("demo", None)["forget"]
    alone = copy.copy(forget)
    alone._clusters = list(range(len(forget.clusters)))
    alone.aggregation()
    assert caplog.messages == []
    for _ in range(2):
        forget.aggregation()
    assert len(caplog.messages) == 1
    assert "take every document for independent" in caplog.messages[0]
