"""What a user is told is one line, whatever names and numbers are in it."""

import pytest

from speechlm_jax.errors import MOST_SAID, UserError, one_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a b.wav: is empty", "a b.wav: is empty"),
        ("a\nb\r\u2028\x1b[0m.wav", r"a\nb\r\u2028\x1b[0m.wav"),
        ("caf\u00e9 \u4e2d", "caf\u00e9 \u4e2d"),
        ("half \udcff", r"half \udcff"),
    ],
)
def test_a_message_is_one_line_of_what_can_be_printed(message, line):
    assert str(UserError(message)) == line == one_line(line)


def test_a_long_message_keeps_its_ends():
    said = str(UserError("a.json: " + "9" * 5000 + "; give fewer"))
    assert len(said) < MOST_SAID + 10
    assert said.startswith("a.json: 99") and said.endswith("99; give fewer")
