"""Texts as long as a chapter: what is written can be read back; what could not be is refused before any work."""

from __future__ import annotations

import json

import pytest

from unlearn_metrics.benchmarks import data
from unlearn_metrics.documents import MAX_TEXT
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs as imports
from unlearn_metrics.records import store


def rows(text: str) -> dict:
    return {
        "value_by_index": {
            "0": {"rougeL_recall": 1.0, "input": "Question: a?", "ground_truth": text, "generation": text}
        }
    }


@pytest.mark.parametrize("length", [100_001, MAX_TEXT])
def test_a_long_text_goes_out_and_in_again(tmp_path, length):
    text = ("word " * length)[:length]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"forget_Q_A_ROUGE": rows(text)}))
    record, seen = imports.import_log("open-unlearning", path, benchmark="tofu_forget05")
    store.save(tmp_path / "run", record, seen)
    assert store.load_documents(tmp_path / "run")["unlearned"]["forget"][0]["reference"] == text


def test_a_text_too_long_to_be_read_back_is_refused_as_data(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "Q", "answer": "a" * (MAX_TEXT + 1)}) + "\n")
    with pytest.raises(InputError, match=r"line 1: field 'answer' has more than 1,000,000 characters; split the text"):
        data.documents(str(path), data.rows(path), {"question": "question", "answer": "answer"})
    path.write_text(json.dumps({"question": "Q", "answer": "a" * MAX_TEXT}) + "\n")
    assert len(data.documents(str(path), data.rows(path), {"question": "question", "answer": "answer"})) == 1
