"""Annotation files as they are in the wild: read right, or refused with a reason."""

import json

import pytest

from vidtok.datasets import read_annotations

KINETICS = "label,youtube_id,time_start,time_end,split"
SSV2 = [
    {"id": 78687, "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": "42326", "label": "a", "template": "Putting [part of [something]] into [something]", "placeholders": []},
]


def read(tmp_path, text, name="train.csv", **columns):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path, **columns)


def test_kinetics(tmp_path):
    text = f'{KINETICS},is_cc,label_id\r\n"air drumming",-3B32lodo2M,59,69,val,0,3\r\n"a, b",NA,0,10,validate,0,4\r\n'
    table = read(tmp_path, text)
    assert table.columns.tolist() == ["id", "label", "start", "end", "split"]
    assert table.id.tolist() == ["-3B32lodo2M", "NA"] and table.label.tolist() == ["air drumming", "a, b"]
    assert table.start.tolist() == [59, 0] and table.end.tolist() == [69, 10] and table.split.tolist() == ["val"] * 2
    assert table.start.dtype == "int64" and table.attrs["format"].startswith("kinetics csv")


@pytest.mark.parametrize(
    "text",
    [
        "youtube_id,time_start,time_end,split\n--x,1,2,test\n",
        "youtube_id,time_start,time_end,split,is_cc\n--x,1,2,test,0\n",
        f"{KINETICS}\n,--x,1,2,test\n",
    ],
)
def test_kinetics_test_files_have_no_labels(tmp_path, text):
    table = read(tmp_path, text)
    assert table.id.tolist() == ["--x"] and table.label.isna().all() and "without labels" in table.attrs["format"]


LISTS = {
    "a/x.mp4 0\nb/y.mp4 12\n": (["a/x.mp4", "b/y.mp4"], [0, 12]),  # VideoMAE's .csv
    "a/x.mp4  0 \r\n\r\nb/y.mp4 12\r\n": (["a/x.mp4", "b/y.mp4"], [0, 12]),
    "\ufeffa/x.mp4,0\nb/y.mp4,12": (["a/x.mp4", "b/y.mp4"], [0, 12]),
    "k600/val/x.mp4\t0\nk600/val/y.mp4\t7\n": (["k600/val/x.mp4", "k600/val/y.mp4"], [0, 7]),
    "x.mp4::3\ny.mp4::3\n": (["x.mp4", "y.mp4"], [3, 3]),
    "34870;Drumming Fingers\n56557;Sliding Two Fingers\n": (["34870", "56557"], None),
    "12345 0\n-678 1\n": (["12345", "-678"], [0, 1]),  # bare numbers are names
    "[a] 1.mp4 0\n[b].mp4 1\n": (["[a] 1.mp4", "[b].mp4"], [0, 1]),
    "air drumming/my clip.mp4 3\nzumba/y.mp4 4\n": (["air drumming/my clip.mp4", "zumba/y.mp4"], [3, 4]),
    "Turn, left/x.mp4 3\nTurn, right/y.mp4 4\n": (["Turn, left/x.mp4", "Turn, right/y.mp4"], [3, 4]),
    "Turn, left/x.mp4,3\nzumba/y.mp4,4\n": (["Turn, left/x.mp4", "zumba/y.mp4"], [3, 4]),
    '"Turn, left/x.mp4",3\n"y.mp4",4\n': (["Turn, left/x.mp4", "y.mp4"], [3, 4]),
    "v_YoYo_g01.avi YoYo\n-x.avi Archery\n": (["v_YoYo_g01.avi", "-x.avi"], None),
    "x.mp4,air drumming\ny.mp4,zumba\n": (["x.mp4", "y.mp4"], None),
    "video_001 0\nvideo_002 1\n": (["video_001", "video_002"], [0, 1]),
}


@pytest.mark.parametrize("text", LISTS)
def test_lists(tmp_path, text):
    table = read(tmp_path, text)
    paths, labels = LISTS[text]
    assert table.columns.tolist() == ["path", "label"] and table.path.tolist() == paths
    assert table.label.tolist() == labels if labels else table.label.map(type).eq(str).all()
    assert table.attrs["format"].startswith("list") and table.attrs["dropped"] == 0


def test_paths_alone_have_no_labels(tmp_path):
    table = read(tmp_path, "a/x y.mp4\nb.webm\n", "test.txt")
    assert table.path.tolist() == ["a/x y.mp4", "b.webm"] and table.label.isna().all()


def test_rows_without_a_label_are_dropped_and_counted(tmp_path):
    table = read(tmp_path, "path,label,split\na.mp4,put,train\nb.mp4,,train\nc.mp4,take,validation\n")
    assert table.path.tolist() == ["a.mp4", "c.mp4"] and table.attrs["dropped"] == 1
    assert table.split.tolist() == ["train", "val"] and table.index.tolist() == [0, 1]
    assert read(tmp_path, "a.mp4,1\nb.mp4,\n").attrs["dropped"] == 1


def test_columns_are_found_or_named(tmp_path):
    text = "name\tverb\tfold\na.mp4\tput\t1\n"
    table = read(tmp_path, text, path_column="name", label_column="verb", split_column="fold")
    assert table.values.tolist() == [["a.mp4", "put", "1"]] and "tab" in table.attrs["format"]
    assert read(tmp_path, "clip_name,clip_path,label\nx,/t/x.avi,YoYo\n").path.tolist() == ["/t/x.avi"]
    assert read(tmp_path, "id;label\nabc;3\n").id.tolist() == ["abc"]
    quoted = read(tmp_path, 'path,note,label\na.mp4,"two\nlines, really",put\n')
    assert quoted.values.tolist() == [["a.mp4", "put"]]
    with pytest.raises(ValueError, match="no column 'verbs'"):
        read(tmp_path, text, path_column="name", label_column="verbs")
    with pytest.raises(ValueError, match="label_column"):
        read(tmp_path, "path,verb,noun\na.mp4,put,cup\n")


def test_ssv2(tmp_path):
    table = read(tmp_path, json.dumps(SSV2), "something-something-v2-train.json")
    assert table.columns.tolist() == ["id", "label"] and table.id.tolist() == ["78687", "42326"]
    assert table.label.tolist() == ["Holding something", "Putting part of something into something"]
    assert table.attrs["format"] == "something-something-v2 json"
    test = read(tmp_path, json.dumps([{"id": "1420"}, {"id": 3}]), "something-something-v2-test.json")
    assert test.id.tolist() == ["1420", "3"] and test.label.isna().all()


REFUSED = {
    "frame-folder": [
        "v_YoYo_g01_c01 120 3\nv_YoYo_g01_c02 98 3\n",
        "a/78687 1 120 3\na/1 9 98 3\n",
        "f0,120,3\nf1,100,2\n",
        "who;what_u_cm 0 1\nis,here_u_cm 0 2\nthere_u_cm 0 3\n",
        "path,label,start,end\n/data/row_000,1,1,16\n",
    ],
    "multi-label": [
        "a.mp4 1 5 7\nb.mp4 2\n",
        "a.mp4 1 5\nb.mp4 2 3\n",
        "a.mp4,0 1,2\nb.mp4,3,4\n",
        'path,label\na.mp4,"[1, 2]"\n',
        "id,label\nAO8RW,c092;c147\n",
        "a.mp4 1\na.mp4 2\nb.mp4 0\n",
        'a.mp4,"1,2"\nb.mp4,"0,3"\n',
        '[{"filename": "a.mp4", "label": {"concept": [1, 2]}}]',
    ],
    "class list": [
        "1 ApplyEyeMakeup\n2 ApplyLipstick\n3 Archery\n",
        "abseiling\nair drumming\nzumba\n",
        "id,name\n0,abseiling\n1,air drumming\n",
        "label,name\n0,abseiling\n1,air drumming\n",
        "0: aerobic_push_up\n1: aerobic_jump\n",
        "zumba,2\nabseiling,0\nair drumming,1\n",
        '{"Approaching something with your camera": "0", "Attaching something": "1"}',
    ],
    "captions": [
        "key,vid_key,video_id,sentence\nret0,msr7020,video7020,a cartoon\n",
        '[{"video": "a.mp4", "caption": "a man"}]',
        '[{"id": "a", "video": "a.mp4", "conversations": []}]',
        "a.mp4 a man walks\nb.mp4 a dog runs\n",
    ],
    "localization": [
        '{"database": {"v1": {"annotations": []}}}',
        '{"v1": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["x"]}}',
        '[{"vid_name": "a", "label": 3, "start_frame": 0}]',
    ],
    "COCO": ['{"images": [], "annotations": [], "categories": []}'],
    "class list|known kind": ["1\n1\n2\n", "0902\n0903\n"],
    "leading zeros": ["0f39OWEqJ24,0903\n_-Z6wFjXtGQ,0902\n"],
    "proposals": ["# 0\nimgs\n5\n1\n3\n0 0 1\n"],
    "AVA": ["-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\n-5KQ66BBWC4,0902,0.1,0.1,0.2,0.8,9,0\n"],
    "not an object": ['{"path": "a.mp4"}\n["b.mp4"]\n'],
    'line 2: \'{"path": "b': ['{"path": "a.mp4"}\n{"path": "b\n'],
    "looks like captions": [
        '{"file_name": "a.mp4", "text": "A dog runs."}\n{"file_name": "b.mp4", "text": "A cat."}\n'
    ],
    "not id and template": ['[{"id": 1, "label": "holding a cup"}]'],
    "scores": ["a.mp4 0.75\nb.mp4 0.5\n"],
    "label before path": ["0 a.mp4\n1 b.mp4\n"],
    "Git LFS": ["version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    "web page": ["<!DOCTYPE html>\n<html>\n"],
    "empty": ["", "\n\n"],
    "not a text file.*give a folder of videos": [b"\x80\x04\x95", b"a\0b"],
    "header without rows": [KINETICS + "\n"],
    "is a header": ["clips,classes\na.mp4,0\nc.mp4,1\nb.mp4,1\n"],
    "known kind|looks": ["key: value\nname: x\n", "hello world\ngood bye\n"],
}


@pytest.mark.parametrize("reason, text", [(reason, text) for reason, texts in REFUSED.items() for text in texts])
def test_what_is_not_supported_is_refused_by_name(tmp_path, reason, text):
    with pytest.raises(ValueError, match=reason) as caught:
        read(tmp_path, text, "list.txt")
    assert str(caught.value).startswith(str(tmp_path / "list.txt"))


JSON_TABLES = {
    "metadata.jsonl": (
        '{"file_name": "x.mp4", "label": "b"}\n\n{"file_name": "y.mp4", "label": "a", "fps": 5}\n',
        ["b", "a"],
    ),
    "one.jsonl": ('{"file_name": "x.mp4", "label": 3}', [3]),
    "train.txt": ('{"path": "x.mp4", "label": 3}\n{"path": "y.mp4", "label": 0}\n', [3, 0]),
    "train.json": ('[{"path": "x.mp4", "label": 3}, {"path": "y.mp4", "label": 0}]', [3, 0]),
    "test.jsonl": ('{"file_name": "x.mp4"}\n{"file_name": "y.mp4"}', [None, None]),
    "test.json": ('[{"path": "x.mp4", "split": "test"}, {"path": "y.mp4", "split": "test"}]', [None, None]),
}


@pytest.mark.parametrize("name", JSON_TABLES)
def test_json_lines_and_objects(tmp_path, name):
    text, labels = JSON_TABLES[name]
    table = read(tmp_path, text, name)
    assert table.path.tolist() == ["x.mp4", "y.mp4"][: len(labels)] and table.label.tolist() == labels
    assert table.attrs["format"] == "json table" + ("" if labels[0] is not None else " without labels")


def test_named_keys_of_json(tmp_path):
    text = '{"mp4": "x.mp4", "verb": "run", "fold": "dev"}\n{"mp4": "y.mp4", "verb": "sit", "fold": "Train"}\n'
    table = read(tmp_path, text, path_column="mp4", label_column="verb", split_column="fold")
    assert table.path.tolist() == ["x.mp4", "y.mp4"] and table.label.tolist() == ["run", "sit"]
    assert table.split.tolist() == ["val", "train"]
    with pytest.raises(ValueError, match="there is no key 'noun'"):
        read(tmp_path, text, path_column="mp4", label_column="noun")


def test_splits_of_hmdb51_are_not_read_as_labels(tmp_path):
    with pytest.raises(ValueError, match="HMDB51"):
        read(tmp_path, "a.avi 1\nb.avi 2\n", "brush_hair_test_split1.txt")


@pytest.mark.parametrize(
    "text, number, line",
    [
        ("a.mp4 0\n\nb.mp4 1\nc.mp4\n", 4, "c.mp4"),
        ("a.mp4 0\nb.mp4 1 train\n", 2, "b.mp4 1 train"),
        ("a.mp4,0\n,1\n", 2, ",1"),
        (f"{KINETICS}\nx,y,0,10,train\nx,y,zero,10,train\n", 3, "x,y,zero,10,train"),
        (f"{KINETICS}\nx,y,0,10,train\n\nx,y,0,10\n", 4, "x,y,0,10"),
        (f"{KINETICS}\nx,,0,10,train\n", 2, "x,,0,10,train"),
    ],
)
def test_a_line_that_does_not_fit(tmp_path, text, number, line):
    with pytest.raises(ValueError, match=f"line {number}: '{line}'.*Formats understood: Kinetics csv"):
        read(tmp_path, text)
