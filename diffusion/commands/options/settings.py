"""Separation of `diffusion fit` options from those of another command."""

from diffusion.commands.options.parser import Parser


def split(parser: Parser, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments of a command itself, and the remaining options, which are settings of `fit`, by name.

    Raises:
        ValueError: a setting without a value.
    """
    mine, settings, words = [], {}, iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in parser.known:
            mine.append(word)
            continue
        if not equals and (value := next(words, None)) is None:
            parser.error(f"{option} needs a value")
        settings[option.removeprefix("--")] = value
    return mine, settings
