"""Audio, spectrograms, documents and answers -> the HTML that shows them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax.evals.items import Item
from speechlm_jax.report.charts import label
from speechlm_jax.report.inputs import Audio, MelPair
from speechlm_jax.report.media import mel_to_png, wav_to_address, wav_to_bars

NUM_ANSWERS = 8
_GOLDEN_ANGLE = 137.508  # neighbouring codes get hues far apart


def players(audio: Sequence[Audio], *, headings: bool = True) -> str:
    """Draws players by group, each with its words and its waveform."""
    groups: dict[str, list[str]] = defaultdict(list)
    for clip in audio:
        text = f"<blockquote>{escape(clip.text)}</blockquote>" if clip.text else ""
        groups[clip.group].append(
            f'<figure class="player"><figcaption>{escape(clip.title)}</figcaption>{text}'
            f"{_sound(clip)}</figure>"
        )
    return "".join(
        f'{f"<h3>{escape(group)}</h3>" * headings}<div class="players">{"".join(clips)}</div>'
        for group, clips in groups.items()
    )


def _sound(clip: Audio) -> str:
    """Draws a waveform and its player, which is labelled for screen readers."""
    if clip.path is None:
        return '<p class="note">(says nothing)</p>'
    name = escape(f"{clip.group}: {clip.title}" + (f": {clip.text}" if clip.text else ""))
    return (
        f'{_waveform(clip.path)}<audio controls preload="metadata" aria-label="{name}" '
        f'src="{wav_to_address(clip.path)}"></audio>'
    )


def mel_pairs(pairs: Sequence[MelPair]) -> str:
    """Draws each original above its reconstruction, on one colour scale."""
    return "".join(_mel_pair(pair) for pair in pairs)


def documents(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws interleaved documents: words, and spoken spans with a stripe for each code."""
    drawn = "".join(
        f'<p class="document">{" ".join(_segment(segment) for segment in row["segments"])}</p>'
        for row in rows
    )
    return drawn


def answers(
    groups: Mapping[str, Sequence[Item]], stems: Sequence[str], *, arms: Sequence[str]
) -> str:
    """Draws two arms' answers to the same questions, a few of each kind; "" without two arms."""
    if len(arms) != 2:
        return ""
    columns, tables = ("Fact", "Voice", "Right", *arms), []
    for stem in stems:
        first, second = (
            {(i.fact, i.voice, i.wording): i for i in groups.get(f"{stem}/{arm}", ())}
            for arm in arms
        )
        asked = [key for key in first if key in second]
        # Every n-th, so that different facts and voices show.
        chosen = asked[:: max(1, len(asked) // NUM_ANSWERS)][:NUM_ANSWERS]
        if chosen:
            rows = "".join(_answer_row(columns, first[key], second[key]) for key in chosen)
            head = "".join(f"<th>{name}</th>" for name in columns)
            tables.append(
                f'<h3>{escape(label(stem))}</h3><div class="scroll"><table class="answers">'
                f"<tr>{head}</tr>{rows}</table></div>"
            )
    return "".join(tables)


def _answer_row(columns: Sequence[str], first: Item, second: Item) -> str:
    """Draws a row; each cell carries its column's name, which narrow windows show beside it."""
    asked = [escape(x) for x in (first.fact, first.voice, first.reference)]
    given = [
        f'<span class="state {"good" if item.numerator else "bad"}">'
        f"{escape(item.hypothesis) or '(silence)'}</span>"
        for item in (first, second)
    ]
    cells = zip(columns, [*asked, *given], strict=True)
    drawn = "".join(f'<td data-column="{name}">{cell}</td>' for name, cell in cells)
    return f"<tr>{drawn}</tr>"


def _waveform(path: Path) -> str:
    bars = wav_to_bars(path)
    if bars is None:
        return ""
    highest = max(max(bars), 1e-3)
    drawn = "".join(
        f'<rect x="{3 * i}" y="{20 - 19 * bar / highest:.1f}" width="2" rx="1" '
        f'height="{max(38 * bar / highest, 1):.1f}"/>'
        for i, bar in enumerate(bars)
    )
    return (
        f'<svg class="waveform" viewBox="0 0 {3 * len(bars)} 40" preserveAspectRatio="none" '
        f'aria-hidden="true">{drawn}</svg>'
    )


def _mel_pair(pair: MelPair) -> str:
    low, high = (float(edge) for edge in np.percentile(pair.original, (1, 99.9)))
    images = "".join(
        f'<div class="mel"><span>{name} · {len(mel) / pair.mel_rate_hz:.1f} s</span>'
        f'<img alt="{name} mel spectrogram of {escape(pair.title)}" '
        f'src="{mel_to_png(mel, low=low, high=high)}"></div>'
        for name, mel in (("original", pair.original), ("reconstruction", pair.reconstruction))
    )
    return f'<figure class="mels"><figcaption>{escape(pair.title)}</figcaption>{images}</figure>'


def _segment(segment: Mapping[str, Any]) -> str:
    words = escape(segment.get("text", ""))
    if "codes" not in segment:
        return f"<span>{words}</span>"
    codes = segment["codes"]
    stripes = "".join(
        f'<rect x="{i}" width="1.03" height="1" fill="hsl({code * _GOLDEN_ANGLE % 360:.0f} 62% '
        f'{48 + 14 * (code % 3)}%)"/>'
        for i, code in enumerate(codes)
    )
    listed = " ".join(str(code) for code in codes)
    return (
        f'<span class="spoken" title="{len(codes)} codes: {listed}"><span>{words}</span>'
        f'<svg viewBox="0 0 {max(len(codes), 1)} 1" preserveAspectRatio="none" aria-hidden="true">'
        f"{stripes}</svg></span>"
    )
