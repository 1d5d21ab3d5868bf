"""Skipping sub-layers of the target: which can be left out, which are, and leaving them out.

`skip_set` holds the choice as data (JSON), `sublayers` finds the attention and MLP sub-layers of a model and skips
them through the reusable context managers of `plan`. For the theory see Draft & Verify, arXiv 2309.08168.
"""
