"""Suite for a speech tokenizer on held-out clips: word errors, controls, codebook usage, ABX."""

from speechlm_jax.evals import abx, codebook
from speechlm_jax.evals.controls import exchange
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import ReadCodes
from speechlm_jax.evals.suites.clips import EvaluationClips, readings
from speechlm_jax.evals.wer import entity_wer_items, wer_items
from speechlm_jax.speech_tokenizer.reading import Transcriber


def tokenizer_items(
    spoken: EvaluationClips, read: ReadCodes, reader: Transcriber, *, seed: int
) -> list[Item]:
    """Scores WER on held-out voices, on entities alone, with other clips' codes; usage; ABX."""
    entities = spoken.world.tables.entities
    strings = spoken.of_kind("eval_string")
    items = []
    for name, kind in (
        ("", "eval_string"),
        ("_sentences", "eval_sentence"),
        ("_questions", "question"),
    ):
        rows = spoken.of_kind(kind)
        heard = readings(rows, read([row["codes"] for row in rows]))
        items += wer_items(f"tokenizer/wer{name}", heard)
        if kind == "eval_string":
            items += entity_wer_items("tokenizer/entity_wer", heard, entities)
    shuffled = exchange([r["codes"] for r in strings], [r["text"] for r in strings], seed=seed)
    items += wer_items("tokenizer/wer_shuffled", readings(strings, read(shuffled)))
    counts = codebook.code_counts(held_out_codes(spoken), codebook_size=len(reader.codebook))
    items += codebook.usage_items("tokenizer/codebook_usage", counts)
    words = spoken.unseen_words()
    for name in ("dtw", "edit"):
        distance = abx.make_distance(name, reader.codebook if name == "dtw" else None)
        items += abx.abx_items(
            f"tokenizer/abx_{name}", words, distance=distance, limit=4000, seed=seed
        )
    return items


def held_out_codes(spoken: EvaluationClips) -> list[list[int]]:
    """Returns the codes of held-out strings, sentences and questions."""
    kinds = ("eval_string", "eval_sentence", "question")
    return [row["codes"] for kind in kinds for row in spoken.of_kind(kind)]
