"""Text out of HTML, in time that grows with its length only."""

from __future__ import annotations

import html
import re

from selectolax.lexbor import LexborHTMLParser

TAGS_MAX = 5_000
"""Beyond it markup is stripped by pattern: the parser's time grows with the square of nesting."""

_TAG = re.compile(r"<[a-zA-Z/!][^>]{0,2000}>|&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,31});")
_BLOCK = re.compile(
    r"</?(?:br|p|div|li|ul|ol|tr|h[1-6]|section|article|table|blockquote|hr)(?![a-zA-Z])",
    re.IGNORECASE,
)


def strip_html(text: str) -> str:
    """The text of a piece of HTML: entities decoded, blocks on lines of their own.

    Text without a tag or an entity is returned as it is, so that "a < b" stays.
    """
    if not _TAG.search(text):
        return text
    if text.count("<") > TAGS_MAX:
        return html.unescape(_TAG.sub(" ", text))
    body = LexborHTMLParser("<body>" + _BLOCK.sub(r"\n\g<0>", text)).body
    if body is None:
        return ""
    for node in body.css("script,style,template,noscript"):
        node.decompose()
    return body.text(deep=True, separator="")
