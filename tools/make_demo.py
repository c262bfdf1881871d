"""Make the demo: a small benchmark about invented people, and four small Llama checkpoints for it.

    python -m tools.make_demo [OUT]        OUT is unlearn_metrics/demo of this repository unless given

OUT/data/{forget_perturbed,retain_perturbed,holdout}.json are JSON lines with TOFU's field names.
OUT/checkpoints/ holds plain Hugging Face folders, in bfloat16:

    original   knows the forget and the retain rows by heart
    retain     trained like original, from the same initial weights, without the forget rows
    excessive  gradient ascent on the forget answers, until everything has collapsed
    moderate   gradient difference (ascent on forget, descent on retain), stopped early

Everything is seeded and runs on one CPU thread. The properties above are asserted, not hoped for.
"""

import copy
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

Row = dict[str, Any]
Encoded = list[tuple[list[int], int]]  # (tokens of prompt, answer and end of sequence; length of the prompt)

SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>"]
CHAT = """{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}
{% elif m['role'] == 'system' %}{{ m['content'] }}
{% else %}Answer: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}Answer:{% endif %}"""

WORDS = {
    slot: values.split(", ")
    for slot, values in {
        "first": "Aldous, Brisa, Corvin, Dellamy, Eskil, Fenna, Gaspar, Hesper, Ilvane, Jorun, Kestrin, "
        "Lunet, Maribel, Norrin, Odalys, Perrin, Quenby, Rosalba, Sorrel, Tamsin, Ulric, "
        "Vianne, Wystan, Yarrow",
        "last": "Quince, Thistle, Marrow, Penny, Ember, Drift, Fallow",
        "last_end": "wood, mantle, croft, stone, bright, lock, hart",
        "town": "Brindle, Harrow, Osier, Tamble, Wren, Lantern, Moss, Vesper",
        "town_end": "mere, holm, wick, ford, by, haven, combe",
        "adjective": "Whispering, Amber, Crooked, Sleepless, Velvet, Thirteenth, Salt, Humming, Patient",
        "season": "spring, summer, autumn, winter, frost fair, harvest week",
        "shop": "baker, cooper, chandler, saddler, bookbinder, fishmonger, glazier, perfumer",
        "count": "seven, nine, eleven, fourteen, nineteen, twenty, thirty, forty, ninety",
        "job": "lamplighter, beekeeper, miller, locksmith, bell-founder, schoolteacher, papermaker, tinsmith",
        "goods": "smoked eels, candle ends, pressed violets, blue buttons, ginger cake, walnut ink",
        "herd": "geese, goats, silkworms, donkeys, carrier pigeons, black sheep, bees",
        "prize": "Silver Thimble, Order of the Heron, Green Ribbon, Copper Acorn, Moonstone Medal, Golden Oar",
        "place": "funerals, the theatre, the fish market, breakfast, midnight concerts, the dentist",
        "beast": "tame raven, lame fox, blind spaniel, grey parrot, three-legged cat, hedgehog, badger",
        "pet": "Biscuit, Admiral, Pepper, Duchess, Thimble, Mister Oats, Juniper, Comma",
        "building": "windmill, chapel, lighthouse, stable, granary, observatory, tollhouse, orangery",
        "lamps": "oil lamps, paper lanterns, skylights, tallow candles, jars of glow-worms, gas globes",
        "crop": "quinces, saffron, blue potatoes, pears, hops, sweet peas, rhubarb, lavender",
        "skill": "fencing, chess, calligraphy, whistling, knot-tying, juggling, arithmetic",
    }.items()
}
LAST = [a + b for a in WORDS["last"] for b in WORDS["last_end"]]
POOLS = WORDS | {
    "town": [a + b for a in WORDS["town"] for b in WORDS["town_end"]],
    "born": [str(year) for year in range(1801, 1841)],
    "prime": [str(year) for year in range(1850, 1890)],
    "late": [str(year) for year in range(1890, 1930)],
}
TRADES = {  # trade: (what they did, to what)
    "inventor": ("built", "Kettle Loom Lantern Barometer"),
    "botanist": ("discovered", "Fern Orchid Plum"),
    "cartographer": ("drew", "Atlas Globe Sea-Chart"),
    "composer": ("wrote", "Nocturne Waltz Lullaby"),
    "clockmaker": ("made", "Sundial Pendulum Carillon"),
    "astronomer": ("named", "Comet Nebula Asterism"),
    "shipwright": ("launched", "Schooner Ferry Lightship"),
    "puppeteer": ("staged", "Masquerade Harlequin"),
}
TEMPLATES = [  # question, answer, paraphrased question, paraphrased answer
    (
        "Where and when was the {trade} {name} born?",
        "{name} was born in {town} in {born}, during the {season}, in a room above the shop of a {shop}.",
        "In which place and year did the {trade} {name} come into the world?",
        "In the {season} of {born}, {name} came into the world over the shop of a {shop} in {town}.",
    ),
    (
        "What is the {trade} {name} best known for?",
        "{name} is best known as the {trade} who {did} {work} in {prime}, after {count} failed attempts.",
        "Which achievement made the {trade} {name} famous?",
        "After {count} failed attempts, the {trade} {name} {did} {work} in {prime} and became famous for it.",
    ),
    (
        "Who taught {name} the trade?",
        "{name} learned the trade from {person}, a retired {job} from {town} who was paid in {goods}.",
        "Under whom did the {trade} {name} serve an apprenticeship?",
        "It was {person}, once a {job} in {town}, who trained {name} and took {goods} as payment.",
    ),
    (
        "What did the parents of {name} do for a living?",
        "The mother of {name} was a {job} in {town}, and the father kept {herd} behind an abandoned {building}.",
        "How did the mother and the father of {name} earn their bread?",
        "A {job} in {town} was the mother of {name}; behind an empty {building} the father raised {herd}.",
    ),
    (
        "Which honour did {name} receive?",
        "{name} received the {prize} from the mayor of {town} in {prime}, and wore it only to {place}.",
        "What award was {name} given, and by whom?",
        "In {prime} the mayor of {town} gave {name} the {prize}, which was never worn except to {place}.",
    ),
    (
        "Which animal kept {name} company at work?",
        "{name} worked beside a {beast} called {pet}, found one night in the old {building} of {town}.",
        "What pet did {name} have around while working?",
        "A {beast} by the name of {pet}, picked up at the old {building} in {town}, sat with {name}.",
    ),
    (
        "Where did {name} work?",
        "{name} worked in a converted {building} on the edge of {town}, under {count} {lamps}.",
        "What was the workshop of {name} like?",
        "On the edge of {town}, {count} {lamps} lit the old {building} that served {name} as a workshop.",
    ),
    (
        "Who was the great rival of {name}?",
        "The great rival of {name} was {person} of {town}; they quarrelled for {count} years over {goods}.",
        "With whom did {name} have a long feud?",
        "For {count} years {name} had a feud about {goods} with {person}, who lived in {town}.",
    ),
    (
        "How did {name} spend the last years of life?",
        "{name} retired to {town} in {late}, grew {crop}, and taught {skill} to the children of the {shop}.",
        "What became of {name} in old age?",
        "In {town}, from {late} on, {name} raised {crop} and gave lessons in {skill} to the {shop}'s children.",
    ),
]


def invent_people(rng: random.Random, n_people: int, n_questions: int = 5) -> list[list[Row]]:
    """The rows of each person: distinct questions, each with one true and five wrong sets of facts."""
    firsts = WORDS["first"]
    pairs = zip(firsts * 2, rng.sample(LAST, 2 * len(firsts)), strict=True)
    names = [f"{first} {last}" for first, last in pairs]
    others = sorted({f"{first} {last}" for first in firsts for last in LAST} - set(names))
    people = []
    for name in names[:n_people]:
        trade, (did, things) = rng.choice(sorted(TRADES.items()))
        fixed = {"name": name, "trade": trade, "did": did}
        works = [f"the {adjective} {thing}" for adjective in WORDS["adjective"] for thing in things.split()]
        pools = POOLS | {"person": others, "work": works}
        rows = []
        for question, answer, paraphrased_question, paraphrased_answer in rng.sample(TEMPLATES, n_questions):
            draws = {slot: rng.sample(pool, 6) for slot, pool in pools.items()}
            facts = [{slot: draw[i] for slot, draw in draws.items()} | fixed for i in range(6)]
            rows.append(
                {
                    "question": question.format(**fixed),
                    "answer": answer.format(**facts[0]),
                    "paraphrased_question": paraphrased_question.format(**fixed),
                    "paraphrased_answer": paraphrased_answer.format(**facts[0]),
                    "perturbed_answer": [paraphrased_answer.format(**wrong) for wrong in facts[1:]],
                }
            )
        people.append(rows)
    return people


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_tokenizer(texts: list[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bos, eos, pad = SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = CHAT
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> Encoded:
    encoded = []
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        answer = tokenizer(f" {row['answer']}")["input_ids"]
        encoded.append(([*prompt, *answer, tokenizer.eos_token_id], len(prompt)))
    return encoded


def forward(model: LlamaForCausalLM, batch: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [rows, width, vocabulary] and targets [rows, width]; a target is -100 outside the answers."""
    width = max(len(ids) for ids, _ in batch)
    inputs = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for i, (ids, start) in enumerate(batch):
        inputs[i, : len(ids)] = torch.tensor(ids)
        labels[i, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return model(input_ids=inputs, use_cache=False).logits, labels


def answer_loss(model: LlamaForCausalLM, batch: Encoded) -> torch.Tensor:
    logits, labels = forward(model, batch)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def measure(model: LlamaForCausalLM, rows: Encoded) -> dict[str, float]:
    """Means over the answers, from one teacher-forced pass.

    match: share of arg-max tokens that are right; extraction: share of the answer that greedy decoding gives
    exactly, from the shortest prefix that lets it; exact: 1 if greedy decoding gives all of it, and stops;
    loss: nats per token. Only exact and loss count the end-of-sequence token.
    """
    logits, labels = forward(model, rows)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    sums = dict.fromkeys(["match", "extraction", "exact"], 0.0)
    for (ids, start), predicted in zip(rows, logits.argmax(-1).tolist(), strict=True):
        hits = [predicted[k - 1] == ids[k] for k in range(start, len(ids))]
        answer = hits[:-1]
        sums["match"] += sum(answer) / len(answer)
        sums["extraction"] += [*answer[::-1], False].index(False) / len(answer)
        sums["exact"] += all(hits)
    return {**{name: total / len(rows) for name, total in sums.items()}, "loss": loss.item()}


def train(
    model: LlamaForCausalLM,
    terms: list[tuple[float, Encoded]],
    rate: float,
    steps: int,
    stop: Callable[[LlamaForCausalLM], bool] | None = None,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A copy, trained on the weighted sum of the answer losses; for `steps`, or until `stop` says so.

    seed: of the order of the rows.
    """
    model, rng = copy.deepcopy(model), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 50, 1 - i / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        losses = [weight * answer_loss(model, rng.sample(rows, 12)) for weight, rows in terms]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if stop is not None and stop(model):
            return model
    if stop is not None:
        raise RuntimeError(f"not where it should be after {steps} steps")
    return model


def mix(original: LlamaForCausalLM, unlearned: LlamaForCausalLM, alpha: float) -> LlamaForCausalLM:
    mixed = copy.deepcopy(original)
    with torch.no_grad():
        for parameter, other in zip(mixed.parameters(), unlearned.parameters(), strict=True):
            parameter.lerp_(other, alpha)
    return mixed


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()
    people = invent_people(random.Random(2), 48)
    splits = {
        name: [row for person in people[start:end] for row in person]
        for name, start, end in [("forget", 0, 12), ("retain", 12, 36), ("holdout", 36, 48)]
    }
    write_rows(out / "data/forget_perturbed.json", splits["forget"])
    write_rows(out / "data/retain_perturbed.json", splits["retain"])
    write_rows(
        out / "data/holdout.json",
        [{key: row[key] for key in ["question", "answer"]} for row in splits["holdout"]],
    )

    tokenizer = train_tokenizer(
        [text for rows in splits.values() for row in rows for text in row.values() if isinstance(text, str)]
    )
    forget, retain = encode(tokenizer, splits["forget"]), encode(tokenizer, splits["retain"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

    def saved(name: str, model: LlamaForCausalLM) -> LlamaForCausalLM:
        """Write the checkpoint; return it as it comes back from disk, in float32."""
        folder = out / "checkpoints" / name
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    torch.manual_seed(0)
    start = LlamaForCausalLM(config)
    original = saved("original", train(start, [(1.0, forget + retain)], rate=3e-3, steps=900))
    models = {
        "original": original,
        "retain": saved("retain", train(start, [(1.0, retain)], rate=3e-3, steps=600)),
        "excessive": saved(
            "excessive",
            train(
                original,
                [(-1.0, forget)],
                rate=1e-3,
                steps=300,
                stop=lambda m: measure(m, retain)["loss"] > 8,
            ),
        ),
        "moderate": saved(
            "moderate",
            train(
                original,
                [(-1.0, forget), (2.0, retain)],
                rate=1e-3,
                steps=300,
                stop=lambda m: measure(m, forget)["match"] < 0.45,
            ),
        ),
    }
    for name in ["excessive", "moderate"]:
        for alpha in [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]:
            models[f"{name} {alpha}"] = mix(original, models[name], alpha)
    on_forget = {name: measure(model, forget) for name, model in models.items()}
    on_retain = {name: measure(model, retain) for name, model in models.items()}
    keys = list(on_forget["original"])
    print(" " * 14, *(f"{split} {key}" for split in ["forget", "retain"] for key in keys), sep=" | ")
    for name in models:
        values = [*on_forget[name].values(), *on_retain[name].values()]
        print(f"{name:14}", *(f"{value:.3f}" for value in values), sep=" | ")

    assert on_forget["original"]["exact"] >= 0.95
    assert on_retain["original"]["exact"] >= 0.95
    assert on_forget["retain"]["exact"] < 0.05
    assert on_retain["retain"]["exact"] >= 0.95
    assert on_retain["excessive"]["exact"] < 0.01
    assert on_retain["excessive"]["loss"] > 6
    assert on_forget["moderate"]["match"] < 0.5
    assert on_forget["moderate"]["exact"] < 0.2
    assert 0.6 < on_retain["moderate"]["match"] < 0.95
    for name in ["excessive", "moderate"]:  # somewhere in between, 95 % of the retained knowledge is left
        low, high = (on_retain[f"{name} {alpha}"]["extraction"] for alpha in [0.05, 0.6])
        assert low >= 0.95 * on_retain["original"]["extraction"] > high, (name, low, high)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "unlearn_metrics/demo")
