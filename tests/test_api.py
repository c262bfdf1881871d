"""The public Python API, as a notebook user has it: on the packaged demo, without the command line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unlearn_metrics as um
from tests import CHECKPOINTS, DATA
from tests.plain import ask, forward
from unlearn_metrics import api, progress
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.control.mixing import blended, lerp
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.records import store

ORIGINAL, EXCESSIVE = CHECKPOINTS / "original", CHECKPOINTS / "excessive"
REPOSITORY = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)<\\script>&\u202e\x1b[31m"


def scored(unlearned=EXCESSIVE, **more) -> um.Run:
    given = {"benchmark": "demo", "data": DATA, "limit": 4, "alpha": 0.3, "device": "cpu", "progress": False}
    return um.score(ORIGINAL, unlearned, **given | more)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> um.Run:
    return scored(out=tmp_path_factory.mktemp("api") / "run", metrics="min_k", name=HOSTILE)


@pytest.fixture
def mine():
    """Registers a metric, and takes it away afterwards."""
    um.register_metric("words", lambda generation: len(generation.split()), "generation", "fluency")
    yield "words"
    del METRICS["words"]


def python(code: str, *path: Path) -> str:
    """What a fresh Python prints."""
    prelude = f"import sys; sys.path[:0] = {[str(p) for p in (*path, REPOSITORY)]!r}\n"
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the top level


def test_importing_is_quick_and_brings_nothing_heavy():
    heavy = ("torch", "lm_eval", "transformers", "pandas", "numpy", "pyarrow", "pydantic", "rich", "tqdm")
    found = python(f"import unlearn_metrics as um; um.tasks_path(); print([m for m in {heavy} if m in sys.modules])")
    assert found == "[]\n"
    light = python(
        "import unlearn_metrics as um\nfor n in um.__all__: getattr(um, n)\n"
        "print([m for m in ('torch', 'lm_eval', 'pandas') if m in sys.modules])"
    )
    assert light == "[]\n"


def test_the_top_level_lists_what_it_has_and_nothing_else():
    assert {*um.__all__} <= {*dir(um)}
    assert {*api.__all__} < {*um.__all__}
    for name in {*um.__all__} - {"metrics"}:
        assert not isinstance(getattr(um, name), ModuleType), name  # no room has the name of a function
        assert (getattr(um, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="has no attribute 'scoore'"):
        _ = um.scoore


@pytest.mark.parametrize("name", [n for n in api.__all__ if not isinstance(getattr(um, n), type)])
def test_functions_say_what_they_take_give_and_raise(name):
    doc = getattr(um, name).__doc__
    assert "Returns:" in doc or name in ("register_attack", "register_control")
    if name != "list_benchmarks":
        assert "Args:" in doc
        assert "Raises:" in doc
        code = getattr(um, name).__wrapped__.__code__
        for parameter in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            assert parameter in doc, parameter


# --- a run


def test_scores_are_the_records(run):
    stored = json.loads((run.folder / "record.json").read_text())["scores"]
    for (model, split, metric), score in run.scores.items():
        assert score.value == stored[model][split][metric]["value"]
    assert len(run.scores) == sum(len(metrics) for splits in stored.values() for metrics in splits.values())
    assert run.verdict == run.record.verdict
    assert run.control.alpha == 0.3


def test_a_metric_beyond_the_benchmarks_is_the_mean_of_its_documents(run):
    answers = [d["answer"] for d in run.observations["controlled"]["forget"]]
    lowest = [np.sort(a.logprob[:-1].astype(float))[: max(1, int(0.4 * len(a)))] for a in answers]
    value = run.scores["controlled", "forget", "min_k"].value
    assert value == pytest.approx(np.mean([-x.mean() for x in lowest]), rel=0.05)  # the end-of-sequence token aside
    assert value == pytest.approx(np.mean([um.metrics.min_k(a) for a in answers]))


def test_data_frames(run):
    table = run.to_pandas().set_index(["model", "split", "metric"])
    assert table.index.is_unique
    for key, score in run.scores.items():
        assert table.loc[key, "n"] == score.n
        assert table.loc[key, "value"] == score.value or (score.value is None and pd.isna(table.loc[key, "value"]))
    assert table.loc[("controlled", "forget", "extraction_strength"), "good"] == "lower"
    assert table.loc[("controlled", "retain", "extraction_strength"), "good"] == "higher"
    assert table.loc[("controlled", "", "memorization_score"), "value"] is not None

    documents = run.documents()
    rows = [json.loads(line) for line in next(DATA.glob("forget*.json")).read_text().splitlines()]
    forget = documents[(documents.model == "unlearned") & (documents.split == "forget")]
    assert list(forget.question) == [row["question"] for row in rows[:4]]
    assert list(forget.reference) == [row["answer"] for row in rows[:4]]
    for metric in ("extraction_strength", "probability", "min_k"):
        mean = forget[metric].mean()
        assert mean == pytest.approx(run.scores["unlearned", "forget", metric].value), metric
    assert list(run.documents(["zlib"]).columns)[-1] == "zlib"
    with pytest.raises(um.InputError, match="unknown metric 'zlibb'; did you mean zlib"):
        run.documents(["zlibb"])


def test_a_run_is_one_line_and_one_table_and_a_strangers_name_is_text(run):
    assert "\n" not in repr(run)
    assert "\x1b" not in repr(run)
    assert "alpha 0.3" in repr(run)
    table = run._repr_html_().split("<details>")[0]
    assert "min_k" in table  # it was asked for
    assert "retain_model" in table  # what forget quality lacks, in Python's names
    assert "--" not in table
    assert "min_k" not in um.load(run.folder)._repr_html_().split("<details>")[0]
    page = um.compare([run, scored(name="other")])._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not {"\x1b", "\u202e"} & {*page}


def test_a_notebook_has_the_report_folded_beneath_the_table(run, tmp_path):
    """As it is written to a file, in a frame that runs nothing, out of which no text of a stranger breaks."""
    frames = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: frames.append((tag, dict(attributes)))
    parser.feed(run._repr_html_().partition("</pre>")[2])
    assert [tag for tag, _ in frames] == ["details", "summary", "iframe"]
    assert frames[-1][1]["sandbox"] is None  # allows nothing
    assert frames[-1][1]["srcdoc"] == run.report(tmp_path / "report.html").read_text()


def test_a_notebook_shows_the_table_of_a_run_whose_documents_are_gone(run, tmp_path):
    shutil.copy(run.folder / "record.json", tmp_path)
    page = um.load(tmp_path)._repr_html_()
    assert "extraction_strength" in page
    assert "no report: " in page
    assert "is not there" in page


def test_a_run_opens_again_and_can_be_kept(run, tmp_path):
    again = um.load(run.folder / "record.json")
    assert again.scores == run.scores
    assert again.folder == run.folder
    kept = scored().save(tmp_path / "kept")
    pd.testing.assert_frame_equal(um.load(tmp_path / "kept").documents(), kept.documents())
    with pytest.raises(um.InputError, match="already holds a run"):
        kept.save(tmp_path / "kept")


def test_rescoring_gives_the_same_from_a_folder_and_from_memory(run):
    from_folder, from_memory = um.rescore(run, "zlib"), um.rescore(scored(), ["zlib"])
    for key, score in run.scores.items():
        assert from_folder.scores[key] == score
    documents = run.observations["unlearned"]["forget"]
    by_hand = np.mean([um.metrics.zlib(d["answer"], d["reference"]) for d in documents])
    for found in (from_folder, from_memory):
        assert found.scores["unlearned", "forget", "zlib"].value == pytest.approx(by_hand)
        assert found.folder is None
    assert ("unlearned", "forget", "zlib") not in run.scores


def test_comparing_in_memory_is_comparing_folders(run, tmp_path):
    other = scored(unlearned=CHECKPOINTS / "moderate", name="other")
    kept = other.save(tmp_path / "other")
    found = um.compare([run, other], metrics="probability")
    assert found.tests == um.compare([run.folder, tmp_path / "other"], metrics=["probability"]).tests
    assert found.tests == um.compare([run, kept], metrics=["probability"]).tests
    table = found.to_pandas().set_index(["split", "metric"])
    frames = [r.documents(["probability"]).query("model == 'controlled'") for r in (run, other)]
    means = [frame.groupby("split").probability.mean() for frame in frames]
    for split in ("forget", "retain"):
        difference = means[1][split] - means[0][split]
        assert table.loc[(split, "probability"), "difference"] == pytest.approx(difference)


# --- checkpoints and models in memory


def test_mixing_and_calibrating(tmp_path):
    done = um.mix(ORIGINAL, EXCESSIVE, alpha=0.25, out=tmp_path / "mixed", progress=False)
    assert (done.method, done.alpha) == ("mix", 0.25)
    original, unlearned, mixed = (load_file(f / "model.safetensors") for f in (ORIGINAL, EXCESSIVE, tmp_path / "mixed"))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, original[name] + 0.25 * (unlearned[name] - original[name]))
    lines: list[str] = []
    data = um.OwnData({"retain": DATA / "retain_perturbed.json"})
    found = um.calibrate(ORIGINAL, EXCESSIVE, benchmark=data, limit=4, keep=0.5, device="cpu", progress=lines.append)
    assert found.achieved >= found.target == pytest.approx(0.5 * found.target / found.keep)
    assert {point.alpha: point.retention for point in found.trace}[found.alpha] == found.achieved
    assert [line for line in lines if line.startswith("alpha 1.0000: retention")]


def test_token_scores_of_a_model_in_memory(lm):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(ORIGINAL), AutoTokenizer.from_pretrained(ORIGINAL)
    tokenizer.pad_token = None
    model.train()
    row = json.loads((DATA / "retain_perturbed.json").read_text().splitlines()[0])
    (found,) = um.token_scores(model, tokenizer, [(ask(row["question"]), " " + row["answer"])])
    plain = forward(lm, ask(row["question"]), " " + row["answer"])
    np.testing.assert_array_equal(found.tokens, plain["tokens"])
    np.testing.assert_allclose(found.logprob, plain["logprob"], atol=1e-4)
    assert um.metrics.probability(found) == pytest.approx(math.exp(plain["logprob"].mean()), rel=1e-4)
    assert um.metrics.extraction_strength(found) == 1
    assert model.training
    assert tokenizer.pad_token is None
    with pytest.raises(um.InputError, match="pair 1: the answer is empty"):
        um.token_scores(model, tokenizer, [("a", " b"), ("a", " ")])


# --- metrics and controls of others


def test_a_metric_of_ones_own(run, mine, tmp_path):
    found = um.rescore(run, mine)
    texts = [d["generation"] for d in run.observations["unlearned"]["forget"]]
    assert found.scores["unlearned", "forget", mine].value == np.mean([len(text.split()) for text in texts])
    assert scored(metrics=mine).scores["unlearned", "forget", mine] == found.scores["unlearned", "forget", mine]
    found.save(tmp_path / "run")
    assert um.rescore(tmp_path / "run").scores == found.scores
    um.register_metric(mine, lambda generation: 0.0, "generation", "fluency")  # the cell was run again
    assert um.rescore(run, mine).scores["unlearned", "forget", mine].value == 0


def test_a_record_with_a_metric_that_is_unknown_here(run, mine, tmp_path):
    um.rescore(run, mine).save(tmp_path / "run")
    kept = METRICS.pop(mine)
    try:
        opened = um.load(tmp_path / "run")
        assert opened.scores["unlearned", "forget", mine].value is not None
        assert "Other metrics" in opened._repr_html_()
        assert opened.to_pandas().query("metric == 'words'").good.eq("neither").all()
        assert opened.documents()[mine].isna().all()
        with pytest.warns(UserWarning, match="these metrics are not installed: words"):
            again = um.rescore(opened)
        assert opened.scores.keys() - again.scores.keys() == {key for key in opened.scores if key[2] == mine}
        with pytest.raises(um.InputError, match="unknown metric 'words'"):
            um.rescore(opened, mine)
    finally:
        METRICS[mine] = kept


@pytest.mark.parametrize("name", ["a" * 65, "", "a b", "<b>", "1a", "a-b", "é"])
def test_what_is_no_metrics_name_is_refused_in_a_record(run, tmp_path, name):
    raw = json.loads((run.folder / "record.json").read_text())
    raw["scores"]["unlearned"]["forget"][name] = raw["scores"]["unlearned"]["forget"]["min_k"]
    (tmp_path / "record.json").write_text(json.dumps(raw))
    with pytest.raises(um.InputError, match="unknown metric"):
        um.load(tmp_path)
    with pytest.raises(um.InputError, match="cannot name a metric"):
        um.register_metric(name, len, "generation", "fluency")


def test_a_record_names_only_so_many_unknown_metrics(run, tmp_path):
    raw = json.loads((run.folder / "record.json").read_text())
    some = raw["scores"]["unlearned"]["forget"]
    for count, opens in ((store.MAX_UNKNOWN, True), (store.MAX_UNKNOWN + 1, False)):
        raw["scores"]["unlearned"]["forget"] = some | {f"new_{i}": some["min_k"] for i in range(count)}
        (tmp_path / "record.json").write_text(json.dumps(raw))
        if opens:
            assert len(store.unknown_metrics(um.load(tmp_path).record)) == count
        else:
            with pytest.raises(um.InputError, match="metrics that are unknown here; at most"):
                um.load(tmp_path)


def test_a_control_of_ones_own(tmp_path):
    def half(original, unlearned, strength):
        """Half as far as the strength says, except at its ends."""
        if strength in (0, 1):
            return unlearned if strength else original
        return blended(original, unlearned, lambda name: lambda o, u: lerp(o, u, strength / 2))

    um.register_control("half", half, what="half as much as {alpha}")
    try:
        um.mix(ORIGINAL, EXCESSIVE, alpha=0.5, control="half", out=tmp_path / "half", progress=False)
        um.mix(ORIGINAL, EXCESSIVE, alpha=0.25, out=tmp_path / "mix", progress=False)
        half_, mixed = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "mix"))
        assert all(torch.equal(half_[name], mixed[name]) for name in mixed)
        assert "half as much as 0.5" in (tmp_path / "half" / "README.md").read_text()
        assert scored(control="half", alpha=0.5).control.method == "half"
    finally:
        del CONTROLS["half"]
    with pytest.raises(um.InputError, match="control: there is no control 'half'; there are mix, trim, layers"):
        um.mix(ORIGINAL, EXCESSIVE, alpha=0.5, control="half", out=tmp_path / "other")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """Another package as pip would install it, which brings a metric, a control, and one thing that is broken."""
    site = tmp_path_factory.mktemp("site")
    (site / "brought.py").write_text(
        "from unlearn_metrics import Metric\n"
        "def shout(generation):\n"
        "    return float(generation.isupper())\n"
        "metric = Metric(shout, ('generation',), 'fluency', better='lower')\n"
        "def control():\n"
        "    from unlearn_metrics.control.controls import MIX\n"
        "    return MIX\n"
    )
    (site / "brought_control.py").write_text("from unlearn_metrics.control.controls import MIX as control\n")
    info = site / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[unlearn_metrics.metrics]\nshout = brought:metric\nbroken = brought:nothing\nloss = brought:metric\n"
        "[unlearn_metrics.controls]\nelse_mix = brought_control:control\n"
    )
    return site


def test_another_package_brings_metrics_and_controls(package):
    said = python(
        "import unlearn_metrics as um\n"
        "from unlearn_metrics.metrics import METRICS, good\n"
        "from unlearn_metrics.control import CONTROLS\n"
        "print('shout' in METRICS, [*CONTROLS][-1], 'brought' in sys.modules, 'torch' in sys.modules)\n"
        "print(METRICS['shout']({'generation': 'LOUD'}), good('shout', 'forget'), METRICS['loss'].fn.__module__)\n"
        "try: METRICS['broken']\n"
        "except um.InputError as error: print(error)\n"
        "print(CONTROLS['else_mix'].fn.__name__)\n",
        package,
    ).splitlines()
    assert said[0] == "True else_mix False False"  # known by name before anything of it is imported
    assert said[1] == "1.0 lower unlearn_metrics.metrics.privacy"  # our own name stays ours
    assert said[2].startswith("the metric 'broken' of brought:nothing cannot be loaded: ")
    assert said[3] == "mix"


# --- what is wrong, and interruption


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scored(benchmark="demoo"), "unknown benchmark 'demoo'; did you mean demo?"),
        (lambda: scored(alpha=None, keep=2), "keep: input should be less than or equal to 1, not 2"),
        (lambda: scored(keep=0.9), "keep and alpha exclude each other: calibrate, or mix at a given alpha"),
        (lambda: scored(control="none"), "control none has no alpha"),
        (lambda: scored(control="mixx"), "control: there is no control 'mixx'; did you mean mix"),
        (lambda: scored(limit=0), "limit: input should be greater than or equal to 1, not 0"),
        (lambda: scored(dtype="int8"), "dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'"),
        (lambda: scored(data="/nowhere"), "data folder /nowhere does not exist"),
        (lambda: scored(metrics="lss"), "unknown metric 'lss'; did you mean loss?"),
        (lambda: scored(metrics="gradnorm"), "gradnorm needs gradient, which demo does not observe"),
        (lambda: scored(gradnorm=True), "gradnorm is a membership attack: demo has no holdout to compare with"),
        (lambda: scored(benchmark=um.OwnData({"forget": "no.jsonl"})), "data goes with a benchmark's name"),
        (lambda: scored(benchmark=um.OwnData({"forget": "no.jsonl"}), data=None), "no.jsonl cannot be read"),
        (lambda: scored(benchmark=um.OwnData({"retain": "no.jsonl"}), data=None), "OwnData needs a file for 'forget'"),
        (lambda: scored(benchmark=um.OwnData({"frget": "x"}), data=None), "no split 'frget'; did you mean forget?"),
        (
            lambda: scored(benchmark=um.OwnData({"forget": "x"}, fields={"answr": "a"}), data=None),
            "OwnData: fields 'answr=a' is neither question=COLUMN,answer=COLUMN nor text=COLUMN",
        ),
        (lambda: scored(reference_record="/nowhere"), "/nowhere holds no run: there is no record.json"),
        (lambda: um.score(ORIGINAL, benchmark="demo"), "unlearned is missing"),
        (lambda: um.load("/nowhere"), "/nowhere holds no run: there is no record.json"),
        (lambda: um.mix("a", "b", alpha=3, out="c"), "alpha: input should be less than or equal to 1, not 3"),
        (lambda: um.mix("a", "b", alpha=0.5, out="c", control="none"), "control none has no alpha"),
        (lambda: um.calibrate("a", "b", keep=None, control="none"), "there is nothing to calibrate or write"),
        (lambda: um.calibrate("a", "b"), "control mix needs alpha, or benchmark or retain (with keep) to calibrate it"),
        (lambda: um.register_metric("loss", len, "answer", "privacy"), "there is a metric 'loss' already"),
        (lambda: um.register_metric("mine", len, "answr", "privacy"), "'answr', which no document has; did you mean"),
        (lambda: um.register_control("mix", len), "there is a control 'mix' already"),
        (lambda: um.register_control("none", len), "'none' is the name for no control"),
    ],
)
def test_wrong_arguments_are_one_line_in_pythons_names(call, says):
    with pytest.raises(um.InputError) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


def test_one_run_to_compare_is_no_list_of_letters(run):
    for one in (run, run.folder, str(run.folder)):
        with pytest.raises(um.InputError, match="at least two runs"):
            um.compare(one)


def test_a_strangers_words_in_an_error_are_text(run):
    with pytest.raises(um.InputError, match="were not measured alike") as error:
        um.compare([run, scored(alpha=0.5)])
    assert not {"\x1b", "\u202e"} & {*str(error.value)}
    assert "anyway compares them nevertheless" in str(error.value)


def test_an_input_error_is_no_value_error():
    """Libraries' ValueErrors are caught in many places; an InputError must pass through them."""
    assert not issubclass(um.InputError, (ValueError, OSError, KeyError))


def test_an_interrupted_call_goes_on_when_it_is_made_again(run, tmp_path):
    def interrupt(message: str) -> None:
        if message.startswith("evaluating the unlearned model under"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(out=tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run" / "record.json").exists()
    lines: list[str] = []
    done = scored(out=tmp_path / "run", progress=lines.append)
    assert "original: taken from an unfinished run" in lines
    assert not (tmp_path / "run" / ".partial").exists()
    assert {key: score for key, score in run.scores.items() if key[2] != "min_k"} == done.scores


def test_progress_is_one_bar_and_leaves_everything_as_it_was(monkeypatch, capsys):
    import lm_eval.api.model
    import transformers
    from tqdm import tqdm

    before = transformers.utils.logging.get_verbosity()
    with progress.shown(visible=True, line=print) as say:
        say("a step")
        with progress.Bar(total=10, desc="Scoring tokens") as bar:
            bar.update(4)
            assert progress._shown.bar.n == 4
        assert list(lm_eval.api.model.tqdm([1, 2, 3], desc="lm-eval's own")) == [1, 2, 3]
        assert progress._shown.bar.n == progress._shown.bar.total == 3
        assert transformers.utils.logging.get_verbosity() == transformers.logging.ERROR
    assert lm_eval.api.model.tqdm is tqdm
    assert transformers.utils.logging.get_verbosity() == before
    shown = capsys.readouterr()
    assert shown.out == "a step\n"
    assert "a step" in shown.err
    assert "Scoring tokens" not in shown.err
    assert "lm-eval's own" not in shown.err
    with progress.shown():
        assert progress._shown.bar is None  # stderr is no terminal here
        progress.Bar(total=3).update(1)


def test_a_users_script_passes_mypys_strict_mode(tmp_path):
    script = Path(__file__).parent / "data" / "user_script.py"
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import unlearn_metrics as um\num.scoore\num.load(3)\num.load('a').verdict.value\n")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(script), str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)  # which is strict
    errors = done.stdout.splitlines()
    # mypy's cache may name the folder of an earlier run
    assert [Path(line.split(":")[0]).name for line in errors] == [wrong.name] * 3, done.stdout + done.stderr
