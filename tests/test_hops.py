"""How far a reader has to jump to follow a command; `python tests/hops.py extract` (or `compare`) prints where."""

import pytest
from hops import compare_command, count_hops, extract_command

from vidtok.cli.main import main


# The targets are 30 files and 100 changes, 40 and 400. The hook of vidtok.compiled, which torch calls for every
# submodule that is registered, is 26 changes of the first and about 100 of the second. Frames that go between
# datasets.decode and datasets.container one by one are 67 of the first.
@pytest.mark.parametrize(
    ("command", "files", "changes"),
    [(extract_command, 32, 180), (compare_command, 46, 880)],
    ids=["extract", "compare"],
)
def test_a_command_stays_in_few_files(command, files, changes, tmp_path, capsys):
    arguments = command(tmp_path)
    status: list[int] = []
    calls, found = count_hops(lambda: status.append(main(arguments)))
    assert status == [0]
    assert len(calls) <= files and found.total() <= changes, found.most_common(10)
