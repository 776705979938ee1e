"""A user's folder, as users have them: mixed formats and rates, cased text, one cut recording."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechlm_jax import artifacts
from speechlm_jax.audio.espeak import Request, Voice, synthesize

SPEAKERS = {
    "Ann": Voice("en-US", "f1"),
    "Ben": Voice("en", "m1", pitch=40),
    "Cy": Voice("en-GB-scotland", "m4", rate=140),
}
SENTENCES = (
    "The grey cat sat on the warm wall.",
    "Nobody saw the small boat leave.",
    "Rain fell all night on the old roof.",
    "She counted SEVEN ships in the bay.",
)
FORMATS = ((".wav", 16_000, 1), (".flac", 44_100, 2), (".ogg", 22_050, 1), (".mp3", 32_000, 2))
TEXT = (
    "The sea was calm that morning, and the boats went out before light. Nobody spoke; the old "
    "roof of the harbour house shone with rain.\n\nA grey cat sat on the wall and watched seven "
    "ships leave the bay. \u201cWarm days are coming,\u201d said the miller, and he counted them "
    "again.\n"
)


def make_own_folder(folder: Path) -> tuple[Path, Path]:
    """Twelve clips of three speakers, the last of which is cut off, and a text file."""
    speech = folder / "recordings"
    speech.mkdir(parents=True)
    pairs = [(name, text) for text in SENTENCES for name in SPEAKERS]
    clips = synthesize([Request(text, SPEAKERS[name]) for name, text in pairs])
    rows = []
    for number, ((name, text), clip) in enumerate(zip(pairs, clips, strict=True)):
        suffix, rate, channels = FORMATS[number % len(FORMATS)]
        wav = soxr.resample(clip.wav, 16_000, rate)
        path = speech / f"clip {number:02d}{suffix}"  # a blank in the name
        soundfile.write(path, np.stack([wav] * channels, axis=1), rate)
        rows.append({"audio": path.name, "text": text, "speaker": name})
    last = speech / rows[-1]["audio"]
    last.write_bytes(last.read_bytes()[:40])
    artifacts.write_jsonl(speech / "manifest.jsonl", rows)
    text_file = folder / "My text.txt"
    text_file.write_text(TEXT * 6, encoding="utf-8")
    return speech, text_file
