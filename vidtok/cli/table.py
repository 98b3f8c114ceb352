"""Small tables on stdout, as plain text that can be piped."""

from collections.abc import Mapping


def print_rows(rows: Mapping[str, object]) -> None:
    """One `name  value` line each, values aligned."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        print(f"{name:<{width}}{value}")
