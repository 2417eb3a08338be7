"""The files of the page at `/`, each with the headers under which a browser runs nothing but them.

They hold no data and need no key: what the page shows it asks the API for, with the key of whoever looks.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

STATIC_PREFIX = "/static/"

FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("page.js", "api.js", "snippets.js", "results.js", "load.js", "elements.js"), "text/javascript"
    ),
}
"""What is served, with its media type; whatever else lies in the folder is not."""

_FOLDER = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_file(name: str) -> Response:
    """One of `FILES` as a response; raises KeyError for any other name."""
    media_type = FILES[name]
    return Response((_FOLDER / name).read_bytes(), media_type=media_type, headers=_HEADERS)
