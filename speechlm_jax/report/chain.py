"""The chain as a picture: boxes joined by arrows, each with the figure that was measured there."""

import dataclasses
from collections.abc import Mapping
from html import escape

from speechlm_jax.evals.items import Figure


@dataclasses.dataclass(frozen=True)
class _Node:
    """A box: heading, second line, its figure and the words beside it, colour class, glyph."""

    heading: str
    line: str
    figure: str
    words: str
    kind: str
    glyph: str


NODES = {
    "speech": _Node("Recordings", "speech → log-mel", "", "", "speech", "wave"),
    "text": _Node("Text", "documents", "", "", "text", "lines"),
    "tokenizer": _Node(
        "Speech tokenizer", "mel → codes", "tokenizer/wer", "errors", "speech", "codes"
    ),
    "text_to_token": _Node(
        "Text-to-token", "text → codes", "text_to_token/wer", "errors", "text", "codes"
    ),
    "interleave": _Node("Interleaved rows", "text with spans of codes", "", "", "both", "ribbon"),
    "lm": _Node(
        "Language model", "ids → answers", "qa/s2t/interleaved", "S→T right", "both", "net"
    ),
    "decoder": _Node(
        "Speech decoder", "codes → wav", "speech_decoder/wer", "errors", "speech", "wave"
    ),
    "chat": _Node("Spoken chat", "wav → reply", "chat/text_guided", "right", "both", "chat"),
}
_EDGES = (
    ("speech", "tokenizer"),
    ("tokenizer", "text_to_token"),
    ("text", "text_to_token"),
    ("tokenizer", "interleave"),
    ("text_to_token", "interleave"),
    ("interleave", "lm"),
    ("lm", "decoder"),
    ("lm", "chat"),
)
_WIDTH, _HEIGHT = 172, 92
_WIDE = {
    "speech": (4, 20),
    "text": (4, 188),
    "tokenizer": (212, 20),
    "text_to_token": (212, 188),
    "interleave": (420, 104),
    "lm": (628, 104),
    "decoder": (836, 20),
    "chat": (836, 188),
}
_TALL = {
    "speech": (4, 4),
    "text": (188, 4),
    "tokenizer": (4, 132),
    "text_to_token": (188, 132),
    "interleave": (96, 260),
    "lm": (96, 388),
    "decoder": (4, 516),
    "chat": (188, 516),
}


def chain_picture(figures: Mapping[str, Figure]) -> str:
    """Draws the chain as two SVGs: one for wide windows, one for phones."""
    wide = _draw(_WIDE, size=(1012, 300), figures=figures, kind="wide")
    tall = _draw(_TALL, size=(364, 612), figures=figures, kind="tall")
    return wide + tall


def _draw(
    places: Mapping[str, tuple[int, int]],
    *,
    size: tuple[int, int],
    figures: Mapping[str, Figure],
    kind: str,
) -> str:
    arrows = "".join(_arrow(places[a], places[b], kind) for a, b in _EDGES)
    boxes = "".join(_box(NODES[name], place, figures) for name, place in places.items())
    return (
        f'<svg class="chain {kind}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="The chain from recordings and text to spoken replies">'
        f'<defs><marker id="tip-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>'
        f"{arrows}{boxes}</svg>"
    )


def _arrow(start: tuple[int, int], end: tuple[int, int], kind: str) -> str:
    """Draws a curve from the side of one box that faces the other box."""
    (ax, ay), (bx, by) = start, end
    middle = _HEIGHT / 2
    if kind == "wide" and bx > ax:
        a, b = (ax + _WIDTH, ay + middle), (bx - 3, by + middle)
        bend = (a[0] + b[0]) / 2
        path = f"M{a[0]} {a[1]}C{bend} {a[1]} {bend} {b[1]} {b[0]} {b[1]}"
    elif by > ay:
        a, b = (ax + _WIDTH / 2, ay + _HEIGHT), (bx + _WIDTH / 2, by - 3)
        bend = (a[1] + b[1]) / 2
        path = f"M{a[0]} {a[1]}C{a[0]} {bend} {b[0]} {bend} {b[0]} {b[1]}"
    else:
        path = f"M{ax + _WIDTH} {ay + middle}H{bx - 3}"
    return f'<path class="arrow" d="{path}" marker-end="url(#tip-{kind})"/>'


def _box(node: _Node, place: tuple[int, int], figures: Mapping[str, Figure]) -> str:
    x, y = place
    figure = figures.get(node.figure)
    measured = ""
    if figure is not None:
        measured = (
            f'<text class="measured" x="14" y="79">{100 * figure.value:.0f}%'
            f'<tspan class="line" dx="5">{escape(node.words)}</tspan></text>'
        )
    return (
        f'<g class="box {node.kind}" transform="translate({x} {y})">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="12"/>'
        f'<g transform="translate(124 56)">{_GLYPHS[node.glyph]}</g>'
        f'<text class="heading" x="14" y="27">{escape(node.heading)}</text>'
        f'<text class="line" x="14" y="46">{escape(node.line)}</text>{measured}</g>'
    )


def _bars(heights: tuple[int, ...], step: float) -> str:
    return "".join(
        f'<rect class="ink" x="{i * step}" y="{14 - h / 2}" width="2.4" height="{h}" rx="1.2"/>'
        for i, h in enumerate(heights)
    )


def _cells(kinds: str) -> str:
    """Draws two rows of small squares: `s` speech, `t` text."""
    return "".join(
        f'<rect class="cell-{kind}" x="{7 * (i % 5)}" y="{6 + 8 * (i // 5)}" width="5.5" '
        f'height="5.5" rx="1.2"/>'
        for i, kind in enumerate(kinds)
    )


_GLYPHS = {
    "wave": _bars((5, 12, 22, 16, 26, 14, 20, 10, 4), 4.0),
    "codes": _cells("ssssssssss"),
    "ribbon": _cells("ttssstttss"),
    "lines": "".join(
        f'<rect class="ink" x="0" y="{5 + 7 * i}" width="{w}" height="2.6" rx="1.3"/>'
        for i, w in enumerate((34, 26, 31))
    ),
    "net": "".join(
        f'<circle class="ink" cx="{x}" cy="{y}" r="2.6"/>'
        for x in (3, 17, 31)
        for y in ((6, 14, 22) if x == 17 else (10, 18))
    )
    + '<path class="thread" d="M3 10 17 6 31 10 17 14 3 18 17 22 31 18 17 14 3 10M3 18 17 14"/>',
    "chat": '<path class="thread" d="M2 4h24a3 3 0 0 1 3 3v8a3 3 0 0 1-3 3H13l-6 6v-6H2z"/>'
    + '<path class="thread" d="M8 11v0M14 8v6M20 9v4"/>',
}
