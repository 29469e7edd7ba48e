"""Names, labels, quantities and times, as the API server reads them."""

from __future__ import annotations

import datetime
import re

LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# A Service's name begins with a letter (RFC 1035).
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
ENV_NAME = re.compile(r"[ -<>-~]+")  # printable ASCII without "=", as clusters from 1.34 on have it
QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_MICRO_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})(Z|[+-]\d\d:\d\d)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_LONGEST_NAME = 253

_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_FACTORS = _DECIMAL | _BINARY


def amount(quantity: str | float) -> float:
    """A quantity such as ``1500m``, ``2Gi`` or ``4`` as a number."""
    match = re.fullmatch(r"(.*?)([a-zA-Z]*)", str(quantity))
    assert match
    return float(match[1]) * _FACTORS[match[2]] if match[2] in _FACTORS else float(quantity)


def is_name(text: str) -> bool:
    """A name that most objects may have."""
    return len(text) <= _LONGEST_NAME and DNS_SUBDOMAIN.fullmatch(text) is not None


def is_label_key(key: str) -> bool:
    """A label's key, with or without a prefix."""
    prefix, slash, last = key.rpartition("/")
    return LABEL_VALUE.fullmatch(last) is not None and (not slash or is_name(prefix))


def is_label_value(value: str) -> bool:
    """A label's value; it may be empty."""
    return not value or LABEL_VALUE.fullmatch(value) is not None


def time_fault(text: str, *, micro: bool) -> str | None:
    """Why a time is refused; a micro time needs exactly six digits after the second."""
    if (_MICRO_TIME if micro else _TIME).fullmatch(text):
        return None
    layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
    return f'parsing time "{text}" as "{layout}": cannot parse "{text}"'


def as_micro_time(text: str) -> str:
    """A micro time as the API server gives it back: UTC, six digits."""
    moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
