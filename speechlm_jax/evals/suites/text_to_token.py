"""Suite for a text-to-token model: its codes are read back."""

from collections.abc import Mapping, Sequence

from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import ReadCodes
from speechlm_jax.evals.wer import Reading, wer_items
from speechlm_jax.text_to_token.synthesize import SpeechRequest, TextToToken


def text_to_token_items(
    texts: Mapping[str, Sequence[str]],
    model: TextToToken,
    read: ReadCodes,
    *,
    voices: Sequence[str],
    seed: int,
) -> list[Item]:
    """Scores read-back WER on unseen texts, by figure; words left unsaid count as deleted."""
    items = []
    for name, lines in texts.items():
        requests = [
            SpeechRequest(text, voice=voices[i % len(voices)], seed=seed + i)
            for i, text in enumerate(lines)
        ]
        heard = read([codes.tolist() for codes in model.text_to_codes(requests)])
        pairs = [
            Reading(request.text, hypothesis, voice=request.voice)
            for request, hypothesis in zip(requests, heard, strict=True)
        ]
        items += wer_items(name, pairs)
    return items
