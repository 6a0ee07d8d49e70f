"""What a recipe may say; what it may not is refused by file and line, before anything is trained."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bayes_lora.errors import RecipeError, RunExistsError, StorageError
from bayes_lora.experiments.sweep import storage
from bayes_lora.experiments.sweep.cells import cells_of
from bayes_lora.experiments.sweep.recipe import read_recipe
from bayes_lora.experiments.sweep.running import Sweep, run_sweep
from tests.experiments.compare.studies import QUIET
from tests.experiments.sweep.sweeps import make_sweep, write_recipe

GOOD = """tasks: [mrpc]
methods:
  - base_rate
  - full
  - monteclora[sample_scale=0.1]+temperature
settings:
  epochs: 1
  rank: 2
grid:
  learning_rate: [3e-4, 0.01]
  monteclora.num_components: [1, 4]
seeds: [0, 3]
forms:
  quick:
    settings: {epochs: 2}
    seeds: [7]
"""


def test_cells_share_what_is_trained(tmp_path: Path) -> None:
    recipe = read_recipe(str(write_recipe(tmp_path, "minilm", GOOD)))
    assert recipe.grid["learning_rate"] == (3e-4, 0.01)  # which YAML 1.1 takes for text
    cells = cells_of(recipe)
    # Two rates and seeds: the base rate, the full network, and a posterior for each number of components.
    assert len(cells) == 2 * 2 * (1 + 1 + 2) == len({cell.id for cell in cells})
    named = {cell.id: cell for cell in cells}
    full = named["mrpc/learning_rate=0.01/seed-3/full_learning_rate=0.01"]
    assert full.methods[0].value("learning_rate") == 0.01  # its own default moves along the axis too
    assert full.study().training.learning_rate == 0.01
    assert full.study().seeds == (3,)
    posterior = named["mrpc/learning_rate=0.0003/seed-0/monteclora_sample_scale=0.1_num_components=4"]
    (entry,) = posterior.entries
    assert entry.written.label == "monteclora[sample_scale=0.1]+temperature"
    assert entry.method.label == "monteclora[sample_scale=0.1,num_components=4]+temperature"
    assert dict(entry.point) == {"learning_rate": 3e-4, "monteclora.num_components": 4}


def test_a_form_takes_the_place_of_what_it_names(tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path, "minilm", GOOD))
    recipe = read_recipe(path, "quick")
    assert (recipe.name, recipe.seeds, recipe.settings) == ("small-quick", (7,), {"epochs": 2, "rank": 2})
    with pytest.raises(RecipeError, match=r"there is no form 'slow'. Its forms: quick"):
        read_recipe(path, "slow")


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("seeds:", "sedes:", 14, "a recipe has no key 'sedes'. Its keys are name, about"),
        ("  epochs: 1", "  epoch: 1", 9, "there is no setting 'epoch'. The settings are epochs"),
        ("  epochs: 1", "  epochs: [1, 2]", 9, "epochs is one value here. Several make an axis"),
        ("  epochs: 1", "  epochs: none", 9, "epochs='none' cannot be: epochs='none' must be an integer"),
        ("  - full", "  - fulll", 6, "there is no method 'fulll'. The methods are base_rate"),
        ("  - full", "  - base_rate", 6, "the method 'base_rate' is here twice"),
        ("tasks: [mrpc]", "tasks: [mpc]", 3, "there is no task 'mpc'. The tasks are mrpc"),
        ("tasks: [mrpc]", "tasks: [mrpc, mrpc]", 3, "the task 'mrpc' is here twice"),
        ("tasks: [mrpc]", "tasks: []", 3, "tasks must be a list with at least one entry"),
        ("tasks: [mrpc]", "tasks: [{train_file: a.csv}]", 3, "a task of your own rows needs a name"),
        ("[3e-4, 0.01]", "[]", 12, "the axis learning_rate must be a list with at least one entry"),
        ("[3e-4, 0.01]", "[3e-4, -1]", 12, "learning_rate=-1 cannot be: learning_rate=-1 must be positive"),
        ("[3e-4, 0.01]", "[0.01, 0.01]", 12, "the axis learning_rate has a value twice"),
        ("  learning_rate:", "  learning_rat:", 12, "there is no axis 'learning_rat'"),
        ("monteclora.num", "monteclora.nom", 13, "monteclora has no option 'nom_components'"),
        ("monteclora.num_components", "blob.init_scale", 13, "moves an option of blob, and none of the methods is one"),
        ("monteclora.num_components", "monteclora.sample_scale", 13, "it is in the brackets of one already"),
        ("  rank: 2", "  learning_rate: 1", 10, "'learning_rate' is fixed here and an axis of the grid at line 12"),
        ("[0, 3]", "[0, 0]", 14, "seeds=[0, 0] has one twice"),
        ("[0, 3]", "[0, x]", 14, "seeds must be whole numbers"),
        ("  rank: 2", "  epochs: 2", 10, "the key 'epochs' is here for the second time"),
        ("[mrpc]", "[mrpc", 4, "this is no YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, line: int, said: str, tmp_path: Path) -> None:
    assert GOOD.count(old) >= 1
    path = write_recipe(tmp_path, "minilm", GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError, match=f"^{re.escape(str(path))}, line {line}: .*{re.escape(said)}"):
        read_recipe(str(path))


def test_a_grid_without_an_axis_and_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "minilm", "tasks: [mrpc]\nmethods: [map]\ngrid: {}\n")
    with pytest.raises(RecipeError, match="line 5: the grid is empty"):
        read_recipe(str(path))
    with pytest.raises(RecipeError, match="There is no recipe 'tabel'"):
        read_recipe("tabel")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(str(tmp_path / "absent.yaml"))


def small(folder: Path, base: str, data_dir: Path, out: str, epochs: int = 1, **options: object) -> Sweep:
    text = f"tasks: [mrpc]\nmethods: [base_rate]\nsettings: {{epochs: {epochs}, num_samples: 1}}\nseeds: [0]\n"
    return make_sweep(write_recipe(folder, base, text), data_dir, folder / out, **options)


def test_a_base_model_beside_the_recipe_is_found_and_must_stay_what_it_is(
    base: str, data_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "net")
    shutil.copytree(data_dir / "mrpc", tmp_path / "mrpc")
    sweep = small(tmp_path, "./net", data_dir=tmp_path, out="first")
    assert sweep.recipe.base_place == str(tmp_path / "net")
    assert cells_of(sweep.recipe)[0].study().base_model == str(tmp_path / "net")
    assert sweep.recipe.to_json()["base_model"] == "./net"  # the same on a machine that has it elsewhere
    run_sweep(sweep, QUIET)
    weights = tmp_path / "net" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(RunExistsError, match="holds a study with other settings"):
        run_sweep(small(tmp_path, "./net", data_dir=tmp_path, out="first"), QUIET)
    (tmp_path / "minilm").mkdir()  # a short name is no folder
    assert small(tmp_path, "minilm", data_dir=tmp_path, out="second").recipe.base_place == "minilm"


def test_paths_of_a_recipe_of_the_library_start_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits" / "small-vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("digits-vit")
    assert recipe.base_place == str(tmp_path / "digits" / "small-vit")
    assert recipe.tasks[0].source.train_dir == str(tmp_path / "digits" / "train")
    assert read_recipe("digits-vit", data_dir=tmp_path / "elsewhere").base_place == "./digits/small-vit"


def test_a_storage_or_folder_of_something_else_is_refused_before_any_training(
    base: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    run_sweep(small(tmp_path, base, data_dir, "first", storage=url), QUIET)
    with pytest.raises(RunExistsError, match=r"holds a study with other settings \(settings"):
        run_sweep(small(tmp_path, base, data_dir, "first", epochs=2), QUIET)
    other = small(tmp_path, base, data_dir, "other", epochs=2, storage=url)
    with pytest.raises(StorageError, match=r"the study 'small' in .* is another sweep: settings differ"):
        run_sweep(other, QUIET)
    monkeypatch.setattr(storage, "SCHEMA_VERSION", 2)
    with pytest.raises(StorageError, match=r"by another version of this library .its format is 1, this one's 2"):
        run_sweep(small(tmp_path, base, data_dir, "first", storage=url), QUIET)
    assert not (other.folder / "cells").exists()
    with pytest.raises(StorageError, match="cannot be opened"):
        run_sweep(small(tmp_path, base, data_dir, "third", storage="nosql://somewhere"), QUIET)
