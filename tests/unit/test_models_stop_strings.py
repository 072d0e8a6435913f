import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.models.stop_strings import StopStringMatcher


def run(stops: list[str], pieces: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stops, include_stop)
    shown, matched = "", None
    for piece in pieces:
        text, matched = matcher.push(piece)
        shown += text
    return shown + matcher.flush(), matched


def test_text_without_a_stop_string_passes_through():
    assert run(["END"], ["The E", "N", "emy"]) == ("The ENemy", None)


def test_the_start_of_a_stop_string_is_held_back():
    matcher = StopStringMatcher(["</s>"], include_stop=False)
    assert matcher.push("done<") == ("done", None)
    assert matcher.push("/s") == ("", None)
    assert matcher.push("> more") == ("", "</s>")
    assert matcher.push("more") == ("", "</s>")
    assert matcher.flush() == ""


def test_a_match_can_be_left_in():
    assert run(["b"], ["abc"], include_stop=True) == ("ab", "b")


def test_the_string_that_is_complete_first_wins():
    assert run(["bcd", "c"], ["abcd"]) == ("ab", "c")


def test_of_strings_that_end_together_the_longest_wins():
    assert run(["d", "bcd"], ["abcd"]) == ("a", "bcd")


def test_overlapping_beginnings_are_found():
    assert run(["aab"], ["aaaa", "b"]) == ("aa", "aab")


@pytest.mark.parametrize("include_stop", [False, True])
@settings(deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    pieces=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_it_agrees_with_searching_the_whole_text(
    stops: list[str], pieces: list[str], include_stop: bool
):
    text = "".join(pieces)
    ends = [
        (end, -len(stop), stop)
        for stop in stops
        for end in [text.find(stop) + len(stop)]
        if stop in text
    ]
    if ends:
        end, _, stop = min(ends)
        expected = (text[: end if include_stop else end - len(stop)], stop)
    else:
        expected = (text, None)
    shown, matched = run(stops, pieces, include_stop)
    assert (shown, matched) == expected
