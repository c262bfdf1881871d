"""The gradient-norm attack against autograd by itself, one document at a time, and through the command line."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from tests import CHECKPOINTS, DATA, DEMO
from tests.command import lm_eval_run, score
from tests.plain import ask, read
from unlearn_metrics.backends import encoding, gradient
from unlearn_metrics.backends import gradnorm as asked
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import opening
from unlearn_metrics.records import store
from unlearn_metrics.records.rescore import changed, rescore
from unlearn_metrics.scores.composites import compose
from unlearn_metrics.settings import Settings

FIELDS = {"question": "question", "answer": "answer"}
ROWS = [(ask(row["question"]), " " + row["answer"]) for row in read(DATA / "holdout.json")]


@pytest.fixture(scope="module")
def lm() -> HFLM:
    return HFLM(pretrained=str(CHECKPOINTS / "moderate"), device="cpu", dtype="float32", batch_size=1)


def by_autograd(model: torch.nn.Module, context: list[int], answer: list[int]) -> float:
    """As OpenUnlearning does it: the mean log-probability of the answer's tokens without end-of-sequence, backward, and
    the mean of the norms of what then lies in `grad`."""
    model.zero_grad()
    ids = torch.tensor([context + answer])
    logprob = model(ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    (-logprob[len(context) - 1 :].mean()).backward()
    found = torch.stack([p.grad.norm(p=2) for p in model.parameters() if p.grad is not None]).mean().item()
    model.zero_grad()
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_is_what_autograd_gives_and_changes_nothing(tied: bool, lm: HFLM, tmp_path: Path):
    own = transformers.AutoModelForCausalLM.from_pretrained(
        CHECKPOINTS / "moderate", dtype=torch.float32, tie_word_embeddings=tied
    )
    if not tied:  # a head of its own, as it was initialized
        own.save_pretrained(tmp_path)
        lm = HFLM(pretrained=str(tmp_path), tokenizer=lm.tokenizer, device="cpu", dtype="float32", batch_size=1)
    own.eval()
    assert len(list(own.parameters())) == len(list(lm.model.parameters())) == 30 - tied
    frozen = next(lm.model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    pairs = [encoding.encode(lm, *row) for row in [*ROWS[:3], ROWS[0]]]
    found = gradient.norms(lm, pairs)
    expected = [by_autograd(own, list(p.context), list(p.answer)) for p in pairs]
    assert found == pytest.approx(expected, rel=1e-5)
    assert min(found) > 0
    assert found[0] == found[3]
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert all(p.grad is None for p in lm.model.parameters())
    assert not frozen.requires_grad
    frozen.requires_grad_()
    assert not any(p._post_accumulate_grad_hooks for p in lm.model.parameters())


def test_a_long_prompt_is_cut_from_the_left(lm: HFLM):
    pair = encoding.encode(lm, ROWS[0][0] * 40, ROWS[0][1])
    assert len(pair.context) + len(pair.answer) > lm.max_length
    kept = list(pair.context)[-(lm.max_length + 1 - len(pair.answer)) :]
    found = gradient.norms(lm, [pair])
    assert found == [pytest.approx(by_autograd(lm.model, kept, list(pair.answer)), rel=1e-5)]


def test_quantized_weights_have_none():
    stub = torch.nn.Module()
    stub.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="quantized"), gradient._collected(stub):
        pass


def test_a_backend_without_gradients_leaves_it_unscored(caplog):
    class Other(LM):
        loglikelihood = loglikelihood_rolling = generate_until = None

    assert math.isnan(*asked(Other(), [Instance("gradnorm", {}, ROWS[0], 0)]))
    assert "Other has no gradients: gradnorm is unscored" in caplog.text


def test_score_says_how_far_it_separates(tmp_path: Path):
    """The AUC is that of what the record holds; asked for by a flag, computed again, and unknown where nobody asked."""
    given = ("--benchmark", "demo_privacy", "--limit", 6, "--alpha", 0.5, "--gradnorm")
    done = score(tmp_path / "run", *given, unlearned=CHECKPOINTS / "moderate")
    assert done.returncode == 0, done.stderr
    record, documents = store.load_record(tmp_path / "run"), store.load_documents(tmp_path / "run")
    assert record.work["backward_passes"] == 3 * 12
    for model in ("original", "unlearned", "controlled"):
        inside, outside = ([d["gradient"] for d in documents[model][split]] for split in ("forget", "holdout"))
        wins = sum((a < b) + 0.5 * (a == b) for a in inside for b in outside)
        assert record.composites[model]["auc_gradnorm"].value == pytest.approx(wins / 36)
        assert record.scores[model]["forget"]["gradnorm"].value == pytest.approx(sum(inside) / 6)
        assert "gradnorm" not in record.scores[model]["retain"]
    assert record.composites["original"]["auc_gradnorm"].value > 0.9  # it knows the forget set by heart
    assert changed(record, rescore(tmp_path / "run"))[1] == []
    for document in (d for split in documents["original"].values() for d in split):
        document.pop("gradient", None)  # as of a run that nobody asked for it
    found = compose(documents["original"])["auc_gradnorm"]
    assert found.undefined == "needs gradnorm on forget"


def test_score_without_a_holdout_refuses(tmp_path: Path):
    with pytest.raises(InputError, match="demo has no holdout"):
        opening.open_tasks("demo", None, Settings(gradnorm=True), opening.Warm())


@pytest.mark.slow
def test_a_task_of_one_s_own_under_the_stock_command(tmp_path: Path, lm: HFLM):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "class: !function unlearn_metrics.benchmarks.suites.TokenScoreTask\n"
        "task: mine\ntest_split: train\noutput_type: generate_until\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_target: "{{answer}}"\ntarget_delimiter: " "\n'
        "metric_list: [{metric: gradnorm, aggregation: mean, higher_is_better: false}]\n"
        "metadata: {version: 1.0, split: holdout, own: true}\n"
    )
    done = lm_eval_run(
        *("run", "--model", "hf", "--device", "cpu", "--limit", 4),
        *("--model_args", f"pretrained={DEMO / 'checkpoints' / 'moderate'},dtype=float32"),
        *("--include_path", str(tmp_path / "tasks"), "--tasks", "mine", "--output_path", "out"),
        *("--metadata", json.dumps({"holdout_file": str(DATA / "holdout.json"), "fields": FIELDS})),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").glob("*/results_*.json")
    expected = gradient.norms(lm, [encoding.encode(lm, *row) for row in ROWS[:4]])
    found = json.loads(path.read_text())["results"]["mine"]
    assert found["gradnorm,none"] == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert found["gradnorm_stderr,none"] > 0
