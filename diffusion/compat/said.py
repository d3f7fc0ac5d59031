"""One line for each interface, printed once."""

_SAID: set[str] = set()


def once(line: str) -> None:
    """Print a line unless it has been printed in this process."""
    if line not in _SAID:
        _SAID.add(line)
        print(line, flush=True)
