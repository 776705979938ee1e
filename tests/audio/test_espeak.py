"""A clip is a function of its text and voice; its words are where their times say."""

import subprocess
import sys

import numpy as np
import pytest

from speechlm_jax.audio import espeak
from speechlm_jax.audio.espeak import Request, Voice, make_voices, synthesize
from speechlm_jax.errors import UserError

pytest.importorskip("espeakng_loader", reason="needs the `espeak` extra")
TEXTS = ("what is the city of anna it is paris", "frederick has a tiger", "soup")


def requests(count: int = 12) -> list[Request]:
    # f3 and f5 are the breathy ones, whose noise needs a seed.
    voices = [Voice("en-US", v, 50, 150) for v in ("f3", "m1", "f5", "Andy")]
    return [Request(TEXTS[i % 3], voices[i % 4]) for i in range(count)]


def wavs(asked: list[Request], *, workers: int) -> list[np.ndarray]:
    return [clip.wav for clip in synthesize(asked, workers=workers)]


def test_samples_depend_on_neither_order_nor_worker_count():
    asked = requests()
    one = wavs(asked, workers=1)
    for other in (
        wavs(asked, workers=3),
        wavs(asked[::-1], workers=2)[::-1],
        wavs(asked, workers=1),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_words_are_those_of_the_text_in_order_and_inside_the_clip():
    for request, clip in zip(requests(), synthesize(requests()), strict=True):
        assert [word.text for word in clip.words] == request.text.split()
        times = np.array([(word.start, word.end) for word in clip.words])
        assert (times[:, 0] < times[:, 1]).all() and (times[:-1, 1] <= times[1:, 0]).all()
        assert times[0, 0] >= 0 and times[-1, 1] <= len(clip.wav) / clip.sample_rate
        for start, end in times:
            word = clip.wav[int(start * clip.sample_rate) : int(end * clip.sample_rate)]
            assert np.abs(word).max() > 0.02
        assert np.abs(clip.wav).max() < 1.0 and clip.wav.dtype == np.float32


def test_rate_and_pitch_and_voice_are_heard():
    voice = Voice("en", "m1", 50, 150)
    slow, high, other = (
        Voice("en", "m1", 50, 120),
        Voice("en", "m1", 80, 150),
        Voice("en", "f4", 50, 150),
    )
    base, *changed = wavs([Request(TEXTS[0], v) for v in (voice, slow, high, other)], workers=1)
    assert len(changed[0]) > 1.1 * len(base)
    assert all(len(w) != len(base) or not np.allclose(w, base) for w in changed)


def test_the_sample_rate_is_the_asked_one():
    request = [Request(TEXTS[1], Voice())]
    low, high = (next(synthesize(request, sample_rate=rate)) for rate in (8_000, 22_050))
    assert abs(len(low.wav) / 8_000 - len(high.wav) / 22_050) < 0.001
    assert low.words == high.words


def test_voices_are_many_and_held_out_by_whole_variants():
    voices = make_voices(0)
    assert len(voices.train) >= 40 and len(voices.held_out) >= 6
    assert not {v.variant for v in voices.train} & {v.variant for v in voices.held_out}
    assert len({v.variant for v in voices.held_out}) >= 2
    names = [voice.name for voice in voices.train + voices.held_out]
    assert len(set(names)) == len(names)
    assert make_voices(0) == voices != make_voices(1)


def test_a_voice_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="en-US\\+nobody|en-XX"):
        list(synthesize([Request("hello", Voice("en-XX", "m1"))]))


def test_a_missing_extra_is_named(monkeypatch):
    def version(name):
        raise espeak.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(espeak.importlib.metadata, "version", version)
    with pytest.raises(UserError, match=r"'\.\[espeak\]'"):
        list(synthesize(requests(1)))


def test_a_reader_who_stops_early_leaves_no_process(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*given, **more):
        started.append(popen(*given, **more))
        return started[-1]

    monkeypatch.setattr(espeak.subprocess, "Popen", start)
    clips = synthesize(requests(12), workers=2)
    next(clips)
    assert [process.poll() for process in started] == [None, None]
    clips.close()
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_the_room_imports_no_jax():
    audio = "espeak espeak_worker recordings griffin_lim corpus features"
    names = [*(f"audio.{name}" for name in audio.split()), "jobs.worker"]
    code = ";".join(f"import speechlm_jax.{name}" for name in names)
    code += ";import sys;sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
