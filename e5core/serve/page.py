"""The page at GET /: it lets people try the models in a browser."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from e5core.serve.http import Answer

PAGE = Path(__file__).with_name("page.html")


@cache
def page() -> Answer:
    """The page, which is one file. It holds nothing secret: it asks for the key that it needs.

    The policy lets the browser run the page's own script and style alone, and talk to this server
    alone.
    """
    content = PAGE.read_bytes()
    script, style = (_digest(content, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Answer([content], headers=headers, content_type="text/html; charset=utf-8")


def _digest(content: bytes, tag: bytes) -> str:
    """What a policy calls the content of the one element of this name."""
    [inner] = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"
