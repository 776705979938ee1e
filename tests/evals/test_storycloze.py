"""Properties of speechlm_jax.evals.storycloze."""

import pytest

from speechlm_jax.evals.items import figure_from_items
from speechlm_jax.evals.storycloze import DIRECTIONS, Part, Story, story_items

STORIES = [
    Story(
        story=f"story {n}",
        voice="v",
        wording="w",
        beginning=Part("the city of anna", [1, 2]),
        right=Part("it is paris", [5, 6]),
        wrong=Part("it is rome", [5, 8]),
    )
    for n in range(3)
]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ids_of_each_direction(writer, direction):
    seen = []

    def score(requests):
        seen.extend(requests)
        return [-float(i % 2) for i in range(len(requests))]

    items = story_items("s", STORIES, direction=direction, score=score, writer=writer)
    assert figure_from_items(items).value == 1
    assert len(seen) == 6
    story, vocab = STORIES[0], writer.vocab
    begin, end = vocab["begin_of_speech"], vocab["end_of_speech"]
    written = writer.continuation(story.beginning.text)
    spoken = writer.continuation(story.beginning.codes)
    prompts = {
        "s2s": [begin, *spoken],
        "s2t": [begin, *spoken, end],
        "t2s": [*written, begin],
        "t2t": written,
    }
    assert seen[0].prompt == prompts[direction]
    ending = story.wrong.codes if direction.endswith("s") else story.wrong.text
    assert seen[1].continuation == writer.continuation(ending)


def test_wrong_endings_and_ties(writer):
    for scores, expected, hypothesis in (((0.0, 1.0), 0, "rome"), ((1.0, 1.0), 0.5, "paris")):
        items = story_items(
            "s",
            STORIES,
            direction="t2t",
            score=lambda requests, scores=scores: [scores[i % 2] for i in range(len(requests))],
            writer=writer,
        )
        assert figure_from_items(items).value == expected
        assert items[0].hypothesis.endswith(hypothesis)
        assert items[0].fact == "story 0"
