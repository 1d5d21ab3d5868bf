"""The losslessness certificate: whether a method changes the output of this model, on this device, in this dtype.

Token identity is tested against three kinds of plain decoding, the distribution of samples against the target's own
probabilities. `docs/certificate.md` says what is compared and how a difference is judged. The names are
imported on first use: the options alone (`slipstream.certify.options`) bring in no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.certify.certificate import Certificate
    from slipstream.certify.certification import Certification, CertifySettings

__all__ = ["Certificate", "Certification", "CertifySettings"]

_HOME = {
    "Certificate": "slipstream.certify.certificate",
    "Certification": "slipstream.certify.certification",
    "CertifySettings": "slipstream.certify.certification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
