# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus' text format, read by its own client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hardsplice.control.prometheus import Family, Sample, histogram, render
from tests.unit.control.test_metrics import read


def test_whatever_is_in_a_label_or_a_help_comes_through() -> None:
    odd = 'a"b\\c\nd}{,e= 1'
    text = render(
        [Family("m", "gauge", "help\\with\nlines", [Sample({"label": odd}, 1.5)])], {"more": odd}
    )
    (family,) = text_string_to_metric_families(text)
    assert family.documentation == "help\\with\nlines"
    assert family.samples[0].labels == {"label": odd, "more": odd}
    assert family.samples[0].value == 1.5


def test_a_family_without_samples_is_left_out() -> None:
    assert render([Family("m", "gauge", "help", [])], {"a": "b"}) == ""


def test_a_histogram_goes_up_to_infinity() -> None:
    samples = histogram({"a": "b"}, (0.5, 1.0), (1, 2, 5), 7.25)
    found = read(render([Family("m", "histogram", "help", samples)], {}))
    assert found["m_bucket", (("a", "b"), ("le", "0.5"))] == 1
    assert found["m_bucket", (("a", "b"), ("le", "+Inf"))] == 5
    assert found["m_count", (("a", "b"),)] == 5
    assert found["m_sum", (("a", "b"),)] == 7.25
