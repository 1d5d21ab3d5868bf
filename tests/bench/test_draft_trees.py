"""The benchmark of draft trees makes a whole record on a tiny target, and all figures come out of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.target.target import Target

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_QUESTIONS, NUM_TOKENS = 2, 6

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The scripts, importable as they import each other; of one commit, whatever happens around the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setattr("records.commit", lambda: "0000000")
        yield


@pytest.fixture(scope="module")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target of one token a byte, a head for it, and questions of all tasks."""
    path = tmp_path_factory.mktemp("draft-trees")
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path / "target")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=256, **sizes, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(path / "target")
    target = Target(model)
    save_head(EagleHead(replace(HeadSizes.like(target), biases=frozenset({"fc"}))), path / "head", target)
    for task in ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "nq"):
        lines = [{"question_id": i, "turns": [f"{task} {i}?"]} for i in range(NUM_QUESTIONS)]
        (path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def arguments(bench_folder: Path, *more: str) -> list[str]:
    given = {
        "--data": bench_folder,
        "-m": bench_folder / "target",
        "--draft": bench_folder / "head",
        "--dtype": "float64",
    }
    asked = {"--prompts": NUM_QUESTIONS, "--max-new-tokens": NUM_TOKENS, "--out": bench_folder / "record.json"}
    return ["draft_trees.py", *(str(part) for pair in (given | asked).items() for part in pair), *more]


@pytest.fixture(scope="module")
def record(scripts: None, bench_folder: Path) -> dict[str, Any]:
    import draft_trees

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments(bench_folder))
        assert draft_trees.main() == 0
    return json.loads((bench_folder / "record.json").read_text())


TIMED = ("tokens_per_second", "speedup")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.endswith("_s") and name not in TIMED} for row in rows
    ]


def test_every_comparable_answer_is_identical_and_the_others_say_so(record):
    for row in record["all"]["rows"]:
        asked = 6 * NUM_QUESTIONS
        assert row["num_answers"] == asked
        verdicts = {"identical": asked, "rounding": 0, "fault": 0}
        assert row["verdicts"] == (None if row["rule"] == "rejection" else verdicts)


def test_the_published_trees_have_their_sizes(record):
    shapes = {name: one for name, one in record["definitions"]["methods"].items() if name.startswith("eagle2")}
    for name, one in shapes.items():
        published = (10, 5, 25) if name.startswith("eagle2-25") else (10, 6, 60)
        assert (one["width"], one["depth"], one["total"]) == published
    assert len(shapes) == 7
    static = next(tree for tree in record["cycles"][0]["trees"].items() if tree[0] == "eagle")
    assert len(static[1]["nodes"]) == 25


def test_all_tasks_add_up(record):
    for kind, count in (("rows", "num_tokens"), ("rows", "num_drafted"), ("calibration", "num_nodes")):
        parts = [[one[count] for one in task[kind]] for task in record["tasks"].values()]
        total = [one[count] for one in record["all"][kind]]
        if kind == "calibration":
            parts, total = [[sum(one) for one in part] for part in parts], [sum(one) for one in total]
        assert [sum(column) for column in zip(*parts, strict=True)] == total


def test_the_record_names_no_place_on_this_machine(record, bench_folder):
    assert str(bench_folder.parent) not in json.dumps(record)


def test_a_resumed_run_counts_what_an_unbroken_one_does(record, scripts, bench_folder, monkeypatch):
    import draft_trees

    partial = {**record, "tasks": {name: record["tasks"][name] for name in ("mt_bench", "gsm8k")}}
    path = bench_folder / "partial.json"
    path.write_text(json.dumps(partial))
    asked = arguments(bench_folder, "--resume")
    asked[asked.index("--out") + 1] = str(path)
    monkeypatch.setattr(sys, "argv", asked)
    assert draft_trees.main() == 0
    resumed = json.loads(path.read_text())
    assert without_times(resumed["all"]["rows"]) == without_times(record["all"]["rows"])
    assert resumed["all"]["calibration"] == record["all"]["calibration"]
    assert resumed["tasks"]["gsm8k"] == record["tasks"]["gsm8k"]


def test_another_run_s_record_is_not_taken_up(record, scripts, bench_folder, monkeypatch):
    import draft_trees

    monkeypatch.setattr(sys, "argv", arguments(bench_folder, "--resume", "--seed", "1"))
    with pytest.raises(SystemExit, match="begun with seed 0, not 1"):
        draft_trees.main()


def test_all_figures_come_out_of_a_record(record, scripts, bench_folder, monkeypatch):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")
    import figures

    asked = ["figures.py", str(bench_folder / "record.json"), "--out", str(bench_folder / "figures")]
    monkeypatch.setattr(sys, "argv", asked)
    assert figures.main() == 0
    drawn = {path.stem for path in (bench_folder / "figures").glob("*.svg")}
    parts = ("tau", "ablation", "calibration", "positions", "sampling", "layer-skip", "10-plus-2-equals", "10-plus-2")
    assert drawn == {f"draft-trees-{part}" for part in parts}
