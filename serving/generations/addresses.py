"""Addresses as people are told them."""

from urllib.parse import urlsplit


def without_login(url: str) -> str:
    """A URL without user, password, query and fragment, which may be secrets."""
    if "://" not in url:
        return url.rstrip("/")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
