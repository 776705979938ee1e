"""Checks the rows of a file: yields documents that can be interleaved, sets others aside."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

BAD = "bad.jsonl"


def good_documents(
    rows: Iterable[tuple[str, Any]], bad: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the rows that can be interleaved, each with an "id" and a "text", both strings.

    A row without an id gets one from its text, so that it is the same document in every file. A row
    that cannot be used goes to `bad` as {"place", "reason"}: a row without words, with a field that
    JSON in UTF-8 cannot hold, or with the id of an earlier row; also a row without an id whose text
    an earlier one has.

    Args:
      rows: place of each row ("my.jsonl:3"), and the row.
      bad: list of the rows set aside; grows as the rows are read.
    """
    seen: dict[str, str] = {}
    for place, row in rows:
        reason = _fault(row)
        if reason is None:
            id_ = row.get("id")
            its_id = text_id(row["text"]) if id_ is None else str(id_)
            if its_id in seen:
                same = "text" if id_ is None else f"id {its_id!r}"
                reason = f"its {same} stands in {seen[its_id]} too; give it another or drop it"
            else:
                seen[its_id] = place
                yield {**row, "id": its_id}
        if reason is not None:
            bad.append({"place": place, "reason": f"{place}: {reason}"})


def text_id(text: str) -> str:
    """Returns an id that follows from the text."""
    return f"text-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def document_digest(row: dict[str, Any], *, seed: int) -> bytes:
    """Returns 64 random bytes that follow from a document's id and text, and from the seed."""
    id_, text = row["id"].encode(), row["text"].encode()
    return hashlib.blake2b(b"%d %d %s %s" % (seed, len(id_), id_, text)).digest()


def _fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return 'is not a JSON object; write rows with a "text"'
    if "text" not in row or row["text"] is None:
        return 'has no "text"; give it one or drop it'
    if not isinstance(row["text"], str):
        return f'its "text" is no string but a {type(row["text"]).__name__}; give it one or drop it'
    if not any(map(str.isalnum, row["text"])):
        return 'its "text" holds no words; drop it'
    if type(row.get("id")) not in (str, int, type(None)):
        return 'its "id" is neither a string nor a whole number; give it one or leave it out'
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"cannot be written as JSON in UTF-8 ({error}); repair it or drop it"
    return None
