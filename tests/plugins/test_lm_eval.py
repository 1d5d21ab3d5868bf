"""The model of lm-evaluation-harness: its scores are those of the harness's own model, whatever the method."""

from __future__ import annotations

import json
import tomllib
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from byte_model import save_byte_model
from slipstream.errors import InputError

pytest.importorskip("lm_eval", reason="the plug-in needs lm_eval: pip install 'slipstream-llm[eval]'")

lm_eval = pytest.importorskip("slipstream.plugins.lm_eval")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
GENERATED = (
    TASK
    + """
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 16, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
)
CHOSEN = (
    TASK
    + """
doc_to_choice: ["{{{{answer}}}}", "{{{{question}}}}", "zebra"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
)
QUESTIONS = ("Hello, hello", "abc abc abc", "one two one two", "What is it?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"), context=256)


@pytest.fixture(scope="module")
def tasks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of four questions; half of the expected answers are what the model says."""
    place = tmp_path_factory.mktemp("tasks")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = []
    for number, question in enumerate(QUESTIONS):
        ids = tokenizer(question, return_tensors="pt")
        answer = tokenizer.decode(
            model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )
        lines.append(json.dumps({"question": question, "answer": answer if number % 2 else "no"}))
    (place / "questions.json").write_text("\n".join(lines))
    file = place / "questions.json"
    (place / "generated.yaml").write_text(
        GENERATED.format(name="generated", file=file, kind="generate_until", stop="\\u0000")
    )
    (place / "chosen.yaml").write_text(CHOSEN.format(name="chosen", file=file, kind="multiple_choice"))
    return place


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def evaluate(model: Any, tasks: Path, **arguments: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=model,
        tasks=["generated", "chosen"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **arguments,
    )
    assert isinstance(found, dict)
    return found


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {
        "generated": found["results"]["generated"]["exact_match,none"],
        "chosen": found["results"]["chosen"]["acc,none"],
    }


def answers(found: dict[str, Any]) -> list[Any]:
    samples = [one for name in ("generated", "chosen") for one in found["samples"][name]]
    return [one["filtered_resps"] for one in sorted(samples, key=lambda one: (one["doc_id"], str(one["arguments"])))]


@pytest.mark.filterwarnings("ignore")
def test_scores_are_equal_with_a_method_with_plain_and_with_the_harness_own(folder: Path, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    theirs = evaluate(HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder)), tasks)
    assert scores(theirs)["generated"] == 0.5
    for method in ("plain", "layer-skip"):
        arguments = {"pretrained": str(folder), "method": method, "dtype": "float64", "device": "cpu"}
        found = evaluate("slipstream", tasks, model_args=arguments)
        assert scores(found) == scores(theirs)
        assert answers(found) == answers(theirs)
        assert found["config"]["method"] == method


@pytest.mark.filterwarnings("ignore")
def test_sampled_answers_hang_on_the_seed_and_not_on_the_method(folder: Path, tasks: Path) -> None:
    sampling = {"gen_kwargs": "do_sample=True,temperature=1.0,top_p=0.9"}
    found = {}
    for method, seed in (("plain", 1), ("layer-skip", 1), ("plain", 2)):
        text = f"pretrained={folder},method={method},dtype=float64,device=cpu"
        found[method, seed] = answers(
            evaluate("slipstream", tasks, model_args=text, torch_random_seed=seed, **sampling)
        )
    assert found["plain", 1] == found["layer-skip", 1] != found["plain", 2]


def test_batches_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 8"):
        lm_eval.SlipstreamLM(str(folder), batch_size=8)


def test_the_entry_point_is_the_model() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["slipstream"].partition(":")
    assert getattr(import_module(module), name) is lm_eval.SlipstreamLM


@pytest.mark.filterwarnings("ignore")
def test_the_module_is_the_harness_command(
    folder: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # thousands of files
    command = [
        "run",
        "--model",
        "slipstream",
        "--model_args",
        f"pretrained={folder}",
        "method=plain",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["lm_eval", *command, "--tasks", "generated", "--include_path", str(tasks)])
    lm_eval.main()
    assert "exact_match" in capsys.readouterr().out
