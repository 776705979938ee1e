"""Claims of the quickstart, with bars fixed before any run, and the chance level of its figures."""

from speechlm_jax.report.inputs import Claim

_GUESS = 1 / 8  # each attribute has 8 values

CHANCE = {  # by the beginning of a figure's name
    "tokenizer/abx": 0.5,
    "qa/": _GUESS,
    "chat/": _GUESS,
    "storycloze/": 0.5,
}


def _margin(stem: str, words: str) -> tuple[Claim, Claim]:
    figure = f"{stem}/margin"
    return (
        Claim(f"{words}: the interleaved arm is 25 points ahead", figure, "at least", 0.25),
        Claim(f"{words}: the margin's interval excludes zero", figure, "above", 0.0, part="low"),
    )


CLAIMS = (
    Claim("Tokenizer: word errors on unseen strings of words", "tokenizer/wer", "at most", 0.25),
    Claim("Tokenizer: errors on names and values", "tokenizer/entity_wer", "at most", 0.25),
    Claim("Tokenizer: with another clip's codes", "tokenizer/wer_shuffled", "at least", 0.8),
    Claim("Codebook entries in use", "tokenizer/codebook_usage", "at least", 0.5),
    Claim("ABX on unheard words beats chance", "tokenizer/abx_dtw", "below", 0.5, part="high"),
    Claim("Text-to-token: word errors read back", "text_to_token/wer", "at most", 0.25),
    Claim("Speech decoder: word errors read back", "speech_decoder/wer", "at most", 0.5),
    Claim("Speech decoder: samples that clip", "speech_decoder/clipped_ratio", "at most", 0.0),
    Claim(
        "Speech decoder: not much softer", "speech_decoder/level_difference_db", "at least", -3.0
    ),
    Claim("Speech decoder: not much louder", "speech_decoder/level_difference_db", "at most", 3.0),
    Claim("S→T, same wording", "qa/s2t/interleaved", "at least", 0.6),
    Claim("S→T, new wording", "qa/s2t_new_wording/interleaved", "at least", 0.4),
    *_margin("qa/s2t", "S→T"),
    *_margin("qa/s2t_new_wording", "S→T, new wording"),
    *_margin("qa/s2t_choice", "S→T by likelihood"),
    *_margin("qa/s2t_new_wording_choice", "S→T by likelihood, new wording"),
    Claim("The other arm knows the facts as text", "qa/t2t/baseline", "at least", 0.9),
    Claim("Chat, text-guided", "chat/text_guided", "at least", 0.5),
    *(
        Claim(
            f"{words} falls to a guess with shuffled codes", figure, "at most", _GUESS, part="low"
        )
        for words, figure in (
            ("S→T", "qa/s2t_shuffled/interleaved"),
            ("S→S", "qa/s2s_shuffled/interleaved"),
            ("Chat", "chat/text_guided_shuffled"),
        )
    ),
    *(
        Claim(words, figure, "above", bar, part="low", kind="finding")
        for words, figure, bar in (
            ("S→S: the interleaved arm is ahead", "qa/s2s/margin", 0.0),
            ("S→S by likelihood: it is ahead", "qa/s2s_choice/margin", 0.0),
            ("Facts met as text alone are spoken", "qa/s2t_text_only/interleaved", _GUESS),
        )
    ),
)
