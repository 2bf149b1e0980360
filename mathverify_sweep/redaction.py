"""Keeps secrets out of what is written: passwords in URLs, and whatever this process was given as a key or a token.

Everything that other people's code says (tracebacks, log lines) goes through `mask` before it is kept or printed.
"""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import quote, quote_plus, unquote

_MASK = "***"
_SHORTEST = 6
"""Characters of the shortest secret that is looked for outside of URLs: a shorter one is in every other word."""
_NAMES = re.compile(r"(?i)(api_?key|access_?key|secret|token|passw|credential)")
_NO_SECRETS = re.compile(r"(?i)(_file|_path|_dir|_budget|tokenizers\w*)$")
# Every repetition has a bound: without, a message of millions of letters takes hours.
_IN_A_URL = re.compile(r"([A-Za-z][\w+.-]{0,30}://[^\s:/@'\"]{0,200}):([^\s/'\"]{0,500})@")
_TOKEN_IN_A_URL = re.compile(r"([A-Za-z][\w+.-]{0,30}://)[^\s:/@'\"]{6,500}@")
_NAMED = re.compile(
    r"(?i)((?:passw(?:or)?d|api_?key|secret|token)['\"]?\s{0,3}[=:]\s{0,3}['\"]?)([^\s'\"&,;)}]{6,500})"
)
_remembered: set[str] = set()


def remember(secret: str | None) -> None:
    """Mask this text from now on, as it is and as URLs spell it."""
    if secret and len(secret) >= _SHORTEST:
        _remembered.update({secret, quote(secret, safe=""), quote_plus(secret)})


def mask(text: str) -> str:
    """`text` without the secrets that this process knows of, and without those that say what they are."""
    for secret in sorted(_remembered | _of_the_environment(), key=len, reverse=True):
        text = text.replace(secret, _MASK)
    text = _IN_A_URL.sub(rf"\1:{_MASK}@", text)
    text = _TOKEN_IN_A_URL.sub(rf"\1{_MASK}@", text)
    return _NAMED.sub(rf"\1{_MASK}", text)


def mask_logs() -> None:
    """Mask whatever is logged from now on: a filter on every handler of the root logger, and on that of last resort."""
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None and not any(isinstance(there, _Masking) for there in handler.filters):
            handler.addFilter(_Masking())


class _Masking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = mask(record.exc_text)
        return True


def _of_the_environment() -> set[str]:
    found = set()
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.search(name) and not _NO_SECRETS.search(name):
            found.add(value)
        for password in (match[2] for match in _IN_A_URL.finditer(value)):
            found |= {form for form in (password, unquote(password)) if len(form) >= _SHORTEST}
    return found
