"""tools/gallery.py: the folder that it writes, and the page in a real browser where there is one."""
import json
import math
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from dataset import match_pairs
from images import read_gray, read_ir, read_vis
from measures import evaluate
from tools import gallery
from tools.gallery import PAGE, file_names, read_data

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("EN", "SD", "AG", "MSE")
SCORES = ["--metrics", *METRICS, "--workers", "1"]
HOSTILE = "<img src=x onerror=alert(1)> & 100% #ä"
METHOD = "<b>&amp; 100% ö</b>"
LEVELS = {"ir": 40, "vis": (60, 120, 200), "Bright": 220, "Flat": 90}      # vis: RGB


def write_textured(path, level, amplitude, size=(24, 32)):
    """An image of one mean level with a checkerboard on it."""
    board = amplitude * (1 - 2 * (np.indices(size).sum(0) % 2))
    image = np.stack([board + channel for channel in np.atleast_1d(level)[::-1]], -1)
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image.astype(np.uint8).squeeze())


def write_images(root, names):
    for i, name in enumerate(names):
        for folder, level in LEVELS.items():
            write_textured(root / folder / f"{name}.png", level, 1 + (7 * i) % 30)


def options(root, *methods, scores=SCORES):
    return ["--ir", str(root / "ir"), "--vis", str(root / "vis"), "--out", str(root / "out"), *scores,
            "--fused", *(f"{method}={root / method}" for method in methods)]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path, ["a", "b", "c"])
    return tmp_path


# ---------------------------------------------------------------------------------------------
# The folder


def test_the_samples_with_the_images_in_fused_are_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gallery.main(SCORES) == 1
    assert "test.py" in capsys.readouterr().err and not Path("report").exists()
    pairs = match_pairs(ROOT / "samples" / "ir", ROOT / "samples" / "vis")
    Path("Fused").mkdir()
    for pair in pairs:
        cv2.imwrite(f"Fused/{pair.name}.png", cv2.imread(str(pair.vis)) // 2)
    assert gallery.main([*SCORES, "--baselines"]) == 0
    data = read_data(Path("report"))
    assert [source["label"] for source in data["sources"]] == ["Infrared", "Visible", "RPFNet", "average", "max"]
    assert [metric["name"] for metric in data["metrics"] if metric["lower"]] == ["MSE"]
    assert set(files(Path("report"))) == gallery.files_of(data)
    for shown, pair in zip(data["pairs"], pairs, strict=True):
        assert shown["name"] == pair.name and (shown["width"], shown["height"]) == (640, 480)
        assert np.array_equal(read_vis(f"report/images/visible/{pair.name}.png"), read_vis(pair.vis))
        assert np.array_equal(read_vis(f"report/images/RPFNet/{pair.name}.png"), read_vis(f"Fused/{pair.name}.png"))
        expected = evaluate(read_gray(f"Fused/{pair.name}.png"), read_ir(pair.ir), read_gray(pair.vis), names=METRICS)
        assert shown["scores"][0] == pytest.approx([*expected.values()], rel=1e-5)
    for row in data["means"]:
        each = [shown["scores"][row["source"] - 2] for shown in data["pairs"]]
        assert row["values"] == pytest.approx(np.mean(each, 0), rel=1e-5) and row["images"] == 4
        assert row["counts"] == [4] * len(METRICS)


def test_a_published_data_set_and_a_protocol(root):
    places = ["--dataset", "msrs", "--data", str(root / "MSRS"), "--workers", "1", "--protocol", "paper", "--metrics", "EN", "SF"]
    for split, names in (("test", ["a", "b"]), ("train", ["c"])):
        for folder, source in (("ir", "ir"), ("vi", "vis"), ("fused", "Flat")):
            (root / "MSRS" / split / folder).mkdir(parents=True)
            for name in names:
                shutil.copy(root / source / f"{name}.png", root / "MSRS" / split / folder)
    for options, split, names in (([], "test", ["a", "b"]), (["--split", "train"], "train", ["c"])):
        out, fused = root / f"report {split}", root / "MSRS" / split / "fused"
        assert gallery.main([*places, *options, "--fused", f"Flat={fused}", "--out", str(out)]) == 0
        data = read_data(out)
        assert [pair["name"] for pair in data["pairs"]] == names
        images = [read_gray(root / folder / f"{names[0]}.png") for folder in ("Flat", "ir", "vis")]
        assert [metric["name"] for metric in data["metrics"]] == ["EN", "SF (AG)"]
        assert data["pairs"][0]["scores"][0] == pytest.approx([*evaluate(*images, "paper", ["EN", "SF"]).values()], rel=1e-5)


def test_the_pictures_are_the_pixels_that_are_scored(root, capsys):
    """16 bits, transparency and three equal planes, which a browser would show in its own way."""
    deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 20 + 5000
    cv2.imwrite(str(root / "ir" / "a.png"), deep)
    cv2.imwrite(str(root / "vis" / "a.png"), np.full((24, 32, 4), (10, 20, 30, 0), np.uint8))
    cv2.imwrite(str(root / "Flat" / "a.png"), np.full((24, 32, 3), 77, np.uint8))
    assert gallery.main(options(root, "Flat")) == 0
    assert "note: 16-bit infrared is scaled" in capsys.readouterr().err
    pictures = [cv2.imread(str(root / "out" / "images" / folder / "a.png"), cv2.IMREAD_UNCHANGED)
                for folder in ("infrared", "visible", "Flat")]
    assert [picture.dtype for picture in pictures] == [np.uint8] * 3
    assert [picture.shape[2:] for picture in pictures] == [(), (3,), ()]
    assert pictures[0].min() == 0 and pictures[0].max() == 255


def test_what_cannot_be_read_is_named_and_the_others_are_shown(root, capsys):
    (root / "Flat" / "a.png").write_bytes(b"damaged")
    (root / "Bright" / "b.png").unlink()
    write_textured(root / "Flat" / "b.png", 90, 5, size=(20, 32))
    (root / "vis" / "c.png").write_bytes(b"")
    assert gallery.main(options(root, "Bright", "Flat")) == 1
    error = capsys.readouterr().err
    for named in (f"{root / 'Flat' / 'a.png'}: not an image", "no fused image for b",
                  "is 32x20 and its sources are 32x24", str(root / "vis" / "c.png")):
        assert error.count(named) == 1
    data = read_data(root / "out")
    assert {pair["name"]: pair["shown"] for pair in data["pairs"]} == {"a": [0, 1, 2], "b": [0, 1]}
    assert [values is None for pair in data["pairs"] for values in pair["scores"]] == [False, True, True, True]


def test_values_that_are_undefined_are_kept_as_such(root):
    assert gallery.main(options(root, "Flat", scores=["--metrics", "CC", "MS-SSIM", "EN"])) == 0     # MS-SSIM needs 176 x 176
    values = read_data(root / "out")["pairs"][0]["scores"][0]
    assert math.isfinite(values[0]) and math.isnan(values[1]) and math.isfinite(values[2])


def test_names_become_file_names_for_all_systems():
    names = ["a", "A", "a b", "a_b", "../up", "..", HOSTILE, "CON:1", "con", "Aux.b", "com1", "conus", "00123D"]
    stems = file_names(names)
    assert len({stem.lower() for stem in stems}) == len(names)
    assert stems[0] == "a" and stems[-5:] == ["_con", "_Aux.b", "_com1", "conus", "00123D"]
    assert not any(set(stem) & set('/\\:*?"<>| %#&') or stem.startswith(".") for stem in stems)


def test_a_gallery_is_replaced_and_nothing_else(root, capsys):
    assert gallery.main(options(root, "Bright", "Flat")) == 0
    assert "images/Bright/c.png" in files(root / "out")
    for side in ("ir", "vis", "Flat"):
        (root / side / "c.png").unlink()
    assert gallery.main(options(root, "Flat")) == 0
    assert set(files(root / "out")) == gallery.files_of(read_data(root / "out"))
    assert "images/Flat/a.png" in files(root / "out") and "thumbs/c.jpg" not in files(root / "out")
    assert not (root / "out" / "images" / "Bright").exists()
    for stray in (".DS_Store", "images/.0123.part"):        # of a system, and of a killed run
        (root / "out" / stray).write_text("")
    assert gallery.main(options(root, "Flat")) == 0
    assert ".DS_Store" not in files(root / "out")
    (root / "out" / "images" / "notes.txt").write_text("mine")
    before = files(root / "out")
    capsys.readouterr()
    assert gallery.main(options(root, "Flat")) == 1
    error = capsys.readouterr().err
    assert "images/notes.txt" in error and "choose another folder" in error and error.count("\n") == 1
    assert files(root / "out") == before


def test_the_images_of_a_gallery_are_not_removed_to_show_them(root, capsys):
    assert gallery.main(options(root, "Flat")) == 0
    before = files(root / "out")
    inside = [*options(root), f"Flat={root / 'out' / 'images' / 'Flat'}"]
    assert gallery.main(inside) == 1
    assert "lies in it" in capsys.readouterr().err and files(root / "out") == before


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)])
def test_an_end_before_time_leaves_a_gallery_of_what_was_done(root, monkeypatch, capsys, error, code):
    write = gallery.write_image

    def fail(path, image):
        if path.name == "c.png" and path.parent.name == "visible":      # the second image of a pair
            raise error
        write(path, image)
    monkeypatch.setattr(gallery, "write_image", fail)
    assert gallery.main(options(root, "Flat")) == code
    assert [pair["name"] for pair in read_data(root / "out")["pairs"]] == ["a", "b"]
    assert ("interrupted" if code == 130 else "No space left") in capsys.readouterr().err
    monkeypatch.undo()
    assert "images/infrared/c.png" in files(root / "out")
    assert gallery.main(options(root, "Flat")) == 0       # it can be repeated


@pytest.mark.parametrize("where", ["finish", "page"])
def test_a_killed_run_can_be_repeated(root, monkeypatch, where):
    original = gallery.write_atomically

    def kill(*arguments):
        if where == "finish" or arguments[0].name == PAGE[1]:       # of the files of the page, one is written
            raise SystemExit
        original(*arguments)
    if where == "finish":
        monkeypatch.setattr(gallery.Gallery, "finish", kill)
    else:
        monkeypatch.setattr(gallery, "write_atomically", kill)
    with pytest.raises(SystemExit):
        gallery.main(options(root, "Flat"))
    monkeypatch.undo()
    assert gallery.main(options(root, "Flat")) == 0


@pytest.mark.parametrize("arguments, message", [
    (["--fused", "Infrared={}/Flat"], "the name Infrared is taken"),
    (["--fused", "average={}/Flat", "--baselines"], "the name average is taken"),
    (["--fused", "{}/nowhere"], "test.py --out"),
    (["--metrics", "XY"], "no metric 'XY'"),
    (["--dataset", "tno"], "go together"),
    (["--out", "{}/ir"], "lies in it"),
    (["--out", "{}/Bright"], "holds"),
    (["--out", "{}/ir/a.png"], "is a file"),
])
def test_wrong_calls_are_explained_in_one_line(root, capsys, arguments, message):
    before = files(root)
    assert gallery.main([*options(root, "Flat"), *(text.format(root) for text in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert files(root) == before


def test_the_page_asks_for_nothing_but_its_own_files():
    text = "".join((gallery.TEMPLATES / name).read_text(encoding="utf-8") for name in PAGE)
    words = ("http:", "https:", "//cdn", "fetch(", "XMLHttpRequest", "innerHTML", "eval(")
    assert not any(word in text for word in words)


# ---------------------------------------------------------------------------------------------
# The page in a browser

PAIRS = [f"{i:03d}" for i in range(1, 120)] + [HOSTILE]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """120 pairs with two methods and two baselines. A broken image: "Flat" of the second pair."""
    root = tmp_path_factory.mktemp("browser")
    write_images(root, PAIRS)
    (root / "Flat" / "002.png").write_bytes(b"damaged")
    assert gallery.main([*options(root, "Bright"), f"{METHOD}={root / 'Flat'}", "--baselines"]) == 1
    assert len(read_data(root / "out")["pairs"]) == len(PAIRS)
    return root / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium", reason="pip install selenium, to test the page in a browser")
    from selenium import webdriver
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(f"no Chromium with chromedriver here (selenium {selenium.__version__} is)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1280,900",
                 f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield session
    session.quit()


@pytest.fixture
def page(browser, report):
    """The gallery, opened anew from disk. What it logs and where it asks is checked after each test."""
    opened = Page(browser, report)
    yield opened
    assert opened.browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in opened.browser.get_log("performance")]
    asked = [entry["params"]["request"]["url"] for entry in sent if entry["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((report.as_uri(), "data:")) for url in asked)


class Page:
    def __init__(self, browser, report):
        self.browser, self.report = browser, report
        self.open()

    def open(self, name="", query=""):
        """Open the page, at a pair."""
        self.load((self.report / "index.html").as_uri() + f"#{quote(name, safe='')}{query}")

    def load(self, address):
        """Load an address. From an empty page: a new fragment alone would not load it."""
        self.browser.get("about:blank")
        self.browser.get_log("performance")
        self.browser.get(address)
        self.settle()

    def address(self):
        """The address, after it has been brought up to date."""
        self.wait("!writing")
        return self.browser.current_url

    def images(self):
        """What the left and the right image are said to show."""
        return [self[f"#screen .{side} img"].get_attribute("alt") for side in ("left", "right")]

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def settle(self):
        """Wait until the images that were asked for are shown."""
        self.wait("asked > 0 && painted === asked")

    def wait(self, condition):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.run(f"return {condition}"):
                return
            time.sleep(0.02)
        raise AssertionError(f"not so after a minute: {condition}")

    def __getitem__(self, selector):
        return self.browser.find_element("css selector", selector)

    def keys(self, *keys):
        self.actions().send_keys(*keys).perform()
        self.settle()

    def drag(self, x, y, by):
        """Drag on the stage to the right; x and by are shares of its width, y pixels, x and y from its middle."""
        width = self["#stage"].size["width"]
        self.actions().move_to_element_with_offset(self["#stage"], round(x * width), y).click_and_hold().move_by_offset(
            round(by * width), 0).release().perform()

    def actions(self):
        from selenium.webdriver import ActionChains
        return ActionChains(self.browser, duration=50)

    def screenshot(self):
        """Pixels of the stage, in BGR."""
        return cv2.imdecode(np.frombuffer(self["#stage"].screenshot_as_png, np.uint8), cv2.IMREAD_COLOR)

    def colour(self, left=0.4, right=0.6):
        """Mean RGB of a screenshot of the stage between two shares of its width, above the divider's handle."""
        image = self.screenshot()
        height, width = image.shape[:2]
        return image[int(0.2 * height):int(0.4 * height), int(left * width):int(right * width)].mean((0, 1))[::-1]

    def column(self, number, table="each"):
        return self.run("return [...document.querySelectorAll(`#${arguments[0]} tbody:nth-of-type(2) tr`)]"
                        ".map(row => row.cells[arguments[1]].textContent)", table, number)


def test_the_slider_uncovers_the_other_image(page):
    level = {"ir": (LEVELS["ir"],) * 3, "vis": LEVELS["vis"], "Bright": (LEVELS["Bright"],) * 3}
    assert page.colour(0.3, 0.48) == pytest.approx(level["ir"], abs=2)
    assert page.colour(0.52, 0.7) == pytest.approx(level["Bright"], abs=2)
    page.drag(0, 0, 0.25)
    assert page.colour() == pytest.approx(level["ir"], abs=2)
    page.drag(0.25, 0, -0.5)
    assert page.colour() == pytest.approx(level["Bright"], abs=2)
    page.keys("2")
    assert page.colour() == pytest.approx(level["vis"], abs=2)
    page.run("document.getElementById('divider').focus()")
    page.keys("\ue010")         # End, as any range takes it
    assert page.colour() == pytest.approx(level["ir"], abs=2)


def test_keys_walk_through_pairs_and_images(page):
    right, left, shift, home = "\ue014", "\ue012", "\ue008", "\ue011"
    page.keys(right, right, left)
    assert page.browser.title.startswith("002")
    assert page["#status"].text.startswith("002") and "2 of 120" in page["#status"].text
    page.keys("2")
    assert page["#right"].get_attribute("value") == "1"
    assert page["#screen .right img"].get_attribute("alt") == "Visible, 002"
    page.actions().key_down(shift).send_keys("3").key_up(shift).perform()
    page.settle()
    assert page["#left"].get_attribute("value") == "2"
    page.keys("4")              # the broken image
    assert page["#screen .right"].get_attribute("class") == "pane right missing"
    page.keys("x")
    assert [page[f"#{side}"].get_attribute("value") for side in ("left", "right")] == ["3", "2"]
    page.run("document.getElementById('divider').focus()")
    page.keys(home)             # the arrows are the divider's now, the digits are not
    page.keys(right)
    assert page.browser.title.startswith("002") and page.run("return divider.value") == "0.5"
    page["#filter"].click()
    page.keys("119", right)
    assert page["#right"].get_attribute("value") == "2"
    assert len(page.browser.find_elements("css selector", "#pairs li:not([hidden])")) == 1


def test_a_menu_keeps_the_keys_only_if_it_was_chosen_with_them(page):
    down, up, enter, escape, shift = "\ue015", "\ue013", "\ue007", "\ue00c", "\ue008"
    blinking = "return state.blinking"
    page["#right"].click()
    page.keys(down, enter)          # in the open menu, which keeps keys to itself
    assert page["#right"].get_attribute("value") == "3"
    page.keys("b")
    assert page.run(blinking) and page.run("return document.activeElement === document.body")
    page["#left"].click()
    page.keys(escape)               # closed without a choice
    page.actions().key_down(shift).send_keys("2").key_up(shift).perform()
    page.keys("b")
    assert page["#left"].get_attribute("value") == "1" and not page.run(blinking)
    page.run("document.getElementById('right').focus()")
    page.keys(down, up, enter)      # opens the menu, or changes it at once, as the system has it
    page.keys("b")
    assert not page.run(blinking) and page.run("return document.activeElement.id") == "right"


def test_blinking_alternates_the_whole_images(page):
    page.keys("b")
    for percent, level in (("0%", LEVELS["Bright"]), ("100%", LEVELS["ir"])):
        page.wait(f"stage.style.getPropertyValue('--cut') === '{percent}'")
        page.run("clearInterval(timer)")        # a screenshot may take longer than one image is shown
        assert page.colour(0.3, 0.7) == pytest.approx((level,) * 3, abs=2)
        page.run("setBlinking(true)")
    page.keys("b")
    assert page["#blink"].get_attribute("aria-pressed") == "false"


def test_zoom_keeps_its_point_and_all_images_move_together(page):
    def under(share):
        """The image's point, as a share of its pane, that is at this share of the stage's width."""
        return page.run("return (arguments[0] - view.x) / view.scale", share)
    stage = page["#stage"]
    before = under(0.75)
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    origin = ScrollOrigin.from_element(stage, int(0.25 * stage.size["width"]), 0)
    page.actions().scroll_from_origin(origin, 0, -400).perform()
    scale = page.run("return view.scale")
    assert scale > 2 and under(0.75) == pytest.approx(before, abs=0.002)
    page.drag(0.25, 60, 0.1)
    assert under(0.85) == pytest.approx(before, abs=0.002)
    page.keys("g")
    boxes = page.run("return [...document.querySelectorAll('.pane')].map(pane => ["
                     "pane.getBoundingClientRect(), pane.firstElementChild.getBoundingClientRect()])"
                     ".map(([box, image]) => [image.left - box.left, image.top - box.top, image.width / box.width,"
                     "image.height / box.height])")
    assert len(boxes) == 6 and all(box == pytest.approx(boxes[0], abs=0.1) for box in boxes)
    assert max(boxes[0][2:]) == pytest.approx(scale, rel=1e-3)      # one of them fits into the pane at zoom 1
    page.keys("0")
    assert page.run("return [view.x, view.y, view.scale]") == [0, 0, 1]
    assert page.run("return [...document.images].every(image => image.hasAttribute('alt'))")


@pytest.mark.parametrize("density", [1, 2, 3])
def test_one_screen_pixel_for_each_image_pixel(page, density):
    """Of an image that is smaller than the stage, also where a CSS pixel is several screen pixels."""
    page.open("005")
    devtools = page.browser.execute_cdp_cmd
    try:
        devtools("Emulation.setDeviceMetricsOverride",
                 {"width": 1280, "height": 901, "deviceScaleFactor": density, "mobile": False})
        page.run("divider.value = 0; cut()")        # it would cover the small image
        page["#actual"].click()
        assert page["#actual"].text == "100 %" and page.run("return view.scale") < 1
        shown = page.screenshot()
    finally:
        devtools("Emulation.clearDeviceMetricsOverride", {})
    image = cv2.imread(str(page.report / "images" / "Bright" / "005.png"))
    differences = cv2.matchTemplate(shown, image, cv2.TM_SQDIFF)
    top, left = np.unravel_index(differences.argmin(), differences.shape)
    assert np.array_equal(shown[top:top + 24, left:left + 32], image)
    middle = (top + 12, left + 16)
    assert middle == pytest.approx((shown.shape[0] / 2, shown.shape[1] / 2), abs=1)
    page.keys("0")
    assert page.run("return view.scale") == 1


def test_the_table_sorts_by_each_metric(page):
    data = read_data(page.report)
    page["[data-table=each]"].click()
    rows = [(values, pair["name"]) for pair in data["pairs"] for values in pair["scores"] if values]
    for metric, lower in ((1, False), (3, True)):       # SD, MSE: the best comes first
        head = page[f"#each thead th:nth-child({metric + 3})"]
        ordered = sorted((values[metric] for values, _ in rows), reverse=not lower)
        for expected, direction in ((ordered, "ascending" if lower else "descending"),
                                    (ordered[::-1], "descending" if lower else "ascending")):
            head.find_element("css selector", "button").click()
            shown = [float(text) for text in page.column(metric + 2)]
            assert len(shown) >= 20 and shown == pytest.approx(expected[:len(shown)], abs=6e-4)
            assert head.get_attribute("aria-sort") == direction
    page["#each thead th:first-child button"].click()
    names = page.column(0)
    assert names[:4] == [names[0]] * 4 and names[0] in (PAIRS[0], HOSTILE)


def test_rows_exist_only_in_sight_and_lead_to_their_image(page):
    page["[data-table=each]"].click()
    total = 4 * len(PAIRS) - 1
    assert page.run("return tables.each.rows.length") == total
    assert len(page.column(0)) < 80
    height = page.run("const box = tables.each.box; box.scrollTop = box.scrollHeight; return box.scrollHeight")
    assert height == pytest.approx((total + 1) * page.run("return ROW"), abs=2)
    page.wait(f"tables.each.drawn.has({total - 1})")
    page.run("[...document.querySelectorAll('#each tbody a')].at(-1).click()")
    page.wait(f"state.pair === {len(PAIRS) - 1}")       # the browser follows a link when it likes
    page.settle()
    assert page["#status"].text.startswith(HOSTILE)
    assert page["#screen .right img"].get_attribute("alt") == f"max, {HOSTILE}"
    page["[data-table=mean]"].click()
    best = page.run("return [...document.querySelectorAll('#mean .best')].map(cell => cell.textContent)")
    means = [row for row in read_data(page.report)["means"] if row["images"] == len(PAIRS)]
    assert [float(text) for text in best] and len(means) == 3       # the method with a broken image takes no part
    assert float(page.run("return document.querySelector('#mean td.best').textContent")) == pytest.approx(
        max(row["values"][0] for row in means), abs=6e-4)


def test_names_are_text_and_links_lead_to_them(page):
    page.open(HOSTILE)
    assert page.browser.title.startswith(HOSTILE) and "120 of 120" in page["#status"].text
    assert METHOD in page["#about"].text and METHOD in page.column(0, "this")
    assert page.run("return document.querySelector('[onerror], img[src=x], b')") is None
    assert page["#pairs a[aria-current=true]"].is_displayed()       # the list scrolls to it
    page.open("no such pair")
    assert "No pair is named no such pair" in page["#status"].text


def test_the_address_names_both_images(page):
    """For any name, after each way to choose, and as a link of a table."""
    page.open(HOSTILE, f"?right={quote(METHOD, safe='')}")
    assert page.images() == [f"Infrared, {HOSTILE}", f"{METHOD}, {HOSTILE}"]
    page["#left"].click()
    page.keys("\ue015", "\ue007")       # down and Enter: Visible
    for keys in ("", "x", "5", "\ue012"):
        page.keys(keys)
        shown, address = page.images(), page.address()
        page.load(address)
        assert page.images() == shown
    assert shown == [f"{METHOD}, 119", "average, 119"]
    page["[data-table=each]"].click()
    row = page["#each tbody tr[data-pair='0'][data-source='3'] a"]
    address = row.get_attribute("href")
    page.keys("g")
    row.click()
    page.wait("state.pair === 0 && !state.grid")
    page.settle()
    assert page.images() == [f"{METHOD}, 001", f"{METHOD}, 001"]
    page.address()
    page.browser.back()
    page.wait("state.pair === 118")
    page.settle()
    assert page.images() == shown
    page.load(address)
    assert page.images() == ["Infrared, 001", f"{METHOD}, 001"]
    page.load(address.replace("right=", "right=no+"))
    assert f"No image is named no {METHOD}" in page["#status"].text and "right=no+" in page.address()


def test_dark_scheme_and_phones(page):
    devtools = page.browser.execute_cdp_cmd
    widths = "return [document.documentElement.scrollWidth, stage.clientWidth, innerWidth]"
    background = "return getComputedStyle(document.body).backgroundColor"
    assert page.run(widths)[0] == page.run(widths)[2]       # tables scroll, the page does not
    try:
        for scheme, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 23, 25)")):
            devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
            assert page.run(background) == colour
        devtools("Emulation.setDeviceMetricsOverride",
                 {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
        assert page.run(widths) == [390] * 3
    finally:
        devtools("Emulation.setEmulatedMedia", {"features": []})
        devtools("Emulation.clearDeviceMetricsOverride", {})
