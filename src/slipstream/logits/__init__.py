"""Logits processing: every node of a draft tree sees what `transformers`' `generate` would apply at that point."""

from slipstream.logits.pipeline import LogitsPipeline
from slipstream.logits.resolution import SETTING_NAMES, resolve
from slipstream.logits.settings import ProcessingSettings
from slipstream.logits.warping import warp

__all__ = ["SETTING_NAMES", "LogitsPipeline", "ProcessingSettings", "resolve", "warp"]
