"""Stories with a right and a wrong ending -> the ending that the model finds likelier.

This is the likelihood choice of the paper's table on speech language modelling (arXiv 2411.17607,
section 4), in four directions: S->S, S->T, T->S, T->T. Only the ending is scored, over the whole
vocabulary; the special ids around it are not. The paper does not say if it divides by length; the
default here is `mean`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from speechlm_jax.data.formats import Codes, Writer
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.likelihood import Choice, LengthRule, Score, choose

Direction = Literal["s2s", "s2t", "t2s", "t2t"]
DIRECTIONS: tuple[Direction, ...] = ("s2s", "s2t", "t2s", "t2t")
CHANCE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a story: its words, and the codes of a voice that says them."""

    text: str
    codes: Codes


@dataclasses.dataclass(frozen=True, eq=False)
class Story:
    """A story's beginning and two endings.

    Attributes:
      story: name in the items, by which the interval is drawn.
      voice: voice of all three parts.
      wording: wording of the endings.
    """

    story: str
    voice: str
    wording: str
    beginning: Part
    right: Part
    wrong: Part


def story_items(
    figure: str,
    stories: Sequence[Story],
    *,
    direction: Direction,
    score: Score,
    writer: Writer,
    length_rule: LengthRule = "mean",
) -> list[Item]:
    """Returns one item per story: 1 if the right ending is likelier, 0.5 for a tie; chance: 50%."""
    choices = [_choice(story, direction, writer) for story in stories]
    return [
        _item(figure, story, best=chosen.best, credit=chosen.credit(0))
        for story, chosen in zip(
            stories, choose(choices, score, length_rule=length_rule), strict=True
        )
    ]


def _choice(story: Story, direction: Direction, writer: Writer) -> Choice:
    spoken_beginning, spoken_ending = direction[0] == "s", direction[2] == "s"
    beginning = story.beginning.codes if spoken_beginning else story.beginning.text
    return Choice(
        prompt=writer.prompt(beginning, then="speech" if spoken_ending else "text"),
        continuations=tuple(
            writer.continuation(ending.codes if spoken_ending else ending.text)
            for ending in (story.right, story.wrong)
        ),
    )


def _item(figure: str, story: Story, *, best: int, credit: float) -> Item:
    return Item(
        figure=figure,
        voice=story.voice,
        fact=story.story,
        wording=story.wording,
        reference=story.right.text,
        hypothesis=(story.right if best == 0 else story.wrong).text,
        numerator=credit,
        denominator=1.0,
    )
