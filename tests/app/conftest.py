"""Coroutines here run on both event loops."""

from __future__ import annotations

from tests.support.loops import pytest_pyfunc_call, runner

__all__ = ["pytest_pyfunc_call", "runner"]
