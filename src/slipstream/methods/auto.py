"""The method for those who name none: a trained head where there is one for the target, else prompt lookup.

A skip set that is given asks for layer-skip.

All size their drafts by what passes cost, and decode plainly where no draft pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.drafting.artefact_files import artefact_kind, local_folder
from slipstream.drafting.base import Drafter
from slipstream.errors import ArtifactError
from slipstream.methods import prompt_lookup
from slipstream.methods.draft_model.method import METHOD as DRAFT_MODEL
from slipstream.methods.eagle.method import EAGLE2
from slipstream.methods.eagle3.method import METHOD as EAGLE3
from slipstream.methods.hydra.method import METHOD as HYDRA
from slipstream.methods.layer_skip.method import METHOD as LAYER_SKIP
from slipstream.methods.medusa.method import METHOD as MEDUSA
from slipstream.methods.method import Method
from slipstream.target.target import Target

TRAINED = (EAGLE2, EAGLE3, HYDRA, MEDUSA, DRAFT_MODEL)
"""Methods with an artefact, the best of those that ship first."""
_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt")


def chosen(target: Target, options: Mapping[str, Any]) -> Method:
    """The method of the artefact or skip set that was given; else EAGLE-2 if a head ships, or prompt lookup.

    Raises ArtifactError for an artefact that is not known.
    """
    draft = options.get("draft")
    if "skip_set" in options:
        return LAYER_SKIP
    if draft is None:
        return prompt_lookup.METHOD if EAGLE2.packaged(target.hash) is None else EAGLE2
    if not isinstance(draft, str | Path):
        return DRAFT_MODEL  # a model that is loaded already
    kind = artefact_kind(local_folder(draft, _FILES, "a head or a draft model"))
    found = next((method for method in TRAINED if method.artefact == kind), None)
    if found is None:
        raise ArtifactError(
            f"{draft} holds nothing that is known to draft; name its method (drafter=..., -d), for instance eagle2"
        )
    return found


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return chosen(target, options).build(target, options)


METHOD = Method(
    name="auto",
    summary="a trained head where one is given or ships for the model, else prompt lookup; plainly where neither pays",
    needs="nothing",
    paper="-",
    options=tuple(dict.fromkeys(name for one in (*TRAINED, LAYER_SKIP, prompt_lookup.METHOD) for name in one.options)),
    build=_build,
    reads_tokenizer=True,
    chosen=chosen,
)
