"""Logging. Oracle: the levels that the house rules give to ranks."""

import logging

import pytest

from dist_resnet import logs


@pytest.mark.parametrize(("rank", "shown"), [(None, True), (0, True), (1, False), (7, False)])
def test_only_the_driver_and_rank_0_log_ordinary_events(rank, shown, capsys):
    logs.configure(rank)
    logging.getLogger("dist_resnet.train").info("an ordinary event")
    logging.getLogger("dist_resnet.train").warning("a warning")
    logged = capsys.readouterr().err
    assert ("an ordinary event" in logged) == shown
    assert "a warning" in logged


def test_configuring_twice_does_not_repeat_lines(capsys):
    logs.configure(0)
    logs.configure(0)
    logging.getLogger("dist_resnet").warning("once")
    assert capsys.readouterr().err.count("once") == 1
