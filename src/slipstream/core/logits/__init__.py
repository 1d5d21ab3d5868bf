"""Logits processing: every node of a draft tree sees what `transformers`' `generate` would apply at that point."""

from slipstream.core.logits.pipeline import LogitsPipeline
from slipstream.core.logits.resolution import SETTING_NAMES, is_refused, refusal, resolve
from slipstream.core.logits.settings import ProcessingSettings
from slipstream.core.logits.warping import warp

__all__ = ["SETTING_NAMES", "LogitsPipeline", "ProcessingSettings", "is_refused", "refusal", "resolve", "warp"]
