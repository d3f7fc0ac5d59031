"""Figures as text: numbers, intervals, rows in columns."""


def number(value: float) -> str:
    """Four digits, as a person would write them."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def between(figure: dict) -> str:
    """An interval."""
    return f"{number(figure['low'])} .. {number(figure['high'])}"


def rows_of(rows: list[tuple]) -> str:
    """Rows of text in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
