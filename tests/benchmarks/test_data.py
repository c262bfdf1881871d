"""What a benchmark's data files may look like, and the one line that a bad one gets."""

import json
from pathlib import Path

import datasets
import pytest

from unlearn_metrics.benchmarks import suites
from unlearn_metrics.errors import InputError


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


GOOD = {
    "question": "Who?",
    "answer": "Nobody at all.",
    "paraphrased_question": "Which one?",
    "paraphrased_answer": "No one at all.",
    "perturbed_answer": ["Everybody.", "Somebody."],
}


def without(field: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k != field})


@pytest.mark.parametrize(
    ("second_line", "words"),
    [
        ("{not json", ["line 2", "not JSON"]),
        ("[1, 2]", ["line 2", "not a JSON object"]),
        *((without(field), ["line 2", f"'{field}' is missing"]) for field in GOOD),
        (json.dumps(GOOD | {"answer": None}), ["line 2", "'answer' is missing"]),
        (json.dumps(GOOD | {"answer": 3}), ["line 2", "'answer' is not a string"]),
        (json.dumps(GOOD | {"paraphrased_question": ["a"]}), ["line 2", "'paraphrased_question' is not a string"]),
        (json.dumps(GOOD | {"perturbed_answer": "a"}), ["line 2", "'perturbed_answer' is not a list of strings"]),
        (json.dumps(GOOD | {"perturbed_answer": []}), ["line 2", "'perturbed_answer' is not a list of strings"]),
        (json.dumps(GOOD | {"perturbed_answer": ["a", 1]}), ["line 2", "'perturbed_answer' is not a list of strings"]),
        (json.dumps(GOOD | {"answer": ""}), ["line 2", "'answer' is empty"]),
        (json.dumps(GOOD | {"answer": " \n"}), ["line 2", "'answer' is empty"]),
        (json.dumps(GOOD | {"perturbed_answer": ["a", ""]}), ["line 2", "'perturbed_answer' is empty"]),
    ],
)
def test_bad_line_is_named(tmp_path, second_line, words):
    write(tmp_path / "retain_perturbed.json", [GOOD])
    (tmp_path / "forget_perturbed.json").write_text(json.dumps(GOOD) + "\n" + second_line + "\n")
    with pytest.raises(InputError) as caught:
        suites.load("demo", tmp_path)
    message = str(caught.value)
    assert all(word in message for word in [*words, str(tmp_path / "forget_perturbed.json")]), message
    assert "\n" not in message


def test_blank_lines_and_fields_that_no_metric_needs_do_not_matter(tmp_path):
    write(tmp_path / "forget_perturbed.json", [GOOD | {"note": "x"}, GOOD])
    text = (tmp_path / "forget_perturbed.json").read_text()
    (tmp_path / "forget_perturbed.json").write_text("\n" + text.replace("\n", "\n\n"))
    write(tmp_path / "retain_perturbed.json", [{k: v for k, v in GOOD.items() if k != "paraphrased_question"}])
    tasks = suites.load("demo", tmp_path)
    assert [len(tasks[split].eval_docs) for split in ("forget", "retain")] == [2, 1]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_line_separators_of_unicode_are_part_of_a_text(tmp_path, character):
    rows = [GOOD | {"answer": f"One{character}two."}]
    write(tmp_path / "forget_perturbed.json", rows)
    write(tmp_path / "retain_perturbed.json", rows)
    assert suites.load("demo", tmp_path)["forget"].eval_docs[0]["answer"] == rows[0]["answer"]


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        suites.load("demo", tmp_path / "nowhere")
    write(tmp_path / "forget_perturbed.json", [GOOD])
    with pytest.raises(InputError, match=r"demo_retain needs .*retain_perturbed\.json \(JSON lines\)"):
        suites.load("demo", tmp_path)
    (tmp_path / "retain_perturbed.json").write_text("\n")
    with pytest.raises(InputError, match=r"retain_perturbed\.json holds no documents"):
        suites.load("demo", tmp_path)


def test_folder_for_each_configuration(tmp_path):
    write(tmp_path / "forget_perturbed" / "train.json", [GOOD, GOOD])
    write(tmp_path / "retain_perturbed" / "train.json", [GOOD])
    tasks = suites.load("demo", tmp_path)
    for split, count in (("forget", 2), ("retain", 1)):
        found = list(tasks[split].eval_docs)
        assert [{**GOOD, **doc} for doc in found] == [GOOD] * count  # only the fields that are needed, as they are
        assert {"question", "answer", "perturbed_answer"} <= found[0].keys()


def test_answer_longer_than_the_model_names_the_document(lm, tmp_path):
    for name in ("forget_perturbed", "retain_perturbed"):
        write(tmp_path / f"{name}.json", [GOOD, GOOD | {"answer": "word " * 400}])
    with pytest.raises(InputError, match=r"demo_\w+, document 1: the answer has \d+ tokens, more than the model's 256"):
        suites.evaluate(lm, suites.load("demo", tmp_path))


def test_no_folder_and_no_network_says_how_to_give_a_folder(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        suites.load("tofu_forget05", None)
    message = str(caught.value)
    assert "tofu_forget05" in message
    assert "give a local folder with --data" in message
    assert "\n" not in message


def test_demo_without_a_folder_does_not_read_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "here").mkdir()
    write(tmp_path / "here" / "mine.json", [GOOD])
    monkeypatch.chdir(tmp_path / "here")
    try:
        question = suites.load("demo", None)["forget"].eval_docs[0]["question"]
    except InputError as error:
        question = str(error)
    assert question != GOOD["question"]
