"""What two tokenizers must have in common, and chat templates as other people's checkpoints have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests import CHECKPOINTS
from unlearn_metrics.checkpoints.files import open_checkpoint
from unlearn_metrics.checkpoints.pairs import align
from unlearn_metrics.checkpoints.tokenizers import (
    TEMPLATE_DATE,
    check_chat_template,
    other_templates,
    with_fixed_date,
)
from unlearn_metrics.errors import InputError


def copied(tmp_path: Path, name: str, template: str | None = None) -> Path:
    folder = shutil.copytree(CHECKPOINTS / "moderate", tmp_path / name)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d. %B %y", "%Y-%m-%d %H:%M:%S", "%A"])
def test_a_template_that_writes_the_date_writes_one_date(tmp_path, form):
    """Also where it asks whether there is a clock at all, as the templates of Llama 3 do."""
    template = "\n{%- if strftime_now is defined %}[" + f"{{{{ strftime_now('{form}') }}}}" + "]{% endif %} \n x"
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "moderate")
    tokenizer.chat_template = with_fixed_date({"default": template})
    found = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert found == f"[{TEMPLATE_DATE.strftime(form)}] \n x"


def test_a_template_without_a_date_stays_as_it_is():
    assert with_fixed_date("{{ messages[0].content }}") == "{{ messages[0].content }}"


def test_checkpoints_without_a_usable_chat_template(tmp_path):
    none = copied(tmp_path, "none")
    (none / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="none's tokenizer has no chat template; leave out"):
        check_chat_template(open_checkpoint(str(none)))
    several = copied(tmp_path, "several")
    (several / "chat_template.jinja").unlink()
    config = json.loads((several / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": n, "template": "{{ messages[0].content }}"} for n in ("tool_use", "rag")]
    (several / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has several chat templates \(rag, tool_use\), none of them called default"):
        check_chat_template(open_checkpoint(str(several)))
    broken = copied(tmp_path, "broken", "{{ raise_exception('only tools') }}")
    with pytest.raises(InputError, match="broken's chat template cannot be used: only tools"):
        check_chat_template(open_checkpoint(str(broken)))
    check_chat_template(open_checkpoint(str(CHECKPOINTS / "moderate")))


def test_models_with_another_chat_template_are_named(tmp_path):
    original, same = open_checkpoint(str(CHECKPOINTS / "original")), open_checkpoint(str(CHECKPOINTS / "moderate"))
    other = open_checkpoint(str(copied(tmp_path, "other", "CHANGED {{ messages[0].content }}")))
    bare = copied(tmp_path, "bare")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / file).unlink()
    pairs = {"original": original, "unlearned": other, "retain_only": same, "bare": open_checkpoint(str(bare))}
    assert other_templates({model: (original, checkpoint) for model, checkpoint in pairs.items()}) == ["unlearned"]


@pytest.mark.parametrize("roles", [("unlearned",), ("original",), ("original", "unlearned")])
def test_a_pad_token_beyond_the_embedding_changes_nothing(tmp_path, roles):
    """Training code adds one without resizing the model. No row of the embedding is its, and no number its either."""
    folders = {"original": CHECKPOINTS / "original", "unlearned": CHECKPOINTS / "moderate"}
    rows = json.loads((CHECKPOINTS / "original" / "config.json").read_text())["vocab_size"]
    for role in roles:
        folders[role] = shutil.copytree(folders[role], tmp_path / role)
        tokenizer = AutoTokenizer.from_pretrained(folders[role])
        tokenizer.add_special_tokens({"pad_token": f"[PAD of {role}]"})
        assert tokenizer.pad_token_id >= rows
        tokenizer.save_pretrained(folders[role])
    align(*(open_checkpoint(str(folder)) for folder in folders.values()))


def test_a_token_that_has_a_row_still_has_to_be_the_same(tmp_path):
    folder = copied(tmp_path, "u")
    text = (folder / "tokenizer.json").read_text()
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    a, b = [token for token in vocabulary if len(token) > 3][:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the tokenizers of .* differ: token"):
        align(*(open_checkpoint(str(f)) for f in (CHECKPOINTS / "original", folder)))
