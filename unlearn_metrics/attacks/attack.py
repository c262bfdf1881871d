"""What an attack is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError


@dataclass(frozen=True)
class Around:
    """What an attack on a prompt may use beside the document: all of it public to an attacker.

    place: of the document in its split, from 0. cluster: the other documents of its cluster, those after it first.
    retain: the documents of the retain split; none where the benchmark has none.
    """

    place: int
    cluster: Sequence[Document] = ()
    retain: Sequence[Document] = ()


@dataclass(frozen=True)
class Attack:
    """An attack on weights or on prompts.

    Attributes:
        fn: on weights: checkpoint -> checkpoint, whose tensors are computed when they are read. On prompts: (document,
            Around) -> document, in which "question" may be another, and there may be "begun" (words with which the
            model's turn begins), "examples" (documents asked and answered before it) and "noise" (the share of the
            answer's tokens that the model reads otherwise than they are). `Impossible` where the document has not got
            what it takes.
        on: which of the two.
        what: it does, in a line.
        source: whose definition it is.
        tokens_only: it changes nothing that a generated text could show.
    """

    fn: Callable[..., Any]
    on: Literal["weights", "prompts"]
    what: str
    source: str = ""
    tokens_only: bool = False


class Impossible(InputError):
    """The data lack what an attack takes. Where all attacks are asked for it is left out; by name, it is refused."""
