"""How far a reader has to jump to follow a command; `python tests/hops.py extract` (or `compare`) prints where."""

import pytest
from hops import compare_command, count_hops, extract_command

from vidtok.cli.main import main


@pytest.mark.parametrize(
    ("command", "files", "changes"),
    [(extract_command, 30, 100), (compare_command, 40, 400)],
    ids=["extract", "compare"],
)
def test_a_command_stays_in_few_files(command, files, changes, tmp_path, capsys):
    arguments = command(tmp_path)
    status: list[int] = []
    calls, found = count_hops(lambda: status.append(main(arguments)))
    assert status == [0]
    assert len(calls) <= files and found.total() <= changes, found.most_common(10)
