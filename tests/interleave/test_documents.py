"""Rows are documents, or are set aside with their place and a reason."""

import pytest

from speechlm_jax.interleave.documents import document_digest, good_documents, text_id

BAD = {
    "no text": ({"id": "a"}, 'has no "text"'),
    "null": ({"text": None}, 'has no "text"'),
    "a number": ({"text": 7}, "no string but a int"),
    "a list": ({"text": ["a"]}, "no string but a list"),
    "blank": ({"text": " \n\u3000"}, "holds no words"),
    "dots": ({"text": "... !?"}, "holds no words"),
    "half a pair": ({"text": "a \ud800 b"}, "UTF-8"),
    "half a pair in another field": ({"text": "a", "title": "\udfff"}, "UTF-8"),
    "half a pair in the id": ({"text": "a", "id": "\udfff"}, "UTF-8"),
    "bytes": ({"text": "a", "image": b"\0"}, "cannot be written as JSON"),
    "an id of another kind": ({"text": "a", "id": 1.5}, '"id" is neither'),
    "a flag for an id": ({"text": "a", "id": True}, '"id" is neither'),
    "a list for a row": ([1], "is not a JSON object"),
}


def read(rows):
    bad = []
    places = ((f"f:{number}", row) for number, row in enumerate(rows, 1))
    return list(good_documents(places, bad)), bad


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_set_aside_and_the_next_is_read(name):
    row, reason = BAD[name]
    good, bad = read([row, {"text": "good", "id": "g", "title": "T"}])
    assert good == [{"text": "good", "id": "g", "title": "T"}]
    assert [one["place"] for one in bad] == ["f:1"]
    assert bad[0]["reason"].startswith("f:1: ") and reason in bad[0]["reason"]


def test_ids_are_given_or_follow_from_the_text():
    good, bad = read([{"text": "a", "id": 7}, {"text": "a", "id": None}, {"text": "b"}])
    assert [row["id"] for row in good] == ["7", text_id("a"), text_id("b")] and not bad
    assert len({text_id(text) for text in ("a", "A", "a ", "b")}) == 4


def test_two_of_one_id_are_told_apart_by_their_places():
    good, bad = read([{"text": "a", "id": 7}, {"text": "b", "id": "7"}, {"text": "c"}] * 2)
    assert [row["text"] for row in good] == ["a", "c"]
    assert [row["place"] for row in bad] == ["f:2", "f:4", "f:5", "f:6"]
    assert "its id '7' stands in f:1 too" in bad[0]["reason"]
    assert "its text stands in f:3 too" in bad[3]["reason"]


def test_a_digest_follows_from_id_text_and_seed():
    row = {"id": "a", "text": "bc"}
    others = [({"id": "ab", "text": "c"}, 0), ({"id": "a", "text": "bd"}, 0), (row, 1), (row, -1)]
    digests = [document_digest(row, seed=0), *(document_digest(r, seed=s) for r, s in others)]
    assert len(set(digests)) == 5
    assert document_digest({"text": "bc", "id": "a", "title": "x"}, seed=0) == digests[0]
