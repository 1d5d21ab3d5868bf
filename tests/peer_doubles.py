"""A stand-in for llama-cpp-python, which a real process imports: it counts upwards, and does as its model file says."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.0.7"
_MODULE = '''
import json
import os
import sys
import time

GGML_TYPE_F32 = 0


class Llama:
    """Says the numbers after the prompt's last token. Its model file: JSON with `vocab_size` and what it is to do."""

    def __init__(self, model_path, *, verbose, **how):
        print("a library that chatters")
        with open(model_path) as file:
            self.told = json.load(file)
        self.how = how
        if "log" in self.told:
            with open(self.told["log"], "a") as log:
                print(json.dumps(how), file=log)

    def n_vocab(self):
        return self.told["vocab_size"]

    def reset(self):
        self.is_fresh = True

    def set_seed(self, seed):
        self.seed = seed

    def generate(self, tokens, **how):
        assert self.is_fresh
        self.is_fresh = False
        if "log" in self.told:
            with open(self.told["log"], "a") as log:
                print(json.dumps({**how, "tokens": tokens, "seed": self.seed}), file=log)
        if self.told.get("fails") == len(tokens):
            raise RuntimeError("no such key\\nsecond line")
        if self.told.get("dies") == len(tokens):
            print("terminate called: no memory left", file=sys.stderr)
            os._exit(3)
        token = tokens[-1]
        while True:
            time.sleep(0.001)
            token = (token + 1) % self.told["vocab_size"]
            yield token
'''


def install_llama_cpp(folder: Path) -> Path:
    """Put it where a Python whose PYTHONPATH has the folder finds it; returns the folder."""
    (folder / "llama_cpp.py").write_text(_MODULE, encoding="utf-8")
    described = folder / f"llama_cpp_python-{VERSION}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {VERSION}\n")
    return folder
