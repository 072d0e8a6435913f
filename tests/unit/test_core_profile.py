"""Profiles: what they say between and beyond measurements, and as files."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.core.errors import ConfigError
from fabric.core.profile import CopySpeed, Profile, ProfileSubject

SUBJECT = ProfileSubject(
    model="m",
    source="/models/m",
    dtype="float32",
    device="cpu",
    processor="a processor",
    num_threads=2,
    pipeline=1,
    tensor=1,
    block_size=16,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    max_model_len=2048,
    version="0.1.0",
)
MEASURED = Profile(
    prefill=((1, 0.010), (16, 0.025), (512, 0.521)),
    decode=((1, 32, 0.010), (1, 512, 0.020), (8, 32, 0.030), (8, 512, 0.110)),
    copies=(CopySpeed("host", "out", 1e9, 1e-3), CopySpeed("host", "in", 2e9)),
    block_bytes=4096,
    subject=SUBJECT,
    host="here",
    measured_at="2026-01-01T00:00:00+00:00",
)


def test_measured_points_are_given_back():
    for tokens, seconds in MEASURED.prefill:
        assert MEASURED.prefill_s(tokens) == pytest.approx(seconds)
    for sequences, context, seconds in MEASURED.decode:
        assert MEASURED.decode_s(sequences, context) == pytest.approx(seconds)
    assert MEASURED.min_iteration_s == 0.010


def test_between_points_times_are_linear():
    assert MEASURED.prefill_s(264) == pytest.approx(0.273)
    assert MEASURED.decode_s(1, 272) == pytest.approx(0.015)
    assert MEASURED.decode_s(8, 272) == pytest.approx(0.070)


def test_beyond_the_last_points_times_grow_as_before_them():
    assert MEASURED.prefill_s(1512) == pytest.approx(1.521)
    a_sequence_s, a_token_s = 0.090 / 7, 0.080 / 480 / 8
    assert MEASURED.decode_s(10, 512) == pytest.approx(0.110 + 2 * a_sequence_s)
    assert MEASURED.decode_s(4, 1512) == pytest.approx(
        MEASURED.decode_s(4, 512) + 1000 * 4 * a_token_s
    )


def test_nothing_is_shorter_than_the_shortest_measurement():
    assert MEASURED.prefill_s(0) == 0.010
    assert MEASURED.decode_s(0, 0) == 0.010


def test_one_point_is_a_constant():
    profile = Profile(((4, 0.5),), ((2, 8, 0.25),))
    assert profile.prefill_s(1) == profile.prefill_s(100) == 0.5
    assert profile.decode_s(1, 1) == profile.decode_s(9, 99) == 0.25


def test_less_work_that_was_kept_up_takes_no_longer_than_more_work():
    profile = Profile(
        prefill=((1, 0.5), (16, 0.1), (32, 0.2)),
        decode=((1, 32, 0.4), (1, 64, 0.1), (2, 32, 0.2), (2, 64, 0.3)),
    )
    assert profile.prefill_s(1) == profile.prefill_s(16) == 0.1
    assert profile.min_iteration_s == profile.decode_s(1, 64) == 0.1
    assert profile.decode_s(2, 32) == 0.2


grids = st.tuples(
    st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.floats(0.001, 10.0), min_size=16, max_size=16),
)


@given(grids, st.integers(0, 150), st.integers(0, 1500), st.integers(0, 50), st.integers(0, 500))
def test_more_work_never_takes_less_time(grid, sequences, context, more_sequences, more_context):
    sizes, contexts, seconds = grid
    points = [(size, context) for size in sizes for context in contexts]
    profile = Profile(
        tuple(zip(sizes, seconds, strict=False)),
        tuple((*point, took) for point, took in zip(points, seconds, strict=False)),
    )
    least = profile.decode_s(sequences, context)
    most = profile.decode_s(sequences + more_sequences, context + more_context)
    assert profile.min_iteration_s <= least <= most * (1 + 1e-9)
    assert profile.prefill_s(context) <= profile.prefill_s(context + more_context) * (1 + 1e-9)


def test_a_copy_takes_its_latency_and_its_bytes():
    assert MEASURED.copy_s("host", "out", 10**9) == pytest.approx(1.001)
    assert MEASURED.copy_s("host", "in", 10**9) == pytest.approx(0.5)
    assert MEASURED.copy_s("disk", "out", 1) == math.inf


def test_a_flat_profile_knows_two_numbers():
    profile = Profile.flat(iteration_s=0.01, token_s=0.001)
    assert profile.prefill_s(100) == pytest.approx(0.11)
    assert profile.decode_s(1, 1) == profile.decode_s(64, 4096) == 0.01
    assert profile.min_iteration_s == 0.01


@pytest.mark.parametrize("profile", [MEASURED, Profile.flat(0.01, 0.001)])
def test_a_file_gives_the_profile_back(profile: Profile):
    assert Profile.from_json(profile.to_json()) == profile


def _changed(**changes: object) -> str:
    tree = {**json.loads(MEASURED.to_json()), **changes}
    return json.dumps({name: value for name, value in tree.items() if value != "absent"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting"),
        ("[]", "version is None"),
        (_changed(version=2), "version is 2; this llm-fabric reads 1"),
        (_changed(prefill="absent"), "prefill"),
        (_changed(decode=[]), "decode .*nothing was measured"),
        (_changed(prefill=[[1, "soon"]]), r"prefill: \[1, 'soon'\]"),
        (_changed(prefill=[[1, math.nan]]), "prefill: nan is no time"),
        (_changed(prefill=[[2, 0.1], [1, 0.2]]), "prefill: 1 comes after 2"),
        (_changed(decode=[[1, 1]]), r"decode: \[1, 1\]"),
        (_changed(decode=[[1, 1, 0.1], [1, 2, 0.1], [2, 1, 0.1]]), "not every context"),
        (_changed(copies=[{"tier": "host", "direction": "in", "bytes_per_s": 0}]), "no speed"),
        (_changed(copies=[{"tier": 1}]), "copies.tier is 1"),
        (_changed(subject={"model": "m"}), "missing"),
        (_changed(colour="red"), "colour is unknown"),
    ],
)
def test_what_is_no_profile_is_named(text: str, complaint: str):
    with pytest.raises(ConfigError, match=rf"table\.json: .*{complaint}"):
        Profile.from_json(text, "table.json")
