"""How far a reader has to jump to follow a command; `python tests/hops.py extract` prints where."""

from hops import count_hops, extract_command

from vidtok.cli.main import main


def test_extraction_of_a_clip_stays_in_few_files(tmp_path, capsys):
    command = extract_command(tmp_path)
    status: list[int] = []
    calls, changes = count_hops(lambda: status.append(main(command)))
    assert status == [0]
    # The target is 30 files and 100 changes. 26 are the hook of vidtok.compiled, which torch calls for every submodule.
    assert len(calls) <= 32 and changes.total() <= 190, changes.most_common(10)
