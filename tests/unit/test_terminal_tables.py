"""Tables at a terminal: what somebody wrote is text there, and nothing else."""

from __future__ import annotations

import pytest

from umbel_server.terminal import print_table


@pytest.mark.parametrize(
    "words",
    [
        "closed [/it] again",
        "4\u202f096 d\u00e9j\u00e0 vu",
        "[conceal]nothing[/conceal]",
        "a [b] c",
        ":skull: 12:cd:34",
        "[link=x]y[/link]",
    ],
)
def test_what_somebody_wrote_is_shown_as_it_is(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("why", "by"), [(words, "ada")])
    assert words in capsys.readouterr().out


def test_what_somebody_wrote_gives_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("why",), [("one\x1b[2Jtwo\x9b31m\u202ethree",), ("two\nlines",)])
    told = capsys.readouterr().out
    assert "one\ufffd[2Jtwo\ufffd31m\ufffdthree" in told
    assert "lines" in told
    assert "two\ufffdlines" not in told
