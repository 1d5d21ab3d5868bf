"""The method for those who name none: a trained head beside prompt lookup where there is one for the target, else
prompt lookup alone.

A skip set that is given asks for layer-skip. A size that is given makes the head draft alone.

All size their drafts by what passes cost, and decode plainly where no draft pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipstream.drafting.artefact_files import artefact_kind, local_folder
from slipstream.drafting.base import Drafter
from slipstream.errors import ArtifactError
from slipstream.methods import prompt_lookup
from slipstream.methods.draft_model.method import METHOD as DRAFT_MODEL
from slipstream.methods.eagle.method import EAGLE2
from slipstream.methods.eagle3.method import METHOD as EAGLE3
from slipstream.methods.hybrid import with_lookup
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

    One with an artefact drafts beside prompt lookup. Raises ArtifactError for an artefact that is not known.
    """
    if "skip_set" in options:
        return LAYER_SKIP
    method = trained_method(target, options.get("draft"))
    if method is None:
        return prompt_lookup.METHOD
    return replace(method, build=lambda *given: with_lookup(method.build(*given)))


def trained_method(target: Target, draft: Any = None) -> Method | None:
    """The method of an artefact that was given or ships for the target; None: there is none.

    Raises ArtifactError for an artefact that is not known.
    """
    if draft is None:
        return None if EAGLE2.packaged(target.hash) is None else EAGLE2
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
    summary="a head that is given or ships and prompt lookup, whichever promises more; plainly where neither pays",
    needs="nothing",
    paper="-",
    options=tuple(dict.fromkeys(name for one in (*TRAINED, LAYER_SKIP, prompt_lookup.METHOD) for name in one.options)),
    build=_build,
    reads_tokenizer=True,
    chosen=chosen,
)
