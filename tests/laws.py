"""One test for a law over many cases: collected once, and told of every case that breaks it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., None]


def over(
    names: str | tuple[str, ...], cases: Iterable[Any], ids: Callable[[Any], str] | Iterable[str] = str
) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but inside one test.

    Each case is tried, whatever became of those before it. The first error is raised with the names of all that failed.
    Fixtures are made once for all cases; a test that writes into one belongs under `parametrize`.
    """
    several = not isinstance(names, str)
    held = list(cases)
    called = [ids(case) for case in held] if callable(ids) else list(ids)
    assert held, "no case at all"
    assert len(called) == len(held)

    def wrap(test: Test) -> Test:
        @functools.wraps(test)
        def every(*args: Any, **fixtures: Any) -> None:
            failed: list[str] = []
            first: Exception | None = None
            for name, case in zip(called, held, strict=True):
                own = dict(zip(names, case, strict=True)) if several else {str(names): case}
                try:
                    test(*args, **fixtures, **own)
                except pytest.skip.Exception:
                    pytest.fail(f"{test.__name__}, {name}: a case cannot be skipped alone")
                except Exception as error:
                    failed.append(name)
                    first = first or error
            if first is not None:
                first.add_note(f"{len(failed)} of {len(held)} cases of {test.__name__} failed: {', '.join(failed)}")
                raise first

        taken = {names} if isinstance(names, str) else set(names)
        signature = inspect.signature(test)
        assert taken <= set(signature.parameters), taken - set(signature.parameters)
        kept = [p for name, p in signature.parameters.items() if name not in taken]
        every.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        for mark in ("hypothesis", "is_hypothesis_test", "_hypothesis_internal_use_settings"):
            every.__dict__.pop(mark, None)
        return every

    return wrap
