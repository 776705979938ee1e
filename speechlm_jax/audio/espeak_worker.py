"""A process that speaks: JSON lines in, clips out. Only `speechlm_jax.audio.espeak` starts it.

eSpeak NG keeps state from clip to clip (flutter, phase), so a clip's samples would depend on the
clips before it. This process initialises the library once and forks for every clip: each clip
starts from the same state, whatever the order. It imports nothing heavy, so a fork costs about a
millisecond, and it never imports JAX, whose threads do not survive a fork.

Input, one per line: {"text", "voice", "pitch", "rate", "volume"}.
Output: a JSON line {"bytes", "sample_rate", "events"}, then `bytes` bytes of 16-bit mono samples;
or a JSON line {"error"}. Events are (kind, sample, position, length), kind "word" or "pause".
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

import espeakng_loader

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback
_PHONEME_EVENTS, _DO_NOT_EXIT = 0x1, 0x8000
_UTF8 = 1
_RATE, _VOLUME, _PITCH = 1, 2, 3  # espeak_PARAMETER
_WORD, _PHONEME = 1, 7  # espeak_EVENT_TYPE
_PAUSES = (b"", b"_", b"_:", b"_|")


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Engine:
    """The library, initialised once; call `speak` in a forked child."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        options = _PHONEME_EVENTS | _DO_NOT_EXIT
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, options)
        if self.sample_rate <= 0:
            raise RuntimeError("eSpeak NG did not start: its data folder is not where it should be")
        self._samples = bytearray()
        self._events: list[tuple[str, int, int, int]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only a pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, request: dict[str, Any]) -> bytes:
        """Returns one clip as the bytes of the protocol."""
        if self._library.espeak_SetVoiceByName(request["voice"].encode()):
            return _line({"error": f"eSpeak NG has no voice '{request['voice']}'"})
        # Breathy variants (f3, f5) draw noise from a generator that is seeded with the time.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._library.espeak_SetParameter(_RATE, request["rate"], 0)
        self._library.espeak_SetParameter(_PITCH, request["pitch"], 0)
        self._library.espeak_SetParameter(_VOLUME, request["volume"], 0)
        text = request["text"].encode() + b"\0"
        failed = self._library.espeak_Synth(text, len(text), 0, 1, 0, _UTF8, None, None)
        if failed or self._library.espeak_Synchronize():
            return _line({"error": f"eSpeak NG could not say {request['text']!r}"})
        head = {
            "bytes": len(self._samples),
            "sample_rate": self.sample_rate,
            "events": self._events,
        }
        return _line(head) + bytes(self._samples)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples += ctypes.string_at(samples, 2 * count)
        index = 0
        while events[index].type:
            event = events[index]
            if event.type == _WORD:
                self._events.append(("word", event.sample, event.position, event.length))
            elif event.type == _PHONEME and event.id.string in _PAUSES:
                self._events.append(("pause", event.sample, event.position, 0))
            index += 1
        return 0


def main() -> None:
    """Answers every line of stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    engine = Engine()
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            _answer(engine, line)
        _, status = os.waitpid(child, 0)
        if status:
            _write(_line({"error": f"eSpeak NG died (status {status}) on {line.decode().strip()}"}))


def _answer(engine: Engine, line: bytes) -> None:
    """Answers in the child; writes after synthesis, so that a crash leaves no partial answer."""
    status = 1
    try:
        _write(engine.speak(json.loads(line)))
        status = 0
    finally:
        os._exit(status)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
