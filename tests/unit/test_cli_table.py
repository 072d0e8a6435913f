"""Tables as lines of text."""

from fabric.cli.table import format_table

HEADER = ("NAME", "SIZE", "COLOUR")
ROWS = [("ant", "1", "black"), ("elephant", "1,000", "grey")]


def test_numbers_are_set_to_the_right() -> None:
    assert format_table(HEADER, ROWS).splitlines() == [
        "NAME       SIZE  COLOUR",
        "ant           1  black",
        "elephant  1,000  grey",
    ]


def test_what_fits_is_not_cut() -> None:
    assert format_table(HEADER, ROWS, width=23) == format_table(HEADER, ROWS)


def test_a_table_that_is_too_wide_is_cut_and_repeats_its_keys() -> None:
    assert format_table(HEADER, ROWS, width=20).splitlines() == [
        "NAME       SIZE",
        "ant           1",
        "elephant  1,000",
        "",
        "NAME      COLOUR",
        "ant       black",
        "elephant  grey",
    ]


def test_no_width_is_too_small_for_a_column_beside_the_keys() -> None:
    blocks = format_table(HEADER, ROWS, width=1).split("\n\n")
    assert [block.split()[:2] for block in blocks] == [["NAME", "SIZE"], ["NAME", "COLOUR"]]


def test_keys_alone_are_a_table() -> None:
    assert format_table(HEADER, [], width=1, num_keys=3) == "NAME  SIZE  COLOUR"
