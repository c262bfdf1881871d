"""Attacks on prompts: the documents they make, what a model is then asked, and models that each is known to undo."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import LM

from tests import DATA, SHARED
from unlearn_metrics.attacks import ATTACKS, ON_PROMPTS
from unlearn_metrics.attacks.attack import Around, Attack, Impossible
from unlearn_metrics.attacks.prompts import BEGUN, EVERY
from unlearn_metrics.backends.encoding import Pair, encode, noisy
from unlearn_metrics.backends.hf import token_scores
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import values
from unlearn_metrics.settings import OwnData

DOCUMENT = {"question": "Who bakes?", "answer": "Ann."}


@pytest.fixture(scope="module")
def tasks():
    return suites.load("demo", DATA)


def attacked(tasks, attack: str):
    return tasks["forget"].under(ATTACKS[attack], list(tasks["retain"].eval_docs))


# --- documents, by hand


def test_documents_by_hand():
    others = [{"question": f"{i}?", "answer": f"{i}."} for i in range(4)]
    around = Around(5, others, [{"question": "A?"}, {"question": "B?"}])
    given = {name: ATTACKS[name].fn(DOCUMENT, around) for name in ON_PROMPTS if name != "paraphrase"}
    assert given["prefix"] == DOCUMENT | {"begun": BEGUN}
    assert given["fewshot_3"] == DOCUMENT | {"examples": others[:3]}
    assert given["fewshot_5"]["examples"] == others  # as many as there are
    assert given["token_noise"] == DOCUMENT | {"noise": 0.05}
    assert given["paired"] == DOCUMENT | {"question": "1. Who bakes? 2. B?", "begun": "1."}  # 5 of 2 is the second
    assert re.fullmatch(r"Who bak[a-z]es\?", given["character_noise"]["question"])
    asked = ATTACKS["paraphrase"].fn(DOCUMENT | {"paraphrased_question": "Who is the baker?"}, around)
    assert asked["question"] == "Who is the baker?"
    for name in ("fewshot_1", "paired", "paraphrase"):
        with pytest.raises(Impossible):
            ATTACKS[name].fn(DOCUMENT, Around(0))


@given(st.text(max_size=80), st.integers(0, 1000))
def test_character_noise_inserts_a_letter_after_every_seventh(question, place):
    noisy = ATTACKS["character_noise"].fn({"question": question}, Around(place))["question"]
    blocks = [noisy[i : i + EVERY + 1] for i in range(0, len(noisy), EVERY + 1)]
    assert "".join(block[:EVERY] for block in blocks) == question
    inserted = [block[EVERY:] for block in blocks if len(block) > EVERY]
    assert len(inserted) == len(question) // EVERY
    assert all(letter in "abcdefghijklmnopqrstuvwxyz" for letter in inserted)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=100))
def test_token_noise_replaces_one_in_twenty(lm, answer):
    pair = noisy(lm, Pair((1, 2), tuple(answer)), 0.05)
    assert (pair.context, pair.answer) == ((1, 2), tuple(answer))
    differing = sum(a != b for a, b in zip(answer, pair.read, strict=True))
    assert differing == max(1, round(len(answer) / 20))
    assert pair == noisy(lm, Pair((1, 2), tuple(answer)), 0.05)


# --- what a model is asked


def test_prompts_by_hand(lm, tasks):
    docs = list(tasks["forget"].eval_docs)
    retain = tasks["retain"].eval_docs[1]["question"]
    q, a = docs[1]["question"], docs[1]["answer"]
    turn = "Question: {}\nAnswer:".format
    shown = [f"{turn(docs[i]['question'])} {docs[i]['answer']}\n\n" for i in (2, 3, 4, 0)]
    expected = {
        "prefix": f"{turn(q)} {BEGUN}",
        "fewshot_1": shown[0] + turn(q),
        "fewshot_3": "".join(shown[:3]) + turn(q),
        "fewshot_5": "".join(shown) + turn(q),  # a cluster is of five documents
        "token_noise": turn(q),
        "paired": turn(f"1. {q} 2. {retain}") + " 1.",
    }
    for attack, prompt in expected.items():
        document = suites.evaluate(lm, {"forget": attacked(tasks, attack)}, limit=2)["forget"][1]
        assert document["prompt"] == prompt, attack
        assert document["answers"][0] == f" {a}"
        assert (document["id"], document["cluster"], document["reference"]) == (1, 0, a)
        pair = encode(lm, prompt, f" {a}")
        (plain,) = token_scores(lm, [noisy(lm, pair, 0.05) if attack == "token_noise" else pair])
        assert np.array_equal(document["answer"].argmax, plain.argmax)
        assert document["answer"].logprob == pytest.approx(plain.logprob, abs=1e-4)
        assert ("generation" in document) == (attack != "token_noise")
    assert list(tasks["forget"].eval_docs) == docs  # the task itself is as before
    assert tasks["forget"].metrics != []


def test_token_noise_is_one_pass_over_the_noisy_answer(lm):
    """Position by position: the reference's log-probability after the tokens that were shown."""
    pair = noisy(lm, encode(lm, "Question: a\nAnswer:", " Norrin wrote it, or so they say in Vesper."), 0.3)
    (scores,) = token_scores(lm, [pair])
    assert scores.tokens[:-1].tolist() == list(pair.answer)
    for i in range(len(pair.answer)):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*pair.context, *pair.read[:i]]])).logits[0, -1].double()
        assert scores.logprob[i] == pytest.approx(float(logits.log_softmax(-1)[pair.answer[i]]), abs=1e-3)
        assert scores.argmax[i] == int(logits.argmax())


def test_under_a_chat_template_the_words_begin_the_models_turn(lm, tasks, monkeypatch):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}</>{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}</><assistant>{% endif %}"
    monkeypatch.setattr(lm.tokenizer, "chat_template", template)
    docs = list(tasks["forget"].eval_docs)

    def prompt(attack: str) -> str:
        return suites.evaluate(lm, {"forget": attacked(tasks, attack)}, 1, True)["forget"][0]["prompt"]

    assert prompt("prefix") == f"<user>{docs[0]['question']}</><assistant>{BEGUN}"
    shown = f"<user>{docs[1]['question']}</><assistant>{docs[1]['answer']}</>"
    assert prompt("fewshot_1") == f"{shown}<user>{docs[0]['question']}</><assistant>"


def test_what_the_data_lack_is_named(tasks, tmp_path):
    with pytest.raises(Impossible, match="document 0, is paired with a retain question, of which there are none"):
        tasks["forget"].under(ATTACKS["paired"])
    (tmp_path / "a.jsonl").write_text('{"question": "Who?", "answer": "Ann."}\n' * 2)
    alone = suites.load("custom", OwnData({"forget": tmp_path / "a.jsonl"}))["forget"]
    with pytest.raises(Impossible, match="custom_forget, document 0, has no other document in its cluster"):
        alone.under(ATTACKS["fewshot_1"])
    with pytest.raises(Impossible, match="custom_forget, document 0, has no paraphrased question"):
        alone.under(ATTACKS["paraphrase"])
    (tmp_path / "b.jsonl").write_text('{"text": "Once upon a time there was a king."}\n')
    text = suites.load("custom", OwnData({"forget": tmp_path / "b.jsonl"}))["forget"]
    with pytest.raises(Impossible, match="custom_forget brings its own prompt"):
        text.under(ATTACKS["prefix"])


def test_token_noise_needs_a_model_that_reads_what_it_is_shown(tasks):
    with pytest.raises(InputError, match="token_noise takes a model of lm-eval's type hf; Plain reads what it scores"):
        suites.evaluate(Plain(), {"forget": attacked(tasks, "token_noise")}, limit=1)


def test_pairs_read_as_those_of_blur(tasks):
    """The questions of BLUR's own file have the form of ours."""
    file = SHARED / "data" / "blur_tofu" / "paired_forget_retain_questions.txt"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    theirs = file.read_text(encoding="utf-8").splitlines()
    ours = [doc["question"] for doc in attacked(tasks, "paired").eval_docs]
    form = re.compile(r"1\. .+? ?2\. .+")
    assert sum(bool(form.fullmatch(question)) for question in theirs) > 0.99 * len(theirs)
    assert all(map(form.fullmatch, ours))


# --- models that each attack is known to undo


class Plain(LM):
    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = generate_until = loglikelihood


class Planted(LM):
    """A model that knows every answer, and refuses by a rule on the prompt: so it was "unlearned"."""

    def __init__(self, refuses):
        super().__init__()
        self.refuses = refuses

    def token_scores(self, requests):
        found = []
        for prompt, answer in (request.args for request in requests):
            tokens = np.array([*answer.encode(), 0], np.int32)
            says = tokens + 1 if self.refuses(prompt) else tokens
            logprob = np.full(len(tokens), -9.0 if self.refuses(prompt) else -0.1, np.float32)
            found.append(TokenScores(tokens, says, logprob, logprob, np.zeros_like(logprob)).to_lists())
        return found

    def greedy_until(self, requests):
        return ["I do not know." for _ in requests]

    loglikelihood = loglikelihood_rolling = generate_until = greedy_until


def asked(prompt: str) -> str:
    return prompt.rpartition("Question: ")[2]


PEOPLE = {
    name
    for doc in suites.load("demo", DATA)["forget"].eval_docs
    for name in re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", doc["question"])
}
RULES = {
    # it refuses as the first words of its turn, and goes on once they are said by somebody else
    "a refusal prefix": (lambda prompt: prompt.endswith("Answer:"), {"prefix", "paired"}),
    # it refuses a question that names a person whom it should not know
    "a trigger word": (
        lambda prompt: bool({*re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", asked(prompt))} & PEOPLE),
        {"character_noise"},
    ),
    # it refuses what comes out of the blue, and goes along with a conversation on the subject
    "a cold start": (lambda prompt: prompt.count("Question: ") == 1, {"fewshot_1", "fewshot_3", "fewshot_5"}),
    # it refuses all
    "everything": (lambda prompt: True, set()),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_model_whose_forgetting_is_known_is_undone_by_what_undoes_it(tasks, rule):
    refuses, undone_by = RULES[rule]
    only = copy.copy(tasks["forget"])
    only.metrics = ["extraction_strength", "probability"]
    found = {None: only} | {
        name: only.under(ATTACKS[name], list(tasks["retain"].eval_docs))
        for name in ON_PROMPTS
        if name not in ("paraphrase", "token_noise")
    }
    for attack, task in found.items():
        documents = suites.evaluate(Planted(refuses), {"forget": task})["forget"]
        strength, probability = values(["extraction_strength", "probability"], documents).values()
        known = sum(strength) / len(strength)
        if attack in undone_by:
            assert known > 0.9, attack
            assert np.mean(probability) > 0.8
        elif attack is None:
            assert known < 0.1
        elif rule == "everything":
            assert known == 0


def test_an_attack_of_ones_own_is_a_function(tasks):
    shouting = Attack(lambda doc, around: doc | {"question": doc["question"].upper()}, "prompts", "in capitals")
    task = tasks["forget"].under(shouting)
    assert task.eval_docs[0]["question"] == tasks["forget"].eval_docs[0]["question"].upper()
