"""Properties of speechlm_jax.evals.exposure."""

import pytest

from speechlm_jax.evals.exposure import Exposure, Mention, count_exposure, statement_finder

STATEMENTS = {
    "anna lives in paris": "anna/city",
    "what is the city of anna it is paris": "anna/city",
    "bob lives in rome": "bob/city",
    "bob lives in rome today": "bob/city",
    "eve lives in oslo": "eve/city",
}
CLASSES = {"anna/city": "interleaved", "bob/city": "text_only", "eve/city": "text_only"}


def test_finds_the_longest_without_overlap():
    words = "so bob lives in rome today anna lives in paris bob lives in".split()
    found = list(statement_finder(STATEMENTS)(words))
    assert found == [Mention("bob/city", 1, 6), Mention("anna/city", 6, 10)]


def test_a_short_statement_at_the_very_end():
    found = list(statement_finder(STATEMENTS)("bob lives in rome".split()))
    assert found == [Mention("bob/city", 0, 4)]


def test_counts_by_modality_and_class():
    documents = [
        {"text": "Anna lives in Paris. Bob lives in Rome."},
        {
            "segments": [
                {"text": "bob lives in rome anna"},
                {"codes": [1, 2], "text": "lives in paris anna lives in paris"},
                {"text": "anna lives in paris"},
            ]
        },
    ]
    counts = count_exposure(documents, find=statement_finder(STATEMENTS), classes=CLASSES)
    assert counts == {
        "interleaved": Exposure(facts=1, facts_as_text=1, as_text=2, as_speech=1, across=1),
        "text_only": Exposure(facts=2, facts_as_text=1, as_text=2, as_speech=0, across=0),
    }


def test_a_fact_without_class_is_an_error():
    with pytest.raises(KeyError):
        count_exposure(
            [{"text": "bob lives in rome"}], find=statement_finder(STATEMENTS), classes={}
        )
