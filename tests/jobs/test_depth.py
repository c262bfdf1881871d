"""How deep forgetting reaches, in a run: at both ends, of entities alone, stored and computed again, and refusals."""

import json

import numpy as np
import pytest

import unlearn_metrics as um
from tests import CHECKPOINTS
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import depth
from unlearn_metrics.reports import drawing
from unlearn_metrics.reports.showing import plots

GIVEN = {"benchmark": "demo", "limit": 6, "alpha": 0.5, "depth": True, "progress": False}
PLACES = {"original": CHECKPOINTS / "original", "retain_model": CHECKPOINTS / "retain"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("depth") / "run"
    return um.score(
        PLACES["original"], CHECKPOINTS / "excessive", retain_model=PLACES["retain_model"], out=out, **GIVEN
    )


def test_both_ends():
    """The original lacks nothing that it has itself; the retain-only model is as erased as itself."""
    places = [CHECKPOINTS / "retain", CHECKPOINTS / "original"]
    for unlearned, share in zip(places, (1, 0), strict=True):
        found = um.score(
            PLACES["original"],
            unlearned,
            retain_model=PLACES["retain_model"],
            **GIVEN | {"control": "none", "alpha": None},
        )
        composites = found.record.composites["unlearned"]
        assert [composites[name].value for name in ("erasure_depth", "logit_lens")] == pytest.approx(
            [share, share], abs=1e-5
        )


def test_what_a_run_holds(run):
    record = run.record
    assert record.depth.keys() == {"unlearned", "controlled", "retain_only"}
    for model, drops in record.depth.items():
        documents = run.observations[model]["forget"]
        assert [len(d["patched"]) for d in documents] == [len(d["lens"]) for d in documents] == [3] * 6
        assert drops == pytest.approx(np.mean([d["patched"] for d in documents], axis=0).tolist())
    assert (
        0
        <= record.composites["controlled"]["erasure_depth"].value
        < record.composites["unlearned"]["erasure_depth"].value
    )
    assert "erasure_depth" not in record.composites["retain_only"]
    again = um.rescore(um.load(run.folder)).record
    assert again.depth == record.depth
    assert again.composites == record.composites
    assert b"<svg" in drawing.saved(plots.depth(record), "svg")


def test_a_run_without_it_has_none(run):
    documents = {
        model: {
            s: [{k: v for k, v in d.items() if k not in ("patched", "lens")} for d in ds] for s, ds in splits.items()
        }
        for model, splits in run.observations.items()
    }
    from unlearn_metrics.scores.composites import compose

    found = compose(documents["unlearned"], documents["retain_only"], documents["original"])
    assert not {"erasure_depth", "logit_lens"} & found.keys()


def test_entities_alone(run, tmp_path):
    """Where a file names the whole answer, the values are those of the answer; where it names a part, others."""
    documents = run.observations["original"]["forget"]
    answers = [d["reference"] for d in documents]
    file = tmp_path / "entities.json"
    rows = [{"question": d["question"], "entity": a} for d, a in zip(documents, answers, strict=True)]
    rows[0]["entity"] = answers[0].split()[-1]
    rows[1]["entity"] = "it does not occur in the answer"
    file.write_text(json.dumps(rows))
    found = um.score(
        PLACES["original"], CHECKPOINTS / "excessive", retain_model=PLACES["retain_model"], entity_spans=file, **GIVEN
    )
    mine = [d["patched"] for d in found.observations["unlearned"]["forget"]]
    whole = [d["patched"] for d in run.observations["unlearned"]["forget"]]
    assert mine[0] != whole[0]
    assert mine[1:] == whole[1:]


class Words:
    """A tokenizer of three characters a token."""

    text = " The author is Hsiao Yun-Hwa."

    def tok_decode(self, ids):
        return "".join(self.text[3 * i : 3 * i + 3] for i in ids)


@pytest.mark.parametrize(
    ("entity", "found"),
    [
        ("Hsiao Yun-Hwa", (5, 10)),
        ("The", (0, 2)),
        (".", (9, 10)),
        (" Th", (0, 1)),
        ("nobody", None),
        (None, None),
        ("", None),
    ],
)
def test_the_tokens_of_an_entity(entity, found):
    """By hand: ' Th' 'e a' 'uth' 'or ' 'is ' 'Hsi' 'ao ' 'Yun' '-Hw' 'a.'"""
    assert depth.entity_tokens(Words(), range(10), entity) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retain_model": None}, "depth compares with a retain-only model: pass retain_model"),
        ({"depth": False, "entity_spans": "x.json"}, "entity_spans is about depth"),
        ({"entity_spans": "x.json"}, "entity_spans x.json cannot be read"),
    ],
)
def test_refused(given, message):
    with pytest.raises(InputError, match=message):
        um.score(
            PLACES["original"], CHECKPOINTS / "excessive", **{"retain_model": PLACES["retain_model"], **GIVEN, **given}
        )


@pytest.mark.parametrize(
    "text", ["{", '{"question": "q"}', "[1]", '[{"question": "q", "entity": 3}]', '[{"entity": "e"}]']
)
def test_files_of_entities_that_are_none(text, tmp_path):
    file = tmp_path / "entities.json"
    file.write_text(text)
    with pytest.raises(InputError, match="--entity-spans"):
        depth.read_entities(file)
