"""The folder form of our `generate`, which transformers' `generate(custom_generate=FOLDER)` loads."""

from __future__ import annotations

from pathlib import Path

from slipstream.errors import InputError

FOLDER = "custom_generate"
_GENERATE = '''"""Lossless speculative decoding by Slipstream: the tokens of `generate`, several in a pass."""

from slipstream.hf_wrapped import FolderGenerate

_GENERATE = FolderGenerate()


def generate(model, **kwargs):
    """Arguments of `generate`; beside them drafter="auto", draft=PATH, options={...}, seed, stop and on_tokens."""
    return _GENERATE(model, **kwargs)
'''
_REQUIREMENTS = "slipstream-llm>={version}\n"


def write_folder(place: Path, version: str) -> list[Path]:
    """Write the folder below `place`, which may be a model's own; returns the files.

    version: of this package, the least that is asked for. Raises InputError for a file that holds something else.
    """
    texts = {"generate.py": _GENERATE, "requirements.txt": _REQUIREMENTS.format(version=version)}
    files = {place / FOLDER / name: text for name, text in texts.items()}
    for file, text in files.items():
        if file.exists() and file.read_bytes() != text.encode():
            raise InputError(f"{file} is there already and holds something else; name another folder, or remove it")
    (place / FOLDER).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    return list(files)
