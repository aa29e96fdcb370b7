"""What a step of `doctor` has come to, as a value."""

from __future__ import annotations

from sniproxy.app.doctor.diagnosis import Verdict, failed, good, printable, skipped, warning


def test_each_verdict_has_its_maker():
    made = (good("dns", "a"), warning("dns", "a", "b"), failed("dns", "a", "b"), skipped("dns", "a"))
    assert [each.verdict for each in made] == [Verdict.GOOD, Verdict.WARNING, Verdict.FAILED, Verdict.SKIPPED]
    assert [each.advice for each in made] == ["", "b", "b", ""]


def test_it_says_what_it_is_about():
    assert str(good("dns", "192.0.2.1", about="www.example.com")) == "www.example.com: 192.0.2.1"
    assert str(good("clock", "right")) == "right"


def test_words_of_others_fit_a_line():
    assert printable("a\nb\x1b[31m\x9b") == "a?b?[31m?"
    assert printable("a" * 1000) == "a" * 300
