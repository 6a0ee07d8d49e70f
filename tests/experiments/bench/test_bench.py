"""The bench on a tiny network: what it leaves behind, the comparison with earlier results, and the README's table."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import BenchError, ConfigurationError, DataError
from bayes_lora.experiments.bench import contenders
from bayes_lora.experiments.bench.cases import Case, loaded_base, lora_network, target_paths
from bayes_lora.experiments.bench.choices import Question
from bayes_lora.experiments.bench.contenders import (
    PEFT_MOST_COMPONENTS,
    TRAINING,
    fitted,
    over_components,
    peft_monteclora,
)
from bayes_lora.experiments.bench.memory import measure_apart
from bayes_lora.experiments.bench.report import END, START, around_table, readme_table, update_readme
from bayes_lora.experiments.bench.results import read_results
from bayes_lora.experiments.bench.suites import Bench, run_bench
from bayes_lora.files import write_json
from bayes_lora.inference import fit_network
from bayes_lora.models.likelihoods.option_passes import OPTIONS
from tests.experiments.commands import run

ROOT = Path(__file__).resolve().parent.parent.parent.parent
COMMITTED = ROOT / "experiments" / "results" / "bench-cpu.json"
SUITES = [
    *(
        "steps",
        "components",
        "rank",
        "adapters",
        "dora",
        "memory",
        "draws",
        "predict",
        "language",
        "choices",
        "gradients",
    )
]


@pytest.fixture(scope="module")
def measured(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a quick bench of everything, and what it printed; tests leave the folder as it is."""
    out = tmp_path_factory.mktemp("bench") / "out"
    result = run("bench", "--out", out, "--quick", "--rounds", "2", "--base-model", base, "--json")
    return out, json.loads(result.stdout)


def test_a_bench_leaves_results_a_page_and_a_picture(measured: tuple[Path, Any]) -> None:
    out, printed = measured
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert json.loads((out / "bench.json").read_text(encoding="utf-8")) == printed
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    results = read_results(out / "bench.json")
    assert results.to_json() == printed
    assert set(SUITES) <= set(results.suites)
    assert len({record.key for record in results.records}) == len(results.records)
    assert {record.contender for record in results.of("steps")} == set(TRAINING)
    assert all(0 < r.value.low <= r.value.median <= r.value.high for r in results.records if r.unit != "count")
    page = (out / "bench.md").read_text(encoding="utf-8")
    assert "PEFT MonteCLoRA, N = 4" in page
    assert "A quick run" in page
    assert "paper, explicit, expected KL, N = 4" in page


def test_every_step_is_compared_with_lora(measured: tuple[Path, Any]) -> None:
    results = read_results(measured[0] / "bench.json")
    for record in results.records:
        if record.quantity == "step" and record.contender not in ("lora", "sampling_and_kl"):
            assert record.ratios["lora"].rounds == 2
    by_fit = results.find("steps", "paper_fit")
    assert by_fit is not None
    assert set(by_fit.ratios) == {"lora", "lora_fit"}
    with_dora = results.find("dora", "dora_elbo")
    assert with_dora is not None
    assert set(with_dora.ratios) == {"lora", "dora"}
    more = results.find("components", "paper_n4")
    assert more is not None
    assert set(more.ratios) == {"lora", "paper_n1"}
    assert [r.case["adapters"] for r in results.of("adapters") if r.contender == "lora"] == [6, 12]
    line = results.lines["sampling_and_kl"]
    assert line.slope_error >= 0
    assert f"{1e3 * line.fixed:.2f} ± {1e3 * line.fixed_error:.2f} ms" in readme_table(results)


def test_draws_that_write_together_are_compared_with_the_plain_adapter(measured: tuple[Path, Any]) -> None:
    results = read_results(measured[0] / "bench.json")
    texts = {record.contender: record for record in results.of("language", "text")}
    assert set(texts) == {"lora", "lora_rows2", "generate_s1", "generate_s2"}
    assert all(texts[name].ratios["lora"].rounds == 2 for name in texts if name != "lora")
    peaks = {record.contender: record.value.median for record in results.of("language", "text_peak")}
    assert 0 < peaks["lora"] < peaks["generate_s1"] < peaks["generate_s2"] < 2.5 * peaks["generate_s1"]


def test_without_smollm2_nothing_is_claimed_about_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_lora.experiments.networks.smollm2.find_spec", lambda name: None)
    results = run_bench(Bench(quick=True, rounds=2), ["language", "choices"])
    assert not results.records
    assert all("smollm2 is not installed" in results.not_measured[suite] for suite in ("language", "choices"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is reported without a CUDA device")
def test_without_a_gpu_nothing_is_claimed(measured: tuple[Path, Any]) -> None:
    results = read_results(measured[0] / "bench.json")
    assert not results.of("gpu")
    assert "no CUDA device is present" in results.not_measured["gpu"]
    page = (measured[0] / "bench.md").read_text(encoding="utf-8")
    assert "Not measured: no CUDA device is present, so nothing is claimed about GPUs." in page


def test_lora_holds_its_parameters_and_the_optimizers_state(base: str, measured: tuple[Path, Any]) -> None:
    results = read_results(measured[0] / "bench.json")
    network = lora_network(Case(base, 1, 8))
    expected = sum(3 * 4 * p.numel() for p in network.parameters() if p.requires_grad)
    held = {r.contender: r.value.median for r in results.of("memory", "held")}
    peak = {r.contender: r.value.median for r in results.of("memory", "tensor_peak")}
    # Besides: the batch, and a step counter for each tensor.
    assert expected <= held["lora"] <= expected + 2000
    assert held["paper"] > held["lora"]
    assert all(peak[name] > held[name] for name in held)


def test_targets_are_those_of_the_blocks(base: str) -> None:
    assert {path.rpartition(".")[2] for path in target_paths(Case(base))} == {"query", "key", "value"}
    linear = target_paths(Case(base, targets="linear"))
    assert len(linear) == 12
    assert not [path for path in linear if "pooler" in path or "classifier" in path]
    assert len(target_paths(Case(base, targets="linear", shape="deep"))) == 24
    assert loaded_base(base, "deep").config.num_hidden_layers == 4


def test_pefts_monteclora_trains_on_its_variational_loss(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(contenders, "_loop", lambda *arguments: caught.extend(arguments))
    TRAINING["peft_monteclora"].build(Case(base, 1, 8))
    parameters, loss_of, _ = caught
    weights = [parameter for parameter in parameters if parameter.shape == (4,)]
    loss_of().backward()
    # LoRA-B is zero, so the likelihood says nothing about the noise yet.
    assert len(weights) == 6
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_pefts_monteclora_fails_beyond_what_is_measured(base: str) -> None:
    entered = [c.components for c in over_components((1, 16, 64)) if c.name.startswith("peft")]
    assert entered == [1, PEFT_MOST_COMPONENTS]
    with pytest.raises(RuntimeError, match=r"cholesky.*not positive-definite"):
        peft_monteclora(64)(Case(base, 1, 8))(1)


def test_a_turn_of_a_fit_lies_between_its_steps(base: str) -> None:
    case = Case(base, 2, 8)
    network = lora_network(case)
    events: list[str] = []
    network.register_forward_hook(lambda *_: events.append("step"))

    def train(rows: Any, options: Any, collate: Callable[[list[Any]], Any]) -> None:
        def watched(rows: list[Any]) -> Any:
            events.append("batch")
            return collate(rows)

        fit_network(network, rows, options, collate=watched)

    fitted(train, case)(4)
    batches = [index for index, event in enumerate(events) if event == "batch"]
    assert len(batches) == 7
    assert events[batches[2] : batches[-1]].count("step") == 4
    assert "step" in events[: batches[2]]


def test_the_check_on_the_command_line(measured: tuple[Path, Any], tmp_path: Path) -> None:
    same = measured[0] / "bench.json"
    assert "none is more than 10% worse" in run("bench", "--from", same, "--check", same).stdout
    better = read_results(same)
    for record in better.records:
        for name, ratio in record.ratios.items():
            record.ratios[name] = replace(ratio, median=ratio.median / 1.2)
    write_json(tmp_path / "better.json", better.to_json())
    with pytest.raises(BenchError, match="ratios are more than 10% worse"):
        run("bench", "--from", same, "--check", tmp_path / "better.json")


def test_options_come_out_the_same_with_and_without_a_question_of_their_own(decoder: str) -> None:
    """What the suite `choices` times is one and the same thing."""
    case = Question(decoder, tokens=8, options=3, option_tokens=4)
    options = case.batch[OPTIONS][0]
    with torch.no_grad():
        shared = case.model.network_logits(case.batch)[0]
        torch.testing.assert_close(case.alone(options), shared, rtol=1e-5, atol=1e-5)
    assert all(turn(1) > 0 for turn in case.turns().values())
    assert case.described()["options"] == 3


def test_a_check_measures_what_the_file_has(base: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--suite", "draws", "--quick", "--rounds", "2", "--base-model", base)
    run("bench", "--out", out, *options)
    results = read_results(out / "bench.json")
    # Far better than any machine's luck, so that a pass shows that the ratios were measured anew and found.
    generous = [
        replace(r, ratios={name: replace(ratio, median=100.0) for name, ratio in r.ratios.items()})
        for r in results.records
    ]
    write_json(tmp_path / "generous.json", replace(results, records=generous).to_json())
    said = run("bench", "--check", tmp_path / "generous.json", "--rounds", "2").stdout
    assert "2 ratios compared with" in said
    assert "A posterior draw" in said
    assert "One training step" not in said


def test_the_readme_has_the_committed_results() -> None:
    # Made by: bayes-lora bench --from experiments/results/bench-cpu.json --readme README.md
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, after = around_table(ROOT / "README.md")
    table = f"{readme_table(read_results(COMMITTED))}\n" if COMMITTED.exists() else ""
    assert text == f"{before}{START}\n{table}{END}{after}"


def test_the_table_replaces_the_one_before(measured: tuple[Path, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{START}\nan old table\n{END}\n\nThe end.\n", encoding="utf-8")
    run("bench", "--from", measured[0] / "bench.json", "--readme", page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{START}\n| batch x tokens | PEFT LoRA |")
    assert text.endswith(f"{END}\n\nThe end.\n")
    assert "old" not in text
    lora = read_results(measured[0] / "bench.json").find("steps", "lora")
    assert lora is not None
    assert f"| 1 x 8 | 1 ({1e3 * lora.value.median:.3g} ms) |" in text
    update_readme(page, read_results(measured[0] / "bench.json"))
    assert page.read_text(encoding="utf-8") == text


REFUSED: dict[str, tuple[list[object], type[Exception], str]] = {
    "nowhere": (["--quick"], ConfigurationError, "Give --out"),
    "suite": (["--suite", "steps,speed"], ConfigurationError, "no suite 'speed'. Name some of steps, components"),
    "rounds": (["--rounds", "0"], ConfigurationError, "rounds=0"),
    "base": (["--base-model", "./none"], OSError, "no such folder"),
    "no results": (["--check", "none.json"], DataError, r"none\.json cannot be read"),
    "no page": (["--readme", "none.md"], DataError, r"none\.md cannot be read"),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(options: list[object], error: type[Exception], message: str, tmp_path: Path) -> None:
    place = [] if options == ["--quick"] else ["--out", tmp_path / "out"]
    with pytest.raises(error, match=message):
        run("bench", *place, *options)
    assert not (tmp_path / "out").exists()


def test_refused_files(measured: tuple[Path, Any], tmp_path: Path) -> None:
    results = measured[0] / "bench.json"
    with pytest.raises(DataError, match=r"has a bench\.json already.*--overwrite"):
        run("bench", "--out", measured[0], "--suite", "draws")
    with pytest.raises(ConfigurationError, match="--from measures nothing, so --quick would do nothing"):
        run("bench", "--from", results, "--quick")
    (tmp_path / "page.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(DataError, match=r"no place for the table\..*<!-- bench -->"):
        run("bench", "--from", results, "--readme", tmp_path / "page.md")
    data = {**asdict(read_results(results)), "format": 1}
    write_json(tmp_path / "other.json", {**data, "format": 2})
    with pytest.raises(DataError, match="its format is 2, not 1"):
        read_results(tmp_path / "other.json")
    write_json(tmp_path / "damaged.json", {**data, "records": [{"suite": "steps"}]})
    with pytest.raises(DataError, match=r"damaged\.json is damaged: KeyError"):
        read_results(tmp_path / "damaged.json")


def test_a_process_that_fails_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 3\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(BenchError, match=r"'paper' failed with exit status 3.*\n.*no memory"):
        measure_apart("paper", Case())
