"""Marks inside bodies and on what bodies capture."""

from __future__ import annotations

import numpy as np

import gradcut
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.control_flow.subjects import BRANCHES, LOOP, feeds, model

STOPPED = LOOP.replace("t = Mul(h, w)", "k = gradcut.StopGradient(h) u = Mul(k, w) t = Mul(u, h)")


def test_a_mark_in_a_body_stops_each_turn() -> None:
    require(check_gradients(model(STOPPED), feeds(n=3, go=True)))


def test_a_mark_in_a_body_is_respected_by_a_second_derivative() -> None:
    twice = gradcut.vjp(model(STOPPED), ["x", "w"], ["y"])
    require(check_gradients(twice, {**feeds(n=2, go=True), "y_grad": np.array([0.5, -1.2], np.float32)}))


def test_a_captured_value_can_be_stopped_outside() -> None:
    require(check_gradients(model(BRANCHES), feeds(c=True), stop_at="h"))


def test_a_value_inside_can_be_stopped_by_name() -> None:
    require(check_gradients(model(BRANCHES), feeds(c=True), stop_at="u"))
    require(check_gradients(model(LOOP), feeds(n=3, go=True), stop_at="next"))


def test_what_lies_only_behind_a_mark_gets_zeros() -> None:
    proto = gradcut.vjp(model(LOOP), ["x", "w"], ["y"], stop_at="next")
    given = {**feeds(n=2, go=True), "y_grad": np.ones(2, np.float32)}
    for gradient in runtime(proto)(given)[1:]:
        np.testing.assert_array_equal(gradient, np.zeros(2, np.float32))
