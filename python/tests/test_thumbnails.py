"""``examples/thumbnails.py`` makes thumbnails of what is an image, and names what is none, also while its workers are killed."""

import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image
from processes import METHODS

PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "thumbnails.py"
WATCHDOG = 240


def thumbnails(*arguments):
    command = [sys.executable, PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of many formats, modes and sizes, a damaged one, and what is none."""
    folder = tmp_path_factory.mktemp("images")
    formats = [
        ("jpg", "RGB"), ("png", "RGBA"), ("gif", "P"), ("bmp", "RGB"), ("tiff", "CMYK"), ("webp", "RGB"),
        ("png", "L"), ("jpg", "L"), ("ppm", "RGB"), ("png", "1"),
    ]  # fmt: skip
    for number in range(30):
        suffix, mode = formats[number % len(formats)]
        image = Image.effect_noise((40 + 37 * number, 30 + 23 * (number % 7)), 80)
        image.convert(mode).save(folder / f"{number:02}.{suffix}")
    # Its camera was held upright.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(folder / "upright.jpg", exif=exif)
    whole = (folder / "20.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "folder").mkdir()
    return folder


BROKEN = {"truncated.jpg", "notes.txt", "empty.png"}
GOOD = 31


def check_thumbnails(images, folder, without):
    assert {path.name for path in folder.iterdir()} == {
        f"{path.name}.jpg" for path in images.iterdir() if path.is_file() and path.name not in without
    }
    for path in folder.iterdir():
        with Image.open(path) as image, Image.open(images / path.stem) as original:
            image.load()
            assert max(image.size) == min(max(original.size), 64)
            assert (image.format, image.mode) == ("JPEG", "RGB")
    with Image.open(folder / "upright.jpg.jpg") as image:
        assert image.size == (32, 64)


def named(stderr):
    return set(re.findall(r"^thumbnails: (\S+\.\w+): ", stderr, re.MULTILINE))


@pytest.mark.parametrize("method", METHODS)
def test_damaged_files_are_named_and_the_rest_is_done(method, images, tmp_path):
    done = thumbnails(images, tmp_path / "made", "--size", "64", "--workers", "2", "--method", method)
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"{GOOD} of {GOOD + 3} files have thumbnails\n"
    assert named(done.stderr) == BROKEN
    assert "thumbnails: notes.txt: no image\n" in done.stderr
    # Whether it is tqdm's or plain, the progress has come to the end.
    assert re.search(rf"\b{GOOD + 3}(/| of ){GOOD + 3}\b", done.stderr)
    check_thumbnails(images, tmp_path / "made", BROKEN)


@pytest.mark.parametrize("method", METHODS)
def test_killed_workers_cost_nothing_but_files_that_are_named(method, images, tmp_path):
    arguments = ["--size", "64", "--workers", "3", "--method", method, "--chaos", "--quiet"]
    done = thumbnails(images, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert named(done.stderr) >= BROKEN
    given_up = {name for name in named(done.stderr) if f"thumbnails: {name}: given up\n" in done.stderr}
    assert named(done.stderr) == BROKEN | given_up
    for path in tmp_path.glob("*.unfinished"):
        assert path.stem in given_up
        path.unlink()
    check_thumbnails(images, tmp_path, BROKEN | given_up)


def test_workers_are_killed(images, tmp_path):
    done = thumbnails(images, tmp_path, "--workers", "2", "--chaos")
    killed = re.fullmatch(r"\d+ of 34 files have thumbnails, (\d+) workers were killed\n", done.stdout)
    assert killed and int(killed[1]) > 0, (done.stdout, done.stderr)


def test_all_good_files_end_well(images, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "image.png").write_bytes((images / "01.png").read_bytes())
    done = thumbnails(tmp_path / "one", tmp_path / "made", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_images_nothing_is_done(tmp_path):
    missing = tmp_path / "missing"
    done = thumbnails(missing, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"thumbnails: [Errno 2] No such file or directory: '{missing}'\n"
