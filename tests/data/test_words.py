"""Words of captions as conditions: the vocabulary by hand, hostile captions, and prepared folders with captions."""

import numpy as np
import pytest
import torch

from diffusion.data import Prepared
from diffusion.data.words import ASCII, LETTERS, multi_hot, vocabulary, words_of
from diffusion.judging.judge import called, configuration
from tests import prepared
from tests.served import served

N = 40


def test_words_are_runs_of_letters_and_digits_in_lower_case():
    assert words_of("A Red, round BALL; no_2!") == {"a", "red", "round", "ball", "no", "2"}
    assert words_of("Ein GRÜNER Käfer – Ελλάδα, 猫 x²") == {"ein", "grüner", "käfer", "ελλάδα", "猫", "x²"}
    assert words_of("Ka\u0308fer") == words_of("K\u00e4fer")  # the same letter in two codes
    assert words_of("हिन्दी में") == {"हिन्दी", "में"}  # vowel signs are part of a word
    assert words_of("❤️ \u200b ...") == words_of("") == set()


def test_the_two_ways_to_find_words_agree():
    text = "".join(map(chr, range(128))) + " Some More_Words, 12a-b"
    assert set(ASCII.findall(text.lower())) == set(text.lower().translate(LETTERS).split())


def test_vocabulary_by_hand():
    """`a` is in all captions, `small` in one; red and square are in three each, blue and circle in two."""
    said = ["a red square", "a Red circle.", "a small red square", "a blue square", "a blue circle"]
    assert vocabulary(said) == ("red", "square", "blue", "circle")
    assert vocabulary([*said, None, "", "  "]) == vocabulary(said)  # the share is one of captions
    assert vocabulary(reversed(said)) == vocabulary(said)
    assert vocabulary([]) == vocabulary([None, ""]) == vocabulary(["red", "blue"]) == ()
    vectors = multi_hot([*said[:2], None, "green", "blue blue square"], ("red", "square", "blue", "circle"), 5)
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0] * 4, [0] * 4, [0, 1, 1, 0]]


def test_vocabulary_leaves_out_words_of_nearly_all_and_of_nearly_no_captions():
    """Of 4,000 captions: 3,800 are 95 %, 4 are 0.1 %."""
    counts = {"common": 3801, "most": 3800, "half": 2000, "few": 4, "rare": 3}
    said = [" ".join(word for word, count in counts.items() if k < count) or "none" for k in range(4000)]
    assert vocabulary(said) == ("most", "half", "none", "few")


def test_vocabulary_has_at_most_128_words_by_frequency_then_alphabet():
    said = [f"w{k:03d} {'w200' if k % 2 else 'x'}" for k in range(200) for _ in range(2)]
    assert vocabulary(said) == ("w200", "x", *(f"w{k:03d}" for k in range(126)))


def test_hostile_captions():
    long = " ".join(f"w{k}" for k in range(10_000))
    assert vocabulary([long, long, "x y", "x z"]) == tuple(sorted(["x", *(f"w{k}" for k in range(10_000))])[:128])
    assert vocabulary([f"only{k}" for k in range(1000)]) == ()  # no two equal
    assert vocabulary(["x" * 100_000, "\x00\x00", "=,;--context", "\ud800"]) == ()
    assert not multi_hot([long], ("x", "y"), 1).any()


@pytest.fixture
def said():
    """Captions in two words of two values each; every fifth image has none."""
    return [None if k % 5 == 4 else f"a {['red', 'blue'][k % 2]} {['disc', 'bar'][k // 2 % 2]}" for k in range(N)]


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (N, 3, 8, 8), np.uint8)


def test_prepared_is_conditioned_on_the_words_of_captions(tmp_path, images, said):
    split = prepared.write(tmp_path / "x", images, captions=said)
    data = Prepared(str(tmp_path / "x"), batch_size=8)
    assert set(data.class_names) == {"red", "blue", "disc", "bar"} and data.conditions == "words"
    assert (data.num_classes, data.context_dim, data.labelled) == (0, 4, False)
    for name, number in (("train", 0), ("test", 1)):
        y = data.store(name)[1]
        mine = [caption or "" for caption, its in zip(said, split, strict=True) if its == number]
        assert y.tolist() == [[float(word in caption.split()) for word in data.class_names] for caption in mine]
    x0, y = next(iter(data.train_dataloader()))
    assert y.shape == (8, 4) and y.dtype == torch.float32
    few = Prepared(str(tmp_path / "x"), limit=3)
    assert few.class_names == data.class_names and len(few.store("train")[1]) == 3
    off = Prepared(str(tmp_path / "x"), labels=False)
    assert off.context_dim == off.num_classes == 0 and len(off.store("train")[1]) == 30


def test_prepared_is_conditioned_on_captions_as_text(tmp_path, images, said):
    split = prepared.write(tmp_path / "x", images, captions=said)
    data = Prepared(str(tmp_path / "x"), y="text", batch_size=8)
    assert (data.num_classes, data.context_dim, data.class_names, data.conditions) == (0, 0, (), "text")
    for name, number in (("train", 0), ("test", 1)):
        mine = [caption or "" for caption, its in zip(said, split, strict=True) if its == number]
        y = data.store(name)[1]
        assert data.texts(name) == mine and torch.equal(y, data.vocabulary.encode(mine))
        assert y.any(1).tolist() == [bool(caption) for caption in mine]
    assert set(data.tokens["words"]) == {"a", "red", "blue", "disc", "bar"}
    few = Prepared(str(tmp_path / "x"), y="text", limit=3)
    assert few.tokens == data.tokens and len(few.texts("train")) == len(few.store("train")[1]) == 3
    assert Prepared(str(tmp_path / "x"), y="text", labels=False).tokens is None
    with pytest.raises(ValueError, match="balance is between classes, and the images have text"):
        Prepared(str(tmp_path / "x"), y="text", balance=1.0)
    prepared.write(tmp_path / "none", images)
    with pytest.raises(ValueError, match="y 'text', but"):
        Prepared(str(tmp_path / "none"), y="text")


@pytest.mark.pretrained
def test_prepared_captions_are_read_by_a_pretrained_text_encoder(tmp_path, images, said):
    pretrained = pytest.importorskip("tests.pretrained")
    folder = pretrained.t5(tmp_path / "t5")
    prepared.write(tmp_path / "x", images, captions=said)
    data = Prepared(str(tmp_path / "x"), y="text", text_encoder=folder)
    mine = data.texts("train")
    y = data.store("train")[1]
    assert data.tokens.keys() == {"folder", "hash", "length"} and y.shape == (len(mine), data.tokens["length"])
    assert y.any(1).tolist() == [bool(caption) for caption in mine]
    with pytest.raises(ValueError, match="a text_encoder reads captions; give y: text"):
        Prepared(str(tmp_path / "x"), text_encoder=folder)


def test_vocabulary_is_that_of_the_training_split(tmp_path, images, said):
    split = prepared.write(tmp_path / "x", images, captions=said)
    changed = ["secret words" if its else caption for caption, its in zip(said, split, strict=True)]
    prepared.write(tmp_path / "y", images, captions=changed)
    one, other = (Prepared(str(tmp_path / name)) for name in "xy")
    assert one.class_names == other.class_names and not other.store("test")[1].any()


def test_classes_come_before_targets_before_words(tmp_path, images, said):
    options = {"captions": said}
    for name, more in (
        ("words", {}),
        ("targets", {"targets": np.ones((N, 2)), "names": ("age", "size")}),
        ("classes", {"classes": ("a", "b"), "labels": np.arange(N) % 2}),
    ):
        options |= more
        prepared.write(tmp_path / name, images, **options)
        data = Prepared(str(tmp_path / name))
        assert data.conditions == name and data.labelled == (name == "classes")
        assert configuration(data).name == ("features.yaml" if data.labelled else "features_unlabelled.yaml")
    for kind in ("targets", "words"):
        data = Prepared(str(tmp_path / "classes"), y=kind)
        assert data.conditions == kind and called(data) != called(Prepared(str(tmp_path / "classes")))
        assert called(data) == called(Prepared(str(tmp_path / "classes"), y="targets"))  # one judge for all vectors


def test_captions_without_two_usable_words_are_not_used(tmp_path, images):
    prepared.write(tmp_path / "x", images, captions=[f"caption{k}" for k in range(N)])
    assert Prepared(str(tmp_path / "x")).class_names == ()
    with pytest.raises(ValueError, match="y 'words', but .* nor targets and captions with fewer than 2"):
        Prepared(str(tmp_path / "x"), y="words")
    prepared.write(tmp_path / "y", images)
    with pytest.raises(ValueError, match="y 'words', but .* has neither classes nor targets; prepare it with them"):
        Prepared(str(tmp_path / "y"), y="words")


@pytest.mark.parametrize(("text", "words"), [
    (None, "captions.jsonl: .*No such file.*; prepare the folder again"),
    ('"a red disc"\n', "1 lines for 40 images; prepare"), ("null\n" * 41, "41 lines for 40 images"),
    ("3\n" * 40, "wanted a text or null, got 3"), ("{\n" * 40, "captions.jsonl: .*prepare the folder again"),
])  # fmt: skip
def test_damaged_captions_are_refused(tmp_path, images, said, text, words):
    prepared.write(tmp_path / "x", images, captions=said)
    (tmp_path / "x" / "captions.jsonl").unlink() if text is None else None
    if text is not None:
        (tmp_path / "x" / "captions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=words):
        Prepared(str(tmp_path / "x"))


def test_options_for_classes_are_refused_with_words(tmp_path, images, said):
    prepared.write(tmp_path / "x", images, captions=said)
    with pytest.raises(ValueError, match="no_flip 'red' is no class; the images have none"):
        Prepared(str(tmp_path / "x"), no_flip=["red"])
    with pytest.raises(ValueError, match="balance is between classes, and the images have words; leave it out"):
        Prepared(str(tmp_path / "x"), balance=1.0)


def test_captions_behind_an_address_are_fetched_once_and_only_if_needed(tmp_path, images, said, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    prepared.write(tmp_path / "x", images, captions=said, empty=False)
    with served(tmp_path / "x") as server:
        Prepared(server.url, labels=False)
        assert "/captions.jsonl" not in server.asked
        there = [Prepared(server.url) for _ in range(2)]
        assert torch.equal(there[0].store("test")[1], Prepared(str(tmp_path / "x")).store("test")[1])
        assert server.asked.count("/captions.jsonl") == 1
