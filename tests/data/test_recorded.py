"""The data set of a run from its config.yaml: class, arguments, seed, and overrides."""

import inspect

import pytest

from diffusion.data import Arrays, Digits, ImageData
from diffusion.data.recorded import kind_of, open_data

CONFIG = """
seed_everything: 5
data:
  class_path: diffusion.data.Digits
  init_args: {batch_size: 64, root: null, labels: false, limit: 320}
"""


@pytest.fixture
def run(tmp_path):
    """A folder that looks like a run: a configuration and an empty checkpoint."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("where", ["", "checkpoints/last.ckpt"])
def test_recorded_arguments_and_seed_are_those_of_the_run(run, where):
    data = open_data(run / where)
    assert type(data) is kind_of(run / where) is Digits
    assert (data.batch_size, data.root, data.labels, data.limit, data.seed) == (64, None, False, 320, 5)


def test_overrides_replace_recorded_arguments(run):
    data = open_data(run, limit=10, labels=True)
    assert (data.limit, data.labels, data.num_classes, data.batch_size) == (10, True, 10, 64)
    assert len(data.arrays("train")[0]) == 10


def test_seed_of_the_data_takes_precedence_over_the_runs(run):
    (run / "config.yaml").write_text(CONFIG.replace("limit: 320", "limit: 320, seed: 7"))
    assert open_data(run).seed == 7


def test_short_class_names_are_found(run):
    (run / "config.yaml").write_text("data: {class_path: Digits}\n")
    data = open_data(run)
    assert type(data) is Digits and data.seed == 0


@pytest.mark.parametrize("config, overrides, error, words", [
    (CONFIG, {"limt": 3}, ValueError, "data.limt: Digits has no argument 'limt'; did you mean 'limit'"),
    (CONFIG, {"limit": -1}, ValueError, "limit -1"),
    ("data: 3", {}, ValueError, "wanted a run's configuration with data.class_path"),
    ("[", {}, ValueError, "wanted a run's configuration"),
    ("data: {class_path: os.system}", {}, ValueError, "os.system is not a subclass of ImageData"),
    ("data: {class_path: Digit}", {}, ValueError, "did you mean 'Digits'"),
    (None, {}, FileNotFoundError, "the run's configuration is missing"),
])  # fmt: skip
def test_wrong_configurations_and_overrides_are_refused(run, config, overrides, error, words):
    if config is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text(config)
    with pytest.raises(error, match=words):
        open_data(run, **overrides)


def test_every_data_set_has_typed_arguments():
    from diffusion.data.recorded import constructor
    from diffusion.support.specs import concrete

    kinds = [kind for kind in concrete(ImageData, "diffusion.data") if kind is not ImageData]
    assert Arrays in kinds and len(kinds) >= 7
    for kind in kinds:
        found = [p.annotation for p in constructor(kind).values()]
        assert not any(a is inspect.Parameter.empty or isinstance(a, str) for a in found)


def test_text_is_converted_to_the_type_of_its_argument(run):
    data = open_data(run, limit="10", labels="true", root="12", batch_size=32)
    assert (data.limit, data.labels, data.root, data.batch_size) == (10, True, "12", 32)
    with pytest.raises(ValueError, match="data.limit: wanted int, got 'ten'"):
        open_data(run, limit="ten")
    with pytest.raises(ValueError, match="data.labels: wanted bool, got '1'"):
        open_data(run, labels="1")
