"""Sources: whatever holds pictures is cut into the same pieces each time, and each piece starts anywhere."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_hf.inference.sources.base import Picture, Source, SourceOptions
from detr_hf.inference.sources.opening import open_source
from detr_hf.inference.sources.tables import picture_of_row

from ..stand_in import write_pictures


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, columns: dict[str, list], rows_a_group: int = 3) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path, row_group_size=rows_a_group)
    return path


def write_video(path: Path, frames: int, grey=lambda number: np.full((48, 64), 20 * number)) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.repeat(grey(number)[..., None], 3, axis=2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def names(source: Source) -> list[str]:
    return [picture.name for piece in source.pieces for picture in piece.pictures(0)]


def assert_starts_anywhere(source: Source) -> None:
    for piece in source.pieces:
        everything = [picture.name for picture in piece.pictures(0)]
        assert piece.size in (None, len(everything))
        assert len(set(everything)) == len(everything)
        for start in (1, len(everything) - 1, len(everything)):
            assert [picture.name for picture in piece.pictures(start)] == everything[start:]


def test_files_are_cut_by_number_and_found_once(tmp_path):
    paths = write_pictures(tmp_path / "photos", 7)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    source = open_source([tmp_path / "photos", paths[3]], SourceOptions(shard_size=3))
    assert [piece.size for piece in source.pieces] == [3, 3, 1]
    assert names(source) == list(map(str, paths))
    assert_starts_anywhere(source)
    assert names(open_source(str(tmp_path / "photos" / "*2.png"), SourceOptions())) == [str(paths[2])]


def test_unasked_pieces_are_such_that_processes_can_share_them(tmp_path):
    assert [SourceOptions().piece_of(total) for total in (1, 1089, 64_000, 10**7)] == [16, 18, 1000, 1000]
    assert SourceOptions(shard_size=7).piece_of(10**7) == 7
    write_pictures(tmp_path / "photos", 40)
    assert [piece.size for piece in open_source(tmp_path / "photos", SourceOptions()).pieces] == [16, 16, 8]


def test_results_inside_the_folder_are_no_source(tmp_path):
    write_pictures(tmp_path, 2)
    write_pictures(tmp_path / "out", 2)
    assert len(names(open_source(tmp_path, SourceOptions(), results=tmp_path / "out"))) == 2


def test_equal_sources_have_equal_identities_and_others_not(tmp_path):
    write_pictures(tmp_path / "a", 3)
    write_tar(tmp_path / "a" / "b.tar", {"x.png": png(1)})
    before = open_source(tmp_path / "a", SourceOptions()).identity
    assert open_source(tmp_path / "a", SourceOptions()).identity == before
    write_tar(tmp_path / "a" / "b.tar", {"x.png": png(1), "y.png": png(2), "z.png": bytes(9999)})
    changed = open_source(tmp_path / "a", SourceOptions()).identity
    assert changed != before
    (tmp_path / "a" / "00001.png").rename(tmp_path / "a" / "00009.png")
    assert open_source(tmp_path / "a", SourceOptions()).identity not in (before, changed)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_files_give_their_pictures_in_order(tmp_path, suffix, mode):
    members = {
        "b/0.jpg": png(1),
        "b/0.json": b"{}",
        "b/0.mask.png": png(2),
        "a/1.jpg": png(3),
        "a/.hidden.jpg": png(4),
    }
    path = write_tar(tmp_path / f"shard{suffix}", members, mode)
    source = open_source(path, SourceOptions())
    assert names(source) == [f"{path}/b/0.jpg", f"{path}/b/0.mask.png", f"{path}/a/1.jpg"]
    assert_starts_anywhere(source)
    chosen = open_source(path, SourceOptions(image_column="jpg"))
    assert [picture.image for picture in chosen.pieces[0].pictures(0)] == [png(1), png(3)]


def test_what_a_tar_file_holds_besides_is_counted_and_named(tmp_path, caplog):
    members = {
        "0.jpg": png(1),
        "0.json": b"{}",
        "1.json": b"{}",
        "a/.hidden.jpg": b"",
        "._0.jpg": b"",
        "__MACOSX/._0.jpg": b"",
        "2.avif": png(2),
    }
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.LNKTYPE, "hard.jpg"), (tarfile.SYMTYPE, "soft.jpg"), (tarfile.DIRTYPE, "folder")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.jpg"
            tar.addfile(info)
    assert names(open_source(path, SourceOptions())) == [f"{path}/0.jpg", f"{path}/2.avif"]
    said = "2 .json (0.json, 1.json), 2 linked inside the archive (hard.jpg, soft.jpg), 1 hidden (a/.hidden.jpg)"
    assert [record.getMessage() for record in caplog.records] == [f"Left out of {path}: {said}."]
    caplog.clear()
    names(
        open_source(write_tar(tmp_path / "b.tar", {"0.jpg": png(1), "0.cls": b"3"}), SourceOptions(image_column="jpg"))
    )
    assert not caplog.records  # what stands beside the pictures was known when they were chosen


def test_a_tar_file_that_is_cut_off_gives_what_it_has_and_says_so(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {f"{i}.png": png(i) * 40 for i in range(4)})
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    pictures = list(open_source(whole, SourceOptions()).pieces[0].pictures(0))
    assert 1 <= len(pictures) <= 4 and isinstance(pictures[0].image, bytes)
    assert isinstance(pictures[-1].image, ValueError) and "no further" in str(pictures[-1].image)
    (tmp_path / "b.tar").write_bytes(b"no tar at all")
    (only,) = open_source(tmp_path / "b.tar", SourceOptions()).pieces[0].pictures(0)
    assert isinstance(only.image, ValueError)


def test_parquet_rows_as_bytes_structs_and_paths(tmp_path):
    pytest.importorskip("pyarrow")
    cells = [{"bytes": png(i), "path": None} for i in range(8)]
    path = write_parquet(tmp_path / "a.parquet", {"image": cells, "image_id": list(range(100, 108)), "label": [0] * 8})
    source = open_source(path, SourceOptions())
    assert source.pieces[0].size == 8
    assert_starts_anywhere(source)
    pictures = list(source.pieces[0].pictures(5))
    assert pictures[0] == Picture(f"{path}#5", png(5), {"image_id": 105})
    photo = write_parquet(tmp_path / "b.parquet", {"photo": [png(1), None], "n": [1, 2]})
    first, second = open_source(photo, SourceOptions()).pieces[0].pictures(0)
    assert first.image == png(1) and isinstance(second.image, ValueError)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y.png").write_bytes(png(1))
    linked = write_parquet(tmp_path / "c.parquet", {"file": ["x/y.png", "not/below.png"]})
    with pytest.raises(ValueError, match=r"which column.*file.*--image-column"):
        open_source(linked, SourceOptions())
    found = [
        picture.image for picture in open_source(linked, SourceOptions(image_column="file")).pieces[0].pictures(0)
    ]
    assert found == [str(tmp_path / "x" / "y.png"), "not/below.png"]
    with pytest.raises(ValueError, match="no column 'gone'"):
        open_source(linked, SourceOptions(image_column="gone"))


def test_a_damaged_parquet_file_is_an_entry_not_the_end(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    (picture,) = open_source(tmp_path / "a.parquet", SourceOptions()).pieces[0].pictures(0)
    assert isinstance(picture.image, ValueError)
    path = write_parquet(tmp_path / "b.parquet", {"image": [bytes([i]) * 4000 for i in range(9)]}, rows_a_group=3)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the first page of the first row group
    path.write_bytes(content)
    pictures = list(open_source(path, SourceOptions()).pieces[0].pictures(0))
    assert len(pictures) == 9
    assert [isinstance(one.image, Exception) for one in pictures] == [True] * 3 + [False] * 6


def test_a_data_set_by_rows_and_a_stream_by_its_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": png(i), "path": None} for i in range(7)]
    table = datasets.Dataset.from_dict(
        {"image": cells, "text": ["x"] * 7},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    source = open_source(table, SourceOptions(shard_size=3))
    assert [piece.size for piece in source.pieces] == [3, 3, 1]
    assert_starts_anywhere(source)
    assert [picture.image for piece in source.pieces for picture in piece.pictures(0)] == [png(i) for i in range(7)]

    stream = open_source(table.to_iterable_dataset(num_shards=2), SourceOptions())
    assert [piece.size for piece in stream.pieces] == [None, None]
    assert_starts_anywhere(stream)
    assert sorted(picture.image for piece in stream.pieces for picture in piece.pictures(0)) == sorted(
        png(i) for i in range(7)
    )
    with pytest.raises(ValueError, match="splits train, test"):
        open_source(datasets.DatasetDict({"train": table, "test": table}), SourceOptions())
    with pytest.raises(ValueError, match="no column 'photo'"):
        open_source(table, SourceOptions(image_column="photo"))


def test_a_data_set_on_disk_and_a_folder_of_parquet_files_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    from detr_hf.inference.sources.tables import load_dataset_source

    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(i), "path": None} for i in range(4)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    source = load_dataset_source(str(tmp_path / "saved"), SourceOptions(split="test"))
    assert len(names(source)) == 4 and source.identity["dataset"].endswith("saved/test")
    with pytest.raises(ValueError, match="no split 'dev', it has train, test"):
        load_dataset_source(str(tmp_path / "saved"), SourceOptions(split="dev"))
    (tmp_path / "files").mkdir()
    for number in range(2):
        table.to_parquet(tmp_path / "files" / f"{number}.parquet")
    streamed = load_dataset_source(str(tmp_path / "files"), SourceOptions(split="train"))
    assert len(streamed.pieces) == 2 and len(names(streamed)) == 8
    assert_starts_anywhere(streamed)


def test_a_broken_cell_is_an_error_of_its_picture():
    for cell in (None, b"", {"bytes": None, "path": None}):
        assert isinstance(picture_of_row("a", {"image": cell}, "image").image, ValueError)
    assert picture_of_row("a", {"image": {"bytes": None, "path": "x.png"}}, "image").image == "x.png"


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_gives_its_frames_with_number_and_time(tmp_path, every):
    path = write_video(tmp_path / "film.mp4", 10)
    source = open_source(path, SourceOptions(every=every))
    pictures = list(source.pieces[0].pictures(0))
    assert [picture.about["frame"] for picture in pictures] == list(range(0, 10, every))
    assert pictures[-1].about["seconds"] == pytest.approx(0.1 * pictures[-1].about["frame"])
    for picture in pictures:
        assert picture.image.shape == (48, 64, 3)
        assert abs(picture.image.mean() - 20 * picture.about["frame"]) < 6
    assert_starts_anywhere(source)


def test_a_damaged_video_gives_what_it_has_and_says_so(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no film")
    (only,) = open_source(tmp_path / "a.mp4", SourceOptions(every=4)).pieces[0].pictures(0)
    assert isinstance(only.image, ValueError) and "a.mp4" in str(only.image)


def test_a_film_is_turned_as_its_file_says(tmp_path):
    """A phone held upright writes lying frames and a matrix (ISO 14496-12), here one that takes right to down."""
    path = write_video(tmp_path / "film.mp4", 2, lambda number: np.repeat([[0] * 32 + [255] * 32], 48, axis=0))
    numbers = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    head, track_header, rest = path.read_bytes().partition(b"tkhd")
    path.write_bytes(head + track_header + rest.replace(plain, struct.pack(">9i", *numbers), 1))
    picture = next(open_source(path, SourceOptions()).pieces[0].pictures(0))
    assert picture.image.shape == (64, 48, 3)
    assert picture.image[:24].mean() < 20 and picture.image[-24:].mean() > 235


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no picture"):
        open_source(tmp_path, SourceOptions())
    for wrong in (3, b"bytes", [Image.new("RGB", (3, 3))], {"a": 1}):
        with pytest.raises(TypeError, match="Expected paths"):
            open_source(wrong, SourceOptions())
    for wrong in ({"shard_size": 0}, {"every": 0}, {"every": 1.5}, {"shard_size": True}):
        with pytest.raises(ValueError, match="whole number"):
            SourceOptions(**wrong)
