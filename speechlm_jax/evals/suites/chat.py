"""Suite for a spoken chat: replies in both modes, their speech read back."""

from collections.abc import Sequence

from speechlm_jax.chat.dialogue import Chat, Mode
from speechlm_jax.evals import spoken_qa
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import Question, ReadCodes
from speechlm_jax.evals.suites.language_model import exchange_codes


def chat_items(
    questions: Sequence[Question], chat: Chat, read: ReadCodes, *, suffix: str = "", seed: int
) -> list[Item]:
    """Scores replies in both modes, read back from speech, also with other questions' codes."""
    items = []
    modes: tuple[Mode, ...] = ("speech_only", "text_guided")
    for mode in modes:
        for name, asked in (("", questions), ("_shuffled", exchange_codes(questions, seed=seed))):
            replies = chat.reply([q.codes for q in asked], mode=mode, seed=seed)
            heard = read([reply.codes.tolist() for reply in replies])
            items += spoken_qa.reply_items(f"chat/{mode}{suffix}{name}", asked, heard)
    return items
