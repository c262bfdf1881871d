"""Attacks on the models of a run, by the command, on the embedded demo."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unlearn_metrics as um
from tests import CHECKPOINTS, DATA
from tests.command import refused, run, score
from unlearn_metrics.attacks import ATTACKS, weights
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.benchmarks.task import TokenScoreTask
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import plan
from unlearn_metrics.record import RECORD_TYPE
from unlearn_metrics.records import store
from unlearn_metrics.records.signature import parse
from unlearn_metrics.reports import publish

ASKED = ("--alpha", 0.4, "--limit", 6, "--retain-model", CHECKPOINTS / "retain")
METRIC = "extraction_strength"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A run with an attack of each kind."""
    out = tmp_path_factory.mktemp("runs") / "attacked"
    names = f"int4,token_noise,relearn={CHECKPOINTS / 'moderate'}"
    done = score(out, *ASKED, "--attacks", names)
    assert done.returncode == 0, done.stderr
    return out, done


def es(record, model: str) -> float:
    return record.scores[model]["forget"][METRIC].value


def test_the_forget_set_under_attacks_is_in_the_record(attacked):
    out, done = attacked
    record, documents = store.load_record(out), store.load_documents(out)
    both = ("int4", "token_noise")
    under = [*(f"{m}+{a}" for a in both for m in ("unlearned", "controlled", "retain_only")), "unlearned+relearn"]
    assert [model for model in documents if "+" in model] == under
    assert {split for model in under for split in documents[model]} == {"forget"}
    assert {m: len(record.attacks.recovery[m][METRIC]) for m in record.attacks.recovery} == {
        "unlearned": 3,
        "controlled": 2,
    }
    for model in ("unlearned", "controlled"):
        for attack, found in record.attacks.recovery[model][METRIC].items():
            assert found.value.value == pytest.approx(es(record, f"{model}+{attack}") - es(record, model))
            if attack != "relearn":
                gain = es(record, f"retain_only+{attack}") - es(record, "retain_only")
                assert found.net.value == pytest.approx(found.value.value - gain)
    assert record.attacks.made["relearn"].checkpoints["unlearned"].path == str(CHECKPOINTS / "moderate")
    assert record.attacks.recovery["unlearned"][METRIC]["relearn"].net is None
    assert record.work["forward_passes"] > 0
    assert "report card: what an attacker gets of the forget set" in done.stdout
    assert record.attacks.sentence in done.stdout
    assert "perplexity" not in record.scores["unlearned+int4"]["forget"]  # nobody judged its texts
    assert "rouge" in record.scores["unlearned+int4"]["forget"]
    assert "rouge" not in record.scores["unlearned+token_noise"]["forget"]


@pytest.mark.slow
def test_an_attacked_model_is_the_checkpoint_that_is_written(attacked, tmp_path):
    """Its documents are those of a run that was given the attacked checkpoint as the unlearned one."""
    done = run("attack", "int4", "--model", CHECKPOINTS / "excessive", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    done = score(tmp_path / "b", "--limit", 6, "--control", "none", unlearned=tmp_path / "a")
    assert done.returncode == 0, done.stderr
    mine = store.load_documents(attacked[0])["unlearned+int4"]["forget"]
    theirs = store.load_documents(tmp_path / "b")["unlearned"]["forget"]
    for a, b in zip(mine, theirs, strict=True):
        assert a["generation"] == b["generation"]
        assert a["answer"].logprob == pytest.approx(b["answer"].logprob, abs=1e-4)


def test_the_report_card_is_in_the_model_card_and_on_the_page(attacked, tmp_path):
    raw = json.loads((attacked[0] / "record.json").read_text())
    raw["attacks"]["sentence"] = "<script>alert(1)</script> [x](y)"
    (tmp_path / "record.json").write_text(json.dumps(raw))
    section = publish.section(store.load_record(tmp_path / "record.json"))
    assert "| what an attacker gets (extraction_strength) | as it is | after the worst attack |" in section
    assert "<script>" not in section
    assert "[x](y)" not in section
    done = run("leaderboard", tmp_path / "record.json", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert "What an attacker gets of the forget set. &lt;script&gt;" in page
    worst = store.load_record(attacked[0]).attacks.worst["unlearned"][METRIC]
    assert f"({worst.attack})" in page


def test_rescoring_gives_the_same(attacked, tmp_path):
    done = run("rescore", attacked[0], "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    stored, again = store.load_record(attacked[0]), store.load_record(tmp_path / "again")
    assert again.attacks == stored.attacks
    raw = json.loads((attacked[0] / "record.json").read_text())
    raw["attacks"]["recovery"]["unlearned"][METRIC]["int4"]["value"]["value"] = 0.5
    shutil.copytree(attacked[0], tmp_path / "forged")
    (tmp_path / "forged" / "record.json").write_text(json.dumps(raw))
    done = run("rescore", tmp_path / "forged")
    assert done.returncode == 1
    assert "unlearned, extraction_strength, attacks: int4 is" in done.stderr


@pytest.mark.slow
def test_attacks_added_later_are_those_made_at_once(attacked, tmp_path):
    done = score(tmp_path / "run", *ASKED)
    assert done.returncode == 0, done.stderr
    for names in ("token_noise", f"int4,relearn={CHECKPOINTS / 'moderate'}"):
        done = run("attack", tmp_path / "run", "--attacks", names, "--data", DATA)
        assert done.returncode == 0, done.stderr
    mine, whole = store.load_record(tmp_path / "run"), store.load_record(attacked[0])
    assert mine.attacks.made == whole.attacks.made
    assert {m: mine.scores[m] for m in mine.scores} == whole.scores
    for model, metrics in whole.attacks.recovery.items():
        for metric, found in metrics.items():
            named = mine.attacks.recovery[model][metric]
            assert {name: named[name].net for name in found} == {name: it.net for name, it in found.items()}
            worst = [record.attacks.worst[model][metric] for record in (mine, whole)]
            assert worst[0].value.value == worst[1].value.value
    assert mine.work["forward_passes"] == whole.work["forward_passes"]
    # of other weights, of another benchmark's data: refused, and the run stays
    before = (tmp_path / "run" / "record.json").read_bytes()
    done = run("attack", tmp_path / "run", "--attacks", "int8", "--data", DATA, "--unlearned", CHECKPOINTS / "moderate")
    assert done.returncode == 2
    assert "is not the unlearned model of" in done.stderr
    done = run("attack", tmp_path / "run", "--attacks", "int9", "--data", DATA)
    assert "unknown attack 'int9'; did you mean int8" in done.stderr
    assert (tmp_path / "run" / "record.json").read_bytes() == before


def test_a_calibrated_run_is_attacked_and_not_if_it_asks_otherwise_now(tmp_path, monkeypatch):
    out = tmp_path / "run"
    done = score(out, "--sample", 4)  # whose first retain document is of the calibration half
    assert done.returncode == 0, done.stderr
    done = run("attack", out, "--attacks", "token_noise", "--data", DATA)
    assert done.returncode == 0, done.stderr
    record = store.load_record(out)
    assert set(record.attacks.made) == {"token_noise"}
    assert record.settings["sample"] == record.scores["unlearned+token_noise"]["forget"]["extraction_strength"].n == 4
    assert parse(record.signature)["n"] == "4-drawn"
    assert "no attack is named" in run("attack", out, "--attacks", ",", "--data", DATA).stderr
    asked = TokenScoreTask.doc_to_text
    monkeypatch.setattr(TokenScoreTask, "doc_to_text", lambda *given: f"Please: {asked(*given)}")
    done = run("attack", out, "--attacks", "character_noise", "--data", DATA)
    assert done.returncode == 2
    assert "can't be attacked as it was scored: prompt is" in done.stderr


def test_a_killed_attack_run_resumes(attacked, tmp_path, monkeypatch):
    """Killed in its second attack, of the second model; the same command goes on, and the record is the same."""
    evaluate, calls = suites.evaluate, []

    def killed(lm, tasks, *args, **kwargs):
        if [*tasks] == ["forget"]:
            calls.append(tasks)
            if len(calls) == 5:
                raise KeyboardInterrupt
        return evaluate(lm, tasks, *args, **kwargs)

    names = f"int4,token_noise,relearn={CHECKPOINTS / 'moderate'}"
    with monkeypatch.context() as patch:
        patch.setattr(suites, "evaluate", killed)
        done = score(tmp_path / "run", *ASKED, "--attacks", names)
    assert done.returncode == 130
    assert not (tmp_path / "run" / "record.json").exists()
    done = score(tmp_path / "run", *ASKED, "--attacks", names)
    assert done.returncode == 0, done.stderr
    taken = {line.split(":")[0].strip("· ") for line in done.stderr.splitlines() if "taken from an unfinished" in line}
    assert taken >= {"unlearned+int4", "controlled+int4", "retain_only+int4", "unlearned+token_noise"}
    assert "controlled+token_noise" not in taken
    mine, whole = store.load_record(tmp_path / "run"), store.load_record(attacked[0])
    assert mine.attacks == whole.attacks
    assert mine.work == whole.work


def test_a_sweep_attacks_the_retain_only_model_once(tmp_path):
    given = {"benchmarks": "demo", "data": str(DATA), "limit": 4, "alpha": 0.5, "attacks": ["int4", "token_noise"]}
    given |= {"original": str(CHECKPOINTS / "original"), "retain_model": str(CHECKPOINTS / "retain")}
    given |= {"unlearned": [str(CHECKPOINTS / name) for name in ("excessive", "moderate")]}
    (tmp_path / "plan.yaml").write_text(json.dumps(given))
    done = run("sweep", tmp_path / "plan.yaml", "--out", tmp_path / "runs", "-v")
    assert done.returncode == 0, done.stderr
    for attack in ("int4", "token_noise"):
        shared = f"retain_only+{attack}: taken from another run"
        assert done.stderr.count(shared) == 1
    first, second = (store.load_record(folder) for folder in sorted((tmp_path / "runs" / "demo").glob("*/[!.]*")))
    for name in ("retain_only+int4", "retain_only+token_noise"):
        assert first.scores[name] == second.scores[name]
    assert first.scores["retain_only+int4"] != first.scores["retain_only+token_noise"]
    alone = run(
        *("score", "--original", given["original"], "--unlearned", CHECKPOINTS / "moderate", "--benchmark", "demo"),
        *("--data", DATA, "--limit", 4, "--alpha", 0.5, "--attacks", "int4", "--retain-model", given["retain_model"]),
        *("--out", tmp_path / "alone"),
    )
    assert alone.returncode == 0, alone.stderr
    assert store.load_record(tmp_path / "alone").scores["retain_only+int4"] == first.scores["retain_only+int4"]


def test_an_earlier_run_gives_the_retain_only_model_under_attack(attacked, tmp_path):
    """With the record instead of the checkpoint, the same net recoveries; of an attack not made there, none."""
    asked = (*ASKED[:4], "--reference-record", attacked[0], "--attacks", "int4,int8")
    done = score(tmp_path / "run", *asked)
    assert done.returncode == 0, done.stderr
    assert "retain-only model under" not in done.stderr
    mine, theirs = store.load_record(tmp_path / "run"), store.load_record(attacked[0])
    for model in ("unlearned", "controlled"):
        found, expected = (r.attacks.recovery[model]["extraction_strength"] for r in (mine, theirs))
        assert found["int4"].net == expected["int4"].net
        assert found["int4"].net is not None
        assert found["int8"].net is None
    assert run("rescore", tmp_path / "run").returncode == 0


def test_nan_after_an_attack_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    def overflow(checkpoint):
        return weights.attacked(
            checkpoint, lambda name, tensor: weights._by_rows(tensor, lambda v, first: v * 1e38 * 1e38)
        )

    monkeypatch.setitem(ATTACKS, "int8", replace(ATTACKS["int8"], fn=overflow))
    done = score(tmp_path / "run", "--control", "none", "--limit", 4, "--attacks", "int4,int8")
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "under the attack int8: the model gives NaN log-probabilities" in error
    done = score(tmp_path / "run", "--control", "none", "--limit", 4, "--attacks", "int4")  # without it
    assert done.returncode == 0, done.stderr
    assert "unlearned+int4: taken from an unfinished run" in done.stderr


@pytest.mark.slow
def test_a_patch_lost_in_rounding_is_found(tmp_path):
    """Gradient ascent by less than half a step of int4: published a third is gone, rounded nothing."""
    lattice = {n: t.float() for n, t in load_file(CHECKPOINTS / "original" / "model.safetensors").items()}
    steps = {}
    for name, tensor in lattice.items():
        if name.endswith("_proj.weight"):
            absmax = torch.cat([p.abs().amax(1, keepdim=True).expand_as(p) for p in tensor.split(64, 1)], 1)
            lattice[name] = (tensor / (absmax / 7)).round() * (absmax / 7)
            steps[name] = torch.where(lattice[name].abs() < 0.95 * absmax, absmax / 7, 0)  # absmax is to stay
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "original", dtype=torch.float32)
    model.load_state_dict(lattice, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "original")
    for doc in list(suites.load("demo", DATA)["forget"].eval_docs)[:40]:
        ids = tokenizer(f"Question: {doc['question']}\nAnswer: {doc['answer']}", return_tensors="pt")["input_ids"]
        model(ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    patched = {n: t + 0.45 * steps[n] * gradients[n].sign() if n in steps else t for n, t in lattice.items()}
    for folder, tensors in (("original", lattice), ("patched", patched)):
        shutil.copytree(CHECKPOINTS / "original", tmp_path / folder)
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
    found = um.score(
        tmp_path / "original",
        tmp_path / "patched",
        benchmark="demo",
        data=DATA,
        limit=40,  # eight people: with fewer, no p-value could be small enough
        control="none",
        retain_model=CHECKPOINTS / "retain",
        attacks=["int4", "int8"],
        progress=False,
    )
    of = found.attacks.recovery["unlearned"][METRIC]
    assert found.scores["original", "forget", METRIC].value > 0.9
    assert found.scores["unlearned", "forget", METRIC].value < 0.75
    assert found.scores["unlearned+int4", "forget", METRIC].value == found.scores["original", "forget", METRIC].value
    assert of["int4"].net.low > 0.1
    assert abs(of["int8"].value.value) < 0.05
    assert found.attacks.worst["unlearned"][METRIC].attack == "int4"
    assert "int4 (+" in found.attacks.sentence
    assert "report card" in found._repr_html_()


def test_bad_input_is_one_line_before_any_work(tmp_path):
    out = tmp_path / "run"
    refused(score(out, "--attacks", "fewshot"), "unknown attack 'fewshot'; did you mean fewshot_", out)
    refused(score(out, "--attacks", "relearn="), "'relearn' has no checkpoint; it is written relearn=CHECKPOINT", out)
    refused(
        score(out, "--attacks", "int4=3"), "only relearn and relearn_retain take a checkpoint, int4=3 does not", out
    )
    refused(score(out, "--attacks", "relearn=nowhere"), "checkpoint nowhere is not a folder", out)
    refused(score(out, "--attacks", "relearn_retain=x"), "'relearn_retain' goes with 'relearn'", out)
    with pytest.raises(InputError, match="attack needs a run in a folder"):
        um.attack(um.Run(None), "int4")
    done = run("attack", "int4", "--attacks", "int4", "--model", "x", "--out", "y")
    assert "attack takes a run with --attacks, or the name of an attack with --model and --out" in done.stderr


def test_all_leaves_out_what_the_data_lack(tmp_path, monkeypatch):
    rows = [{"question": f"Who is {i}?", "answer": f"It is {i}."} for i in range(6)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in [*ATTACKS]:
        if name not in ("paraphrase", "paired", "fewshot_1", "prefix"):
            monkeypatch.delitem(ATTACKS._all, name)
    given = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "moderate", "--control", "none")
    given += ("--forget", tmp_path / "mine.jsonl")
    done = run("score", *given, "--attacks", "all", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "left out, the attack paraphrase: custom_forget, document 0, has no paraphrased question" in done.stderr
    assert [*store.load_record(tmp_path / "run").attacks.made] == ["prefix"]
    done = run("score", *given, "--attacks", "fewshot_1", "--out", tmp_path / "no")
    refused(
        done, "the attack fewshot_1: custom_forget, document 0, has no other document in its cluster", tmp_path / "no"
    )


def test_a_plan_takes_attacks(tmp_path):
    text = {"original": "o", "unlearned": "u", "benchmarks": "demo", "attacks": ["int4", "prefix"]}
    (tmp_path / "plan.json").write_text(json.dumps(text))
    (cell,) = plan.read(tmp_path / "plan.json")
    assert cell.settings.attacks == ("int4", "prefix")
    (tmp_path / "plan.json").write_text(json.dumps(text | {"attacks": ["int3"]}))
    with pytest.raises(InputError, match=r"plan.json: attacks: unknown attack 'int3'; did you mean int8 or int4"):
        plan.read(tmp_path / "plan.json")


def test_records_without_attacks_and_of_strangers(attacked, tmp_path):
    raw = json.loads((attacked[0] / "record.json").read_text())
    without = {name: value for name, value in raw.items() if name != "attacks"}
    without["scores"] = {name: value for name, value in raw["scores"].items() if "+" not in name}
    assert RECORD_TYPE.validate_json(json.dumps(without)).attacks is None

    def opened(change) -> str:
        forged = json.loads(json.dumps(raw))
        change(forged)
        (tmp_path / "record.json").write_text(json.dumps(forged))
        with pytest.raises(InputError) as error:
            store.load_record(tmp_path / "record.json")
        return str(error.value)

    assert "has scores under attacks, but says nothing of the attacks" in opened(lambda r: r.pop("attacks"))
    assert "unknown model 'unlearned+<b>'" in opened(lambda r: r["scores"].update({"unlearned+<b>": {}}))
    assert "the attack 'int4', which was not made" in opened(lambda r: r["attacks"]["made"].pop("int4"))
    assert "'<b>' is no attack's name" in opened(
        lambda r: r["attacks"]["made"].update({"<b>": r["attacks"]["made"]["int4"]})
    )
    many = {f"unlearned+a{i}": {} for i in range(600)}
    assert "models and attacks; at most 500 are read" in opened(lambda r: r["scores"].update(many))
