"""Errors as RFC 9457 problems: the one place where they are made of what handlers and the guard raise."""

from http import HTTPStatus

from litestar.exceptions import HTTPException, NotFoundException

from serving.answers import Problem
from serving.guarding.callers import Caller


def problem_of(error: HTTPException, caller: Caller) -> Problem:
    """An error as a problem. Known scores, if its `extra` has them, are told as far as the caller may see them."""
    extra = error.extra if isinstance(error.extra, dict) else {}
    detail = error.detail
    known_scores = extra.get("known_scores")
    if known_scores is not None:
        known_scores = [score for score in known_scores if caller.may_see(score)]
        if error.status_code < 500:
            detail = f"{detail} Known scores: {', '.join(known_scores) or 'none yet'}."
    return Problem(
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=detail,
        known_scores=known_scores,
        known_bands=extra.get("known_bands"),
        known_sources=extra.get("known_sources"),
        known_versions=extra.get("known_versions"),
        errors=extra.get("errors"),
    )


def unknown_score(score: str, known: list[str]) -> NotFoundException:
    """The problem that a score is not known; those that are it lists, as far as who asks may see them."""
    return NotFoundException(detail=f"Unknown score '{short(score)}'.", extra={"known_scores": known})


def short(text: str, most: int = 100) -> str:
    """A caller's text as an error message repeats it."""
    return text if len(text) <= most else text[:most] + "…"
