"""Histograms count what they are told."""

from fabric.telemetry.histogram import Histogram


def test_a_value_belongs_to_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((0.5, 1, 2.5))
    for value in (0.0, 0.5, 0.75, 2.5, 3.0):
        histogram.note(value)
    assert histogram.buckets() == [("0.5", 2), ("1.0", 3), ("2.5", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.total) == (5, 6.75)


def test_without_values_all_buckets_are_empty() -> None:
    assert Histogram((1.0,)).buckets() == [("1.0", 0), ("+Inf", 0)]
