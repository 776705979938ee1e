"""The quickstart's data: tasks over one run's folder, and a mixture for each arm.

The run's folder is the environment variable SPEECHLM_RUN. Its `sources.json` says where the data
lies, relative to the folder; each entry is a list:

    {"text": ["text/*.jsonl"], "speech": ["codes/speech"], "pairs": ["codes/pairs"],
     "interleaved": ["interleaved"], "voiced": ["codes/pairs"], "dialogues": ["dialogues"],
     "read_aloud": ["read_aloud"]}
"""

import functools
import os
from pathlib import Path

from speechlm_jax import artifacts
from speechlm_jax.data import tasks
from speechlm_jax.errors import UserError


def places(kind: str) -> list[Path]:
    """Where the run keeps data of a kind: text, speech, pairs, ..."""
    if "SPEECHLM_RUN" not in os.environ:
        raise UserError("SPEECHLM_RUN: is not set; set it to a quickstart run's folder")
    run = Path(os.environ["SPEECHLM_RUN"])
    sources = artifacts.read_json(run / "sources.json")
    if not sources.get(kind):
        raise UserError(
            f"{run / 'sources.json'}: lists no '{kind}'; run the quickstart's step that makes it"
        )
    return [run / place for place in sources[kind]]


text, speech, pairs, interleaved, voiced, dialogues, read_aloud = (
    functools.partial(places, kind)
    for kind in ("text", "speech", "pairs", "interleaved", "voiced", "dialogues", "read_aloud")
)

tasks.text("q_text", text)
tasks.speech("q_speech", speech)
tasks.asr("q_asr", pairs)
tasks.tts("q_tts", pairs)
tasks.interleaved("q_interleaved", interleaved)
tasks.folder_text("q_text_of_interleaved", interleaved)
tasks.voiced_tts("q_text_to_token", voiced)
tasks.dialogue("quickstart_chat", dialogues)
tasks.dialogue("q_read_aloud", read_aloud)

# Rates are shares of tokens. The arms differ in 0.45 of them: one has interleaved documents, the
# other the text of the same documents and more speech that states no facts. ASR's share is large
# because only its transcripts, one id in six, count in the loss.
COMMON = {"q_text": 0.10, "q_speech": 0.05, "q_asr": 0.25, "q_tts": 0.15}
tasks.mixture("quickstart_interleaved", COMMON | {"q_interleaved": 0.45})
tasks.mixture("quickstart_baseline", COMMON | {"q_text_of_interleaved": 0.20, "q_speech": 0.30})
# In quickstart_chat the question alone determines the spoken reply. In q_read_aloud, where the
# assistant reads a written string aloud, only the text of the reply does.
tasks.mixture("quickstart_sft", {"quickstart_chat": 0.3, "q_read_aloud": 0.7})
