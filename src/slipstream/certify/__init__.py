"""The losslessness certificate: whether a method changes the output of this model, on this device, in this dtype.

Token identity is tested against three kinds of plain decoding, the distribution of samples against the target's own
probabilities. `docs/certificate.md` says what is compared and how a difference is judged.
"""

from slipstream.certify.certificate import Certificate
from slipstream.certify.certification import Certification, CertifySettings

__all__ = ["Certificate", "Certification", "CertifySettings"]
