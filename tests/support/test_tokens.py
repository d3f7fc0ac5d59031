"""Tokens: known words, everything else in bytes, and the hints of prompts that are not read as they stand."""

import pytest
import torch

from diffusion.support.tokens import Tokens


def test_tokens_of_known_words_and_of_everything_else():
    tokens = Tokens.learned(["a red cat", "a red dog", "the cat, red", None])
    assert tokens.words == ("red", "a", "cat") and tokens.length == 8  # "the" and "," are spelled
    ids = tokens.encode(["A RED cat", "", None, "\u043a\u043e\u0442"])
    assert ids[0, :4].tolist() == [258, 257, 259, 0] and not ids[1:3].any()
    assert ids[3, :8].tolist() == [33, *(1 + b for b in "\u043a\u043e\u0442".encode()), 0]
    assert tokens.decode(ids) == ["a red cat", "", "", "\u043a\u043e\u0442"]
    assert Tokens.of(tokens.plain) == tokens and Tokens.of(None) is None


@pytest.mark.parametrize(
    "prompt, hint",
    [
        ("a red cat", ""),
        ("", "no words"),
        ("  \n", "no words"),
        ("a red car", "'car' (like 'cat'?)"),
        ("\u8d64\u3044\u732b", "not among the words"),
        ("red " * 99, "99 tokens, of which the first 14"),
        ("\U0001f431", "not among the words"),
        ("\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "not among the words"),
        ("e\u0301t\u00e9", "not among the words"),
        ("red\x00\x1b[31m\r\ncat", "not among the words"),
        ("\udcff", "not among the words"),
        ("x" * 100_000, "100001 tokens, of which the first 14"),
        ("ab " * 10_000, "30000 tokens, of which the first 14"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_prompts_that_are_not_read_as_they_stand_have_a_hint_of_one_line(prompt, hint):
    tokens = Tokens(("red", "a", "cat"), 14)
    found = tokens.read([prompt])
    assert found.ids.shape == (1, 14) and hint in tokens.hint(prompt)
    assert bool(found.hints) == bool(hint) and all(line.isprintable() and len(line) < 300 for line in found.hints)


def test_tokens_refuse_what_is_no_text_and_no_vocabulary():
    with pytest.raises(ValueError, match="wanted a text"):
        Tokens().read([3])
    with pytest.raises(ValueError, match="different words"):
        Tokens(("a", "a"))
    with pytest.raises(ValueError, match="tokens: "):
        Tokens.of({"word": 1})


def test_a_hint_names_three_unknown_words_and_counts_the_others():
    hint = Tokens(("red", "cat"), 99).hint("one two three four five red")
    assert "'one', 'two', 'three' and 2 more; frequent ones are red, cat" in hint
    assert "frequent" not in Tokens(("a",), 99).hint("two")


def test_accents_written_in_two_ways_are_the_same_word():
    tokens = Tokens(("\u00e9t\u00e9",), 8)
    assert torch.equal(*tokens.encode(["e\u0301te\u0301", "\u00c9T\u00c9"])) and tokens.hint("e\u0301te\u0301") == ""
