"""Limits on processor time that a benchmark's baseline runs under."""

import os

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def cpu_quota():
    with perf_module("cpu_quota") as module:
        yield module


def test_a_hierarchy_of_version_1_gets_a_quota_in_each_period(cpu_quota, tmp_path):
    (tmp_path / "cpu/own").mkdir(parents=True)
    quota = cpu_quota.open_quota("bench", tmp_path, "3:memory:/other\n2:cpu:/own\n0::/x\n")
    folder = tmp_path / f"cpu/own/bench-{os.getpid()}"
    quota.limit(0.25)
    quota.add(42)
    period_us = int((folder / "cpu.cfs_period_us").read_text())
    assert int((folder / "cpu.cfs_quota_us").read_text()) == period_us // 4
    assert (folder / "cgroup.procs").read_text() == "42"
    quota.limit(None)
    assert (folder / "cpu.cfs_quota_us").read_text() == "-1"


def test_the_hierarchy_of_version_2_gets_both_in_one_file(cpu_quota, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    quota = cpu_quota.open_quota("bench", tmp_path, "0::/own\n")
    folder = tmp_path / f"own/bench-{os.getpid()}"
    quota.limit(1.5)
    assert (folder / "cpu.max").read_text() == "15000 10000"
    quota.limit(None)
    assert (folder / "cpu.max").read_text() == "max 10000"
    assert (tmp_path / "own/cgroup.subtree_control").read_text() == "+cpu"


def test_without_a_control_group_it_says_so(cpu_quota, tmp_path):
    with pytest.raises(cpu_quota.QuotaError, match="no processor controller"):
        cpu_quota.open_quota("bench", tmp_path, "0::/own\n")
    (tmp_path / "cpu").mkdir()
    with pytest.raises(cpu_quota.QuotaError, match="can be made"):
        cpu_quota.open_quota("bench", tmp_path, "1:cpu:/missing\n")


def test_a_group_is_gone_when_it_is_closed(cpu_quota, tmp_path):
    folder = tmp_path / "group"
    folder.mkdir()
    cpu_quota._empty(folder)
    assert not folder.exists()
