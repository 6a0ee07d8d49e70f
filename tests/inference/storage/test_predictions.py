"""Stored predictions: what was written comes back bit by bit, and nothing else is taken for it."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bayes_lora
from bayes_lora.errors import DataError
from bayes_lora.inference import Prediction
from bayes_lora.inference.storage.predictions import (
    About,
    StoredPrediction,
    read_prediction,
    require_same_rows,
    row_id,
    write_prediction,
)
from bayes_lora.metrics.classification import all_metrics
from bayes_lora.models import GaussianRegression
from tests.heads import HEADS, labels_of

ABOUT = About("monteclora", 2, "mrpc", "validation", train_seconds=312.5, predict_seconds=4, peak_memory_bytes=2**31)
AGAIN = "Delete it and type the same 'bayes-lora compare' command again"


def stored(dtype: torch.dtype = torch.float32, labelled: bool = True, num_samples: int = 4) -> StoredPrediction:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_samples, 6, 3, generator=generator, dtype=dtype)
    labels = torch.tensor([0, 1, 2, 2, 0, 1]) if labelled else None
    ids = tuple(row_id({"text": f"row {k}", "label": 0}, ["text"]) for k in range(6))
    return StoredPrediction(Prediction(logits, labels), ids, ABOUT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions" / "monteclora-2.parquet"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_there_and_back(path: Path, dtype: torch.dtype, labelled: bool, num_samples: int) -> None:
    written = stored(dtype, labelled, num_samples)
    write_prediction(path, written)
    found = read_prediction(path)
    assert found.prediction.logits.dtype == dtype
    torch.testing.assert_close(found.prediction.logits, written.prediction.logits, rtol=0, atol=0)
    assert found.prediction.logits.is_contiguous()
    if labelled:
        assert torch.equal(found.prediction.labels, written.prediction.labels)
        assert all_metrics(found.prediction) == pytest.approx(all_metrics(written.prediction), rel=1e-15)
    else:
        assert found.prediction.labels is None
    assert (found.row_ids, found.about) == (written.row_ids, ABOUT)
    assert found.about.library_version == bayes_lora.__version__
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    # What was read is the reader's own.
    found.prediction.logits.add_(1)


def test_every_bit_is_kept(path: Path) -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45, torch.finfo(torch.float32).max])
    written = replace(stored(), prediction=Prediction(odd.repeat(6).reshape(2, 6, 3)))
    write_prediction(path, written)
    found = read_prediction(path).prediction.logits
    assert torch.equal(found.view(torch.int32), written.prediction.logits.view(torch.int32))


def test_other_readers_see_one_row_for_each_example(path: Path) -> None:
    written = stored()
    write_prediction(path, written)
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == ["row_id", "label", "logits"]
    assert frame["label"].tolist() == [0, 1, 2, 2, 0, 1]
    assert frame["row_id"].tolist() == list(written.row_ids)
    for k in range(6):
        kept = torch.tensor([list(draw) for draw in frame["logits"][k]])
        torch.testing.assert_close(kept, written.prediction.logits[:, k], rtol=0, atol=0)


def test_the_same_prediction_gives_the_same_file(path: Path) -> None:
    write_prediction(path, stored())
    first = path.read_bytes()
    write_prediction(path, stored())
    assert path.read_bytes() == first


def test_row_ids() -> None:
    row = {"a": "Ünïcode", "b": "second", "label": 1}
    # sha256 of the JSON list of the columns asked for, in that order.
    assert row_id({"a": "x"}, ["a"]) == "cd65ea2c2ad99e94a85b1b6df72efef9cb2ed0ae933a60c32ce16317f7d7d6aa"
    assert row_id(row, ["a", "b"]) == row_id({"b": "second", "a": "Ünïcode"}, ["a", "b"])
    assert len({row_id(row, ["a", "b"]), row_id(row, ["b", "a"]), row_id(row, ["a"])}) == 3
    # Where one text ends and the next begins is part of it.
    assert row_id({"a": "x y", "b": "z"}, ["a", "b"]) != row_id({"a": "x", "b": "y z"}, ["a", "b"])


def test_predictions_of_the_same_rows() -> None:
    one = stored()
    require_same_rows(one, replace(stored(torch.float64), about=replace(ABOUT, method="map")))
    require_same_rows(stored(labelled=False), stored(labelled=False))
    labels = torch.tensor([1, 1, 2, 2, 0, 1])
    for other in (
        replace(one, row_ids=one.row_ids[::-1]),
        replace(one, prediction=Prediction(one.prediction.logits, labels)),
        replace(one, prediction=Prediction(one.prediction.logits)),
    ):
        with pytest.raises(DataError, match=r"monteclora \(seed 2, 6 rows\) and map .*same rows.*empty --out folder"):
            require_same_rows(one, replace(other, about=replace(ABOUT, method="map")))


def test_no_file(path: Path) -> None:
    with pytest.raises(
        DataError, match=r"monteclora-2\.parquet does not exist\. Type the 'bayes-lora compare' command"
    ):
        read_prediction(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_cut_file(path: Path, share: float) -> None:
    write_prediction(path, stored())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"monteclora-2\.parquet cannot be read .* cut or damaged\. {AGAIN}"):
        read_prediction(path)


def test_a_damaged_file_is_never_taken_for_whole(path: Path) -> None:
    written = stored()
    write_prediction(path, written)
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = read_prediction(path)
        except DataError:
            refused += 1
        else:
            # Statistics and encodings that a reader does not need.
            assert torch.equal(found.prediction.logits, written.prediction.logits)
            assert torch.equal(found.prediction.labels, written.prediction.labels)
            assert (found.row_ids, found.about) == (written.row_ids, written.about)
    assert refused > 100


Change = Callable[[pa.Table, dict[str, Any]], tuple[pa.Table, dict[str, Any] | None]]


def without(*columns: str) -> Change:
    return lambda table, about: (table.drop_columns(list(columns)), about)


def with_column(name: str, values: Any, kind: Any) -> Change:
    def change(table: pa.Table, about: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        return table.set_column(table.column_names.index(name), name, pa.array(values, kind)), about

    return change


def with_about(**values: Any) -> Change:
    return lambda table, about: (table, about | values)


def lists(size: int, inner: int, kind: Any) -> Any:
    return pa.list_(pa.list_(kind, inner), size)


FULL = [[[0.0] * 3] * 4] * 6
LACKING = [*FULL[:5], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("logits"), "has no column logits"),
        (without("row_id", "label"), "has no column row_id or label"),
        (lambda table, about: (table.slice(0, 0), about), "has no rows"),
        (lambda table, about: (table.slice(1), about), "its content and its checksum disagree"),
        (lambda table, about: (table, None), "does not say what it holds"),
        (with_column("label", [0, 1, None, 2, 0, 1], pa.int64()), "has 1 unlabelled rows of 6: all or none can be"),
        (with_column("label", [0.0] * 6, pa.float32()), "labels of type float"),
        (with_column("label", [1, 1, 2, 2, 0, 1], pa.int64()), "its content and its checksum disagree"),
        (with_column("row_id", [0] * 6, pa.int64()), "row ids of type int64"),
        (with_column("row_id", [None] * 6, pa.string()), "rows without an id"),
        (with_column("logits", FULL, lists(4, 3, pa.float16())), "not sample x class in float32 or float64"),
        (with_column("logits", FULL, pa.list_(pa.list_(pa.float32()))), "not sample x class in float32 or float64"),
        (with_column("logits", [0.0] * 6, pa.float32()), "not sample x class in float32 or float64"),
        # pyarrow before 26 says so itself
        (with_column("logits", LACKING, lists(4, 3, pa.float32())), "(lacks logits: 60 for 6 rows of 4 x 3|size=4)"),
        (with_column("logits", FULL, lists(4, 3, pa.float32())), "its content and its checksum disagree"),
        (with_about(method="map"), "its content and its checksum disagree"),
        (with_about(surprise=1), "does not describe its prediction properly .*surprise"),
        (with_about(seed=-1), r"does not describe its prediction properly \(seed=-1 .* an integer >= 0"),
        (with_about(peak_memory_bytes=1.5), r"peak_memory_bytes=1\.5 .* an integer >= 0"),
    ],
)
def test_a_file_of_another_kind(path: Path, change: Change, message: str) -> None:
    write_prediction(path, stored())
    table = pq.read_table(path)
    changed, about = change(table, json.loads(table.schema.metadata[b"bayes_lora"]))
    metadata = {} if about is None else {b"bayes_lora": json.dumps(about).encode()}
    pq.write_table(changed.replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match=rf"monteclora-2\.parquet .*{message}.*{AGAIN}"):
        read_prediction(path)


@pytest.mark.parametrize("description", [b"{", b"[1]", b"{}", b"\xff", b"7"])
def test_an_unreadable_description(path: Path, description: bytes) -> None:
    write_prediction(path, stored())
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"bayes_lora": description}), path)
    with pytest.raises(DataError, match=rf"does not say what it holds.*{AGAIN}"):
        read_prediction(path)


def test_a_later_layout(path: Path) -> None:
    write_prediction(path, stored())
    later = json.dumps({"layout": 2, "library_version": "9.1"}).encode()
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"bayes_lora": later}), path)
    with pytest.raises(DataError, match=r"has layout 2, and this version of bayes_lora reads 1\. Install .* \(9\.1\)"):
        read_prediction(path)


@pytest.mark.parametrize(
    ("logits", "labels", "num_ids", "message"),
    [
        (torch.zeros(6, 3), None, 6, r"must be \(sample, example, class\).*got \(6, 3\), torch\.float32"),
        (torch.zeros(0, 6, 3), None, 6, r"at least one of each; got \(0, 6, 3\)"),
        (torch.zeros(2, 0, 3), None, 0, r"at least one of each; got \(2, 0, 3\)"),
        (torch.zeros(2, 6, 3, dtype=torch.bfloat16), None, 6, r"got \(2, 6, 3\), torch\.bfloat16"),
        (torch.zeros(2, 6, 3), None, 5, "6 predicted rows, 5 row ids and labels of shape None"),
        (torch.zeros(2, 6, 3), torch.zeros(5), 6, r"labels of shape \(5,\) do not belong together"),
        (torch.zeros(2, 6, 3), torch.zeros(6), 6, r"labels of type torch\.float32 are no class ids"),
    ],
)
def test_what_cannot_be_stored(
    path: Path, logits: torch.Tensor, labels: torch.Tensor | None, num_ids: int, message: str
) -> None:
    with pytest.raises(DataError, match=rf"monteclora-2\.parquet: .*{message}"):
        write_prediction(path, StoredPrediction(Prediction(logits, labels), ("id",) * num_ids, ABOUT))
    assert not path.exists()


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"predictions\.parquet cannot be written"):
        write_prediction(tmp_path / "file" / "predictions.parquet", stored())


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("method", "", "a text"),
        ("task", None, "a text"),
        ("seed", True, "an integer >= 0"),
        ("seed", 1.0, "an integer >= 0"),
        ("peak_memory_bytes", -1, "an integer >= 0"),
        ("train_seconds", math.nan, "a number >= 0"),
        ("predict_seconds", math.inf, "a number >= 0"),
    ],
)
def test_descriptions_are_checked(field: str, value: Any, kind: str) -> None:
    with pytest.raises(DataError, match=rf"{field}=.* of a stored prediction must be {kind}"):
        About(**(asdict(ABOUT) | {field: value}))


def test_blocks_are_told_from_independent_draws(path: Path) -> None:
    written = stored()
    pairs = replace(written, prediction=replace(written.prediction, block_size=4))
    write_prediction(path, pairs)
    assert read_prediction(path).prediction.block_size == 4
    assert read_prediction(path).about.block_size == 4
    write_prediction(path, written)
    assert read_prediction(path).prediction.block_size == 1
    described = json.loads(pq.read_schema(path).metadata[b"bayes_lora"])
    assert "block_size" not in described  # as version 0.1 wrote it


def of_other_labels(name: str) -> StoredPrediction:
    """Six rows, four samples that each learned a noise of their own where there is some."""
    likelihood, (shape, labels) = HEADS[name][0]().double(), (SHAPES[name], labels_of(name, 6))
    logits = torch.randn(4, 6, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    if name == "choice":
        logits[:, ::2, 2] = -torch.inf  # of options that a row lacks
    with torch.no_grad():
        packed = likelihood.pack(likelihood.prediction(logits, labels))
        if isinstance(likelihood, GaussianRegression):
            packed[..., 1] += torch.arange(4).reshape(-1, 1, 1) / 10
        return StoredPrediction(likelihood.unpack(packed, labels), stored().row_ids, ABOUT, likelihood)


SHAPES: dict[str, tuple[int, ...]] = {
    "learned noise": (2,),
    "Student's t": (2,),
    "one output": (1,),
    "multi-label": (3,),
    "ordinal": (1,),
    "tokens": (6, 3),
    "choice": (3,),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_labels_there_and_back(path: Path, name: str) -> None:
    written = of_other_labels(name)
    write_prediction(path, written)
    found = read_prediction(path)
    assert torch.equal(found.packed, written.packed)
    assert torch.equal(found.prediction.labels, written.prediction.labels.to(found.prediction.labels))
    assert found.likelihood.settings() == written.likelihood.settings()
    assert found.likelihood.metrics(found.prediction) == written.likelihood.metrics(written.prediction)
    unlabelled = replace(written, prediction=written.likelihood.unpack(written.packed, None))
    write_prediction(path, unlabelled)
    assert read_prediction(path).prediction.labels is None


@pytest.mark.parametrize("name", ["Student's t", "tokens"])
def test_another_likelihood_is_not_taken_for_that_of_a_file(path: Path, name: str) -> None:
    written = of_other_labels(name)
    write_prediction(path, written)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"bayes_lora"])
    kind = about["likelihood"]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"likelihood": {**kind, "settings": {**kind["settings"], **OTHER_SETTINGS[name]}}}, "checksum disagree"),
        ({"likelihood": {**kind, "kind": "poetry"}}, "does not describe its prediction properly"),
        ({"likelihood": {**kind, "settings": {"mood": 1}}}, "does not describe its prediction properly"),
        ({"shapes": {**about["shapes"], "logits": [7]}}, "another shape than it says"),
        ({"shapes": {"label": []}}, "another shape than it says"),
    ]
    for change, said in changes:
        metadata = {b"bayes_lora": json.dumps(about | change).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(DataError, match=said):
            read_prediction(path)


OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "Student's t": {"degrees_of_freedom": 9.0},
    "tokens": {"label_names": ["O", "B-y", "I-y"]},
}
