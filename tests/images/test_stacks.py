"""Stacks of every kind, read in any order; what is damaged is refused before any work."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from particle_tables import BOX, make_particles

from cryoforum_plugin.errors import ImageStackError, OutputError
from cryoforum_plugin.images.mrc_header import HEADER_BYTES, pack_header, read_header
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.particles import ParticleSet

TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def write_mrc(path: Path, images: np.ndarray, mode: int, order: str = "<", extended: int = 0) -> None:
    """Write an MRC file by hand: header words, extended header, pixels."""
    header = np.zeros(HEADER_BYTES // 4, dtype=f"{order}i4")
    header[:4] = (*images.shape[:0:-1], images.shape[0], mode)
    header[23] = extended
    raw = bytearray(header.tobytes())
    raw[208:214] = b"MAP " + (b"\x44\x44" if order == "<" else b"\x11\x11")
    path.write_bytes(bytes(raw) + b"e" * extended + images.astype(order + TYPES[mode]).tobytes())


def read_all(path: Path) -> np.ndarray:
    reader = StackReader([path])
    count = reader.header(0).count
    return reader.read(np.zeros(count, dtype=np.int64), np.arange(count))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extended", [0, 1024, 52])
@pytest.mark.parametrize("mode", TYPES)
def test_every_mode_and_byte_order(mode: int, order: str, extended: int, tmp_path: Path) -> None:
    info = None if mode in (2, 12) else np.iinfo(TYPES[mode])
    low, high = (-100, 100) if info is None else (info.min, info.max)
    images = np.random.default_rng(mode).integers(low, high, (5, 6, 6), endpoint=True)
    path = tmp_path / "x.mrcs"
    write_mrc(path, images, mode, order, extended)
    read = read_all(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, images)
    assert read_header(path).mode == mode


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_is_found_without_a_machine_stamp(order: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mrcs"
    images = np.arange(72).reshape(2, 6, 6)
    write_mrc(path, images, 2, order)
    raw = bytearray(path.read_bytes())
    raw[208:216] = bytes(8)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_all(path), images)


@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12])
def test_agrees_with_mrcfile(mode: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 100, (4, 6, 6)).astype(TYPES[mode])
    path = tmp_path / "x.mrcs"
    with mrcfile.new(path) as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()
    np.testing.assert_array_equal(read_all(path), mrcfile.read(path))


def test_a_single_image_file_is_a_stack_of_one(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    with mrcfile.new(tmp_path / "x.mrc") as mrc:
        mrc.set_data(image)
    np.testing.assert_array_equal(read_all(tmp_path / "x.mrc"), image[None])


def test_any_order_and_repeats_across_stacks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stacks = [rng.normal(size=(7, 6, 6)).astype(np.float32) for _ in range(5)]
    paths = [tmp_path / f"{i}.mrcs" for i in range(5)]
    for path, images in zip(paths, stacks, strict=True):
        write_stack(path, images, 1.0)
    reader = StackReader(paths, max_open=2)
    stack, index = rng.integers(0, 5, 200), rng.integers(0, 7, 200)
    expected = np.stack([stacks[s][i] for s, i in zip(stack, index, strict=True)])
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(stack, index), expected)
        assert len(reader._files) == 2
    single = np.concatenate([reader.read(stack[i : i + 1], index[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(single, expected[:20])


def test_threads_share_a_reader_that_opens_and_closes_stacks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stacks = [rng.normal(size=(9, 8, 8)).astype(np.float32) for _ in range(12)]
    paths = [tmp_path / f"{i}.mrcs" for i in range(12)]
    for path, images in zip(paths, stacks, strict=True):
        write_stack(path, images, 1.0)
    reader = StackReader(paths, max_open=2)

    def read(seed: int) -> bool:
        own = np.random.default_rng(seed)
        stack, index = own.integers(0, 12, 60), own.integers(0, 9, 60)
        expected = np.stack([stacks[s][i] for s, i in zip(stack, index, strict=True)])
        return bool((reader.read(stack, index) == expected).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_open_files_are_bounded(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mrcs" for i in range(40)]
    for path in paths:
        write_stack(path, np.ones((1, 4, 4), dtype=np.float32), 1.0)
    before = len(os.listdir("/proc/self/fd"))
    reader = StackReader(paths, max_open=3)
    reader.read(np.arange(40), np.zeros(40, dtype=np.int64))
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_reader_pickles_without_its_open_files(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    reader = StackReader(particles.stacks)
    expected = reader.read(particles.stack_index, particles.slice_index)
    text = pickle.dumps(reader)
    assert len(text) < 5000
    copy = pickle.loads(text)
    np.testing.assert_array_equal(copy.read(particles.stack_index, particles.slice_index), expected)


def test_check_returns_the_box(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    assert StackReader(particles.stacks).check(particles) == BOX


def test_unused_stacks_are_not_looked_at(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    particles.stacks[1].unlink()
    used = particles[particles.stack_index == 0]
    assert StackReader(used.stacks).check(used) == BOX


def refused(particles: ParticleSet, message: str) -> str:
    with pytest.raises(ImageStackError, match=message) as caught:
        StackReader(particles.stacks).check(particles)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_stacks_are_named_and_counted(tmp_path: Path) -> None:
    particles = make_particles(tmp_path, n=11)
    lost = tuple(tmp_path / f"lost{i}.mrcs" for i in range(5))
    particles = replace(
        particles, stacks=(particles.stacks[0], *lost), stack_index=np.array([0] * 4 + [1, 1, 1, 2, 3, 4, 5])
    )
    text = refused(particles, r"7 of 11 particles lie in 5 missing image stacks \(of 6\)")
    assert f"{lost[0]} (3 particles), {lost[1]} (1 particles), {lost[2]} (1 particles) and 2 more" in text
    assert "--data-root" in text


def test_truncated_stacks_quote_both_sizes(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    size = particles.stacks[1].stat().st_size
    os.truncate(particles.stacks[1], size - 1)
    refused(
        particles,
        rf"b\.mrcs: truncated: the header says 6 images of 8 x 8 px .* {size} bytes .* has {size - 1}",
    )


def test_a_stack_shorter_than_the_table(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    particles.slice_index[4] = 6
    refused(particles, r"a\.mrcs: stack shorter than .*made\.star says: image 7 is asked for, 6 are there")
    with pytest.raises(
        ImageStackError, match=r"holds 6 images of 8 x 8 px, but image 7 of 8 x 8 px is asked for"
    ):
        StackReader(particles.stacks).read(particles.stack_index, particles.slice_index)


def test_images_must_be_square_and_of_one_size(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    write_stack(particles.stacks[1], np.ones((6, 10, 10)), 1.0, overwrite=True)
    refused(particles, r"mixed box sizes 8 px \(a\.mrcs\), 10 px \(b\.mrcs\)")
    with pytest.raises(ImageStackError, match=r"holds 6 images of 10 x 10 px, but image 6 of 8 x 8 px"):
        StackReader(particles.stacks).read(particles.stack_index, particles.slice_index)
    write_stack(particles.stacks[1], np.ones((6, 8, 9)), 1.0, overwrite=True)
    refused(particles, r"images of 8 x 9 px are not square")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not an MRC file \(0 bytes"),
        (b"data_particles\nloop_\n" * 100, r"not an MRC file \(no plausible header\)"),
        (bytes(2048), r"not an MRC file \(no plausible header\)"),
        (b"\x1f\x8b" + b"\xff" * 2046, r"not an MRC file \(no plausible header\)"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    particles.stacks[0].write_bytes(content)
    refused(particles, message)


@pytest.mark.parametrize(
    ("mode", "name"), [(3, "complex 16-bit"), (4, "complex 32-bit"), (101, "packed 4-bit")]
)
def test_unsupported_modes_are_named(mode: int, name: str, tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    raw = bytearray(particles.stacks[0].read_bytes())
    raw[12:16] = mode.to_bytes(4, "little")
    particles.stacks[0].write_bytes(raw)
    refused(particles, rf"unsupported MRC mode {mode} \({name}\)")


def test_a_stack_that_shrinks_after_the_check(tmp_path: Path) -> None:
    particles = make_particles(tmp_path)
    reader = StackReader(particles.stacks)
    reader.check(particles)
    os.truncate(particles.stacks[0], HEADER_BYTES + 4)
    with pytest.raises(ImageStackError, match=r"cannot read .*a\.mrcs"):
        reader.read(particles.stack_index, particles.slice_index)
    particles.stacks[1].unlink()
    with pytest.raises(ImageStackError, match=r"cannot read .*b\.mrcs: No such file"):
        read_header(particles.stacks[1])


@pytest.mark.parametrize(("dtype", "mode"), [("float32", 2), ("float16", 12)])
def test_written_stacks_are_valid(dtype: str, mode: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(9, 6, 6)).astype(dtype)
    path = tmp_path / "new" / "x.mrcs"
    assert write_stack(path, (images[i : i + 4] for i in range(0, 9, 4)), 1.25, dtype=dtype) == 9
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, images)
        assert (mrc.header.mode, mrc.is_image_stack()) == (mode, True)
        assert mrc.voxel_size.x == pytest.approx(1.25)
        values = images.astype(np.float64)
        statistics = (mrc.header.dmin, mrc.header.dmax, mrc.header.dmean, mrc.header.rms)
        assert statistics == pytest.approx(
            (values.min(), values.max(), values.mean(), values.std()), rel=1e-5
        )
    if dtype == "float32":
        assert mrcfile.validate(path, print_file=io.StringIO())
    np.testing.assert_array_equal(read_all(path), images)


def test_nothing_is_left_of_a_stack_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.mrcs"
    with pytest.raises(ImageStackError, match="no images to write"):
        write_stack(path, [], 1.0)
    with pytest.raises(ImageStackError, match="not finite as float16"):
        write_stack(path, np.full((1, 4, 4), 1e5), 1.0, dtype="float16")
    with pytest.raises(ImageStackError, match=r"images of shape \(1, 5, 5\) do not fit a stack of \(4, 4\)"):
        write_stack(path, [np.ones((1, 4, 4)), np.ones((1, 5, 5))], 1.0)
    assert list(tmp_path.iterdir()) == []
    write_stack(path, np.ones((1, 4, 4)), 1.0)
    with pytest.raises(OutputError, match="exists already"):
        write_stack(path, np.zeros((1, 4, 4)), 1.0)


def test_header_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.mrc"
    path.write_bytes(pack_header(3, 4, 5, 1.0, "<f4", (0.0, 0.0, 0.0, 0.0)) + bytes(3 * 4 * 5 * 4))
    header = read_header(path)
    assert (header.count, header.height, header.width, header.offset) == (3, 4, 5, HEADER_BYTES)


def test_reference_stacks(shared_data: Path) -> None:
    path = shared_data / "parsers" / "truncated_stack_header_says_11029.mrcs"
    with pytest.raises(
        ImageStackError, match=r"11029 images of 128 x 128 px .* 722797568 bytes .* has 66560"
    ):
        read_header(path)
    for name in (
        "sample_200px/sample.mrcs",
        "empiar10076/empiar_10076_7.mrc",
        "relion_projections/rln_proj_65.mrcs",
    ):
        path = shared_data / "real" / name
        np.testing.assert_array_equal(read_all(path), mrcfile.read(path))
