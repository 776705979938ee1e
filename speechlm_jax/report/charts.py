"""Figures, curves and counts -> charts in HTML and inline SVG, readable at any width."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

from speechlm_jax.arrays import Float, Integer, ndarray
from speechlm_jax.evals.items import MARGIN, Figure
from speechlm_jax.report.claims import chance_of

Curve = Sequence[tuple[float, float]]
MAX_POINTS = 300
LABELS = {
    "qa/s2t": "Speech → text",
    "qa/s2t_new_wording": "Speech → text, new wording",
    "qa/s2t_choice": "Speech → text, by likelihood",
    "qa/s2t_new_wording_choice": "Speech → text, new wording, by likelihood",
    "qa/s2s": "Speech → speech",
    "qa/s2s_choice": "Speech → speech, by likelihood",
    "qa/s2t_text_only": "Speech → text, facts met as text alone",
    "qa/s2t_text_only_choice": "Speech → text, facts met as text alone, by likelihood",
    "qa/t2t": "Text → text",
    "qa/s2t_shuffled": "Speech → text, another question's codes",
    "qa/s2s_shuffled": "Speech → speech, another question's codes",
    "qa/t2t_choice": "Text → text, by likelihood",
    "qa/t2t_new_wording": "Text → text, new wording",
    "qa/t2t_text_only": "Text → text, facts met as text alone",
    "qa/s2s_new_wording": "Speech → speech, new wording",
    "qa/s2s_text_only": "Speech → speech, facts met as text alone",
    "storycloze/s2s": "Story endings, speech → speech",
    "storycloze/s2t": "Story endings, speech → text",
    "storycloze/t2s": "Story endings, text → speech",
    "storycloze/t2t": "Story endings, text → text",
    "tokenizer/wer": "Tokenizer, word errors",
    "tokenizer/entity_wer": "Tokenizer, errors on names and values",
    "tokenizer/wer_shuffled": "Tokenizer, word errors",
    "tokenizer/codebook_usage": "Codebook entries in use",
    "tokenizer/wer_sentences": "Tokenizer, word errors on sentences",
    "tokenizer/wer_train": "Tokenizer, word errors on clips that it was trained on",
    "tokenizer/wer_questions": "Tokenizer, word errors on questions",
    "tokenizer/abx_dtw": "ABX errors on unheard words",
    "tokenizer/abx_edit": "ABX errors on unheard words, by edits",
    "text_to_token/wer": "Text-to-token, word errors",
    "text_to_token/wer_strings": "Text-to-token, word errors on strings",
    "interleaved/wer": "Spans of documents, word errors",
    "speech_decoder/wer": "Speech decoder, word errors",
    "speech_decoder/clipped_ratio": "Speech decoder, samples that clip",
    "chat/speech_only": "Chat, speech alone",
    "chat/text_guided": "Chat, text first",
    "chat/speech_only_shuffled": "Chat, speech alone",
    "chat/text_guided_shuffled": "Chat, text first",
}
TASKS = {  # by the part of a task's name after its first underscore, for charts of held-out loss
    "text": "text",
    "speech": "speech alone",
    "asr": "speech → its text",
    "tts": "text → its speech",
    "interleaved": "interleaved documents",
    "text_of_interleaved": "the same documents as text",
    "text_to_token": "voice and text → speech",
    "read_aloud": "strings read aloud",
    "chat": "spoken dialogues",
}


HEADLINES = (  # the other figures are folded
    "qa/s2t",
    "qa/s2t_new_wording",
    "qa/s2t_choice",
    "qa/s2t_new_wording_choice",
    "qa/s2s",
    "qa/s2s_choice",
    "qa/s2t_text_only",
    "qa/t2t",
    "storycloze/s2s",
    "storycloze/s2t",
    "storycloze/t2s",
    "storycloze/t2t",
)


def label(name: str) -> str:
    """Returns the label of a figure or a task, or its name if it has no label."""
    return LABELS.get(name) or TASKS.get(name.partition("_")[2], name)


def percent(value: float) -> str:
    """Formats a measured fraction in whole percent."""
    return f"{100 * value:.0f}%"


def exact_percent(value: float) -> str:
    """Formats a given fraction, such as a bar or a guess, in percent without rounding: 12.5%."""
    return f"{100 * value:.6g}%"


def amount(figure: str, value: float) -> str:
    """Formats a measured value in its figure's unit: dB if the name ends in `_db`, else percent."""
    return f"{value:+.1f} dB" if figure.endswith("_db") else percent(value)


def arms_chart(
    figures: Mapping[str, Figure], chance: Mapping[str, float], *, arms: Sequence[str]
) -> str:
    """Draws two arms side by side, one group per kind of question: bars, intervals, chance line."""
    ends = tuple(f"/{arm}" for arm in arms)
    stems = list(dict.fromkeys(n.rpartition("/")[0] for n in figures if n.endswith(ends)))
    shown = "".join(_duel(stem, figures, chance, arms) for stem in HEADLINES if stem in stems)
    folded = "".join(_duel(stem, figures, chance, arms) for stem in stems if stem not in HEADLINES)
    more = f"<details><summary>Variants and controls</summary>{folded}</details>" if folded else ""
    return shown + more


def _duel(
    stem: str, figures: Mapping[str, Figure], chance: Mapping[str, float], arms: Sequence[str]
) -> str:
    rows = "".join(
        rate_row(figures[name], kind=arm, name=arm, chance=chance_of(stem, chance))
        for arm in arms
        if (name := f"{stem}/{arm}") in figures
    )
    heading = f"{escape(label(stem))}{_margin_chip(figures.get(f'{stem}/{MARGIN}'))}"
    return f'<div class="duel"><h3>{heading}</h3>{rows}</div>'


def rate_row(
    figure: Figure,
    *,
    kind: str,
    name: str = "",
    chance: float | None = None,
    bar: float | None = None,
) -> str:
    """Draws a bar from 0 to 100% with its interval; `chance` and `bar` are marks on the track."""
    marks = "".join(
        f'<i class="{mark}" style="left:{_at(at)}" title="{mark} {exact_percent(at)}"></i>'
        for mark, at in (("chance", chance), ("goal", bar))
        if at is not None
    )
    return (
        f'<div class="rate {escape(kind)}"><span class="name">{escape(name)}</span>'
        f'<span class="track"><b style="width:{_at(figure.value)}"></b>{marks}'
        f'<i class="interval" style="left:{_at(figure.low)};'
        f'width:{_at(_clip(figure.high) - _clip(figure.low))}"></i></span>'
        f'<span class="number"><strong>{percent(figure.value)}</strong> '
        f"<small>{100 * figure.low:.0f}–{100 * figure.high:.0f} · {figure.count:,}</small>"
        f"</span></div>"
    )


def line_chart(title: str, curves: Mapping[str, Curve], *, arms: Sequence[str] = ()) -> str:
    """Draws one panel of curves over steps; the legend gives the last value of each.

    Curves of `arms` keep their colours from panel to panel.
    """
    points = {
        name: thin(np.array(curve, float).reshape(-1, 2)) for name, curve in curves.items() if curve
    }
    if not points:
        return ""
    values = np.concatenate([curve[:, 1] for curve in points.values()])
    # The first steps of a loss would flatten all the rest, so the panel cuts them off at the top.
    bottom, top = float(values.min()), float(np.percentile(values, 97))
    if top - bottom < 1e-3 * abs(top):  # one point, or a level line: in the middle
        bottom, top = bottom - 0.5, top + 0.5
    ticks = MaxNLocator(3).tick_values(bottom, top)
    low, high = float(ticks[0]), float(ticks[-1])
    last = max(curve[-1, 0] for curve in points.values())
    lines = "".join(
        f'<polyline class="curve {_series_class(name, i, arms)}{" dot" * (len(curve) == 1)}" '
        f'points="{_polyline(curve, last, low, high)}"/>'
        for i, (name, curve) in reversed(list(enumerate(points.items())))
    )
    grid = "".join(
        f'<i style="top:{100 - 100 * (tick - low) / (high - low):.1f}%"><small>{tick:g}</small></i>'
        for tick in ticks
    )
    legend = "".join(
        f'<span class="{_series_class(name, i, arms)}">{escape(name)} '
        f"<b>{curve[-1, 1]:.2f}</b></span>"
        for i, (name, curve) in enumerate(points.items())
    )
    return (
        f'<figure class="panel"><figcaption>{escape(title)}</figcaption><div class="plot">{grid}'
        f'<svg viewBox="0 0 300 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} over steps">{lines}</svg></div>'
        f'<div class="axis"><span>0</span><span>{last:,.0f} steps</span></div>'
        f'<div class="legend">{legend}</div></figure>'
    )


def codebook_chart(counts: Integer[ndarray, " codebook"]) -> str:
    """Draws the counts of entries from the most to the least used, against even use (dashed)."""
    ranked = np.sort(counts)[::-1].astype(float)
    highest = max(float(ranked.max(initial=0)), 1.0)
    size = len(ranked)
    tops = "".join(
        f"L{i} {100 - 100 * count / highest:.2f}L{i + 1} {100 - 100 * count / highest:.2f}"
        for i, count in enumerate(ranked)
    )
    even = 100 - 100 * ranked.mean() / highest
    return (
        f'<div class="plot codebook"><svg viewBox="0 0 {size} 100" preserveAspectRatio="none" '
        f'role="img" aria-label="How often each codebook entry is used">'
        f'<path class="area" d="M0 100{tops}L{size} 100z"/>'
        f'<path class="even" d="M0 {even:.2f}H{size}"/></svg>'
        f'<i style="top:0"><small>{highest:,.0f}×</small></i></div>'
        f'<div class="axis"><span>most used</span><span>{size} entries</span></div>'
    )


def thin(curve: Float[ndarray, "points 2"]) -> Float[ndarray, "fewer 2"]:
    """Returns at most MAX_POINTS points: means of equal stretches, and the last point."""
    if len(curve) <= MAX_POINTS:
        return curve
    means = [part.mean(0) for part in np.array_split(curve[:-1], MAX_POINTS - 1)]
    return np.stack([*means, curve[-1]])


def _margin_chip(margin: Figure | None) -> str:
    if margin is None:
        return ""
    shown = "shown" if margin.low > 0 else "open"
    return (
        f'<span class="chip {shown}">{_points(margin.value)} points '
        f"<small>{_points(margin.low)} to {_points(margin.high)}</small></span>"
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.0f}".replace("-", "−")


def _series_class(name: str, number: int, arms: Sequence[str]) -> str:
    return name if name in arms else f"series{number % 4}"


def _polyline(curve: Float[ndarray, "points 2"], last: float, low: float, high: float) -> str:
    across = 300 * curve[:, 0] / max(last, 1.0)
    down = 100 - 100 * (np.clip(curve[:, 1], low, high) - low) / (high - low)
    if len(curve) == 1:  # a line from the point to itself, whose round ends are a dot
        across, down = np.repeat(across, 2), np.repeat(down, 2)
    return " ".join(f"{x:.1f},{y:.2f}" for x, y in zip(across, down, strict=True))


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _at(value: float) -> str:
    return f"{100 * _clip(value):.2f}%"
