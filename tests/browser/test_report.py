"""The report in a real browser: nothing is cut off, all can be read, and nothing is loaded from elsewhere."""

import base64
import os
import pathlib
import re

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FOLDER = pathlib.Path(os.environ["LIGHTHPC_TEST_REPORTS"])
SIZES = (10, 1_000, 50_000)
SCREENS = {"phone": (390, 844), "wide": (1280, 900)}
# report.css: done, failed, interrupted, and the marks of Spot notices.
COLOURS = {
    "light": {"d": (43, 122, 75), "f": (179, 38, 30), "i": (154, 91, 0), "n": (0, 0, 0)},
    "dark": {"d": (92, 198, 137), "f": (255, 138, 128), "i": (240, 179, 92), "n": (255, 255, 255)},
}
# WCAG 2.2, success criterion 1.4.3: normal text, and 1.4.11: graphics.
CONTRAST_OF_TEXT, CONTRAST_OF_GRAPHICS = 4.5, 3.0


def browser(screen="wide", scripts=True, scheme="light"):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --hide-scrollbars"
    flags += " --disable-background-networking --disable-component-update"
    for flag in flags.split():
        options.add_argument(flag)
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
    width, height = SCREENS[screen]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return driver


def load(driver, size):
    driver.get(f"file://{FOLDER}/report-{size}.html")


def picture(driver, name, selector=None):
    """A screenshot of an element, or of the window, as an image; it is also kept as a file."""
    file = FOLDER / f"{name}.png"
    if selector:
        place = driver.find_element(By.CSS_SELECTOR, selector).rect
        clip = {"x": place["x"], "y": place["y"], "width": place["width"], "height": place["height"], "scale": 1}
        taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(taken["data"]))
    else:
        driver.save_screenshot(str(file))
    return Image.open(file).convert("RGB")


def pixels(image, colour, tolerance=40):
    """How many pixels have a colour, or nearly."""
    near = lambda pixel: all(abs(a - b) <= tolerance for a, b in zip(pixel, colour))
    return sum(count for count, pixel in image.getcolors(image.width * image.height) if near(pixel))


def luminance(colour):
    """Relative luminance. Source: WCAG 2.2, "relative luminance"."""
    parts = [value / 255 for value in colour]
    parts = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(text):
    return tuple(int(it) for it in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("scheme", COLOURS)
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen_and_shows_each_kind_of_end(size, screen, scheme):
    driver = browser(screen, scheme=scheme)
    try:
        load(driver, size)
        WebDriverWait(driver, 20).until(lambda it: it.find_elements(By.CSS_SELECTOR, "#table tbody tr"))

        width = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "nothing is beside the screen"
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert driver.get_log("browser") == []
        picture(driver, f"{size}-{screen}-{scheme}")
        lanes = picture(driver, f"{size}-{screen}-{scheme}-slots", "svg[aria-label='Attempts on each slot over time']")
        for kind, colour in COLOURS[scheme].items():
            # Marks are drawn where attempts are long enough: of ten tasks, the first is interrupted.
            if kind != "n" or size == 10:
                assert pixels(lanes, colour) >= 4, kind
        shown = driver.find_element(By.CSS_SELECTOR, ".tools span").text
        assert shown == f"1 to {min(100, size)} of {size}"
    finally:
        driver.quit()


@pytest.mark.parametrize("scheme", COLOURS)
def test_text_and_colours_stand_out(scheme):
    driver = browser(scheme=scheme)
    try:
        load(driver, 1_000)
        script = """
        const seen = new Map();
        for (const node of document.querySelectorAll("main *, header *, footer *")) {
          const own = [...node.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
          if (!own || node.closest("script, style, noscript, title, option")) continue;
          let box = node;
          while (box && getComputedStyle(box).backgroundColor === "rgba(0, 0, 0, 0)") box = box.parentElement;
          const style = getComputedStyle(node);
          const colour = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
          const ground = getComputedStyle(node.closest("svg") || box || document.body).backgroundColor;
          seen.set(colour + ground, [colour, ground, node.tagName]);
        }
        return [...seen.values()];
        """
        pairs = driver.execute_script(script)
        assert len(pairs) >= 3
        for colour, ground, tag in pairs:
            assert contrast(rgb(colour), rgb(ground)) >= CONTRAST_OF_TEXT, (tag, colour, ground)
        ground = rgb(driver.execute_script("return getComputedStyle(document.querySelector('svg')).backgroundColor"))
        for kind, colour in COLOURS[scheme].items():
            assert contrast(colour, ground) >= CONTRAST_OF_GRAPHICS, kind
    finally:
        driver.quit()


def test_all_is_there_without_a_script():
    driver = browser("phone", scripts=False)
    try:
        load(driver, 1_000)
        text = driver.find_element(By.TAG_NAME, "body").text

        assert "980 of 1,000 tasks are done" in text
        assert "With JavaScript, this is a table of all tasks" in text
        assert "app-error: the workload exited with code" in text
        assert driver.find_elements(By.CSS_SELECTOR, "#table tr") == []
        # The log of a failed task opens without a script.
        details = driver.find_element(By.TAG_NAME, "details")
        details.find_element(By.TAG_NAME, "summary").click()
        assert "reading the input" in details.text
        picture(driver, "1000-without-script")
    finally:
        driver.quit()


def test_the_table_is_used_by_keys_alone():
    driver = browser()
    try:
        load(driver, 50_000)
        WebDriverWait(driver, 20).until(lambda it: it.find_elements(By.CSS_SELECTOR, "#table tbody tr"))
        for _ in range(200):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            if driver.switch_to.active_element.get_attribute("type") == "search":
                break
        driver.switch_to.active_element.send_keys("sample-000050")
        assert driver.find_element(By.CSS_SELECTOR, ".tools span").text == "1 to 1 of 1"
        driver.switch_to.active_element.send_keys(Keys.CONTROL, "a", Keys.BACK_SPACE)
        for _ in range(10):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            if driver.switch_to.active_element.text == "seconds":
                break
        driver.switch_to.active_element.send_keys(Keys.ENTER, Keys.ENTER)
        cell = driver.find_element(By.XPATH, "//th[button[text()='seconds']]")
        assert cell.get_attribute("aria-sort") == "descending"
        times = [float(it.text) for it in driver.find_elements(By.CSS_SELECTOR, "#table tbody td:nth-child(3)")]
        assert len(times) == 100 and times == sorted(times, reverse=True)
        # Each picture has words for those who do not see it.
        pictures = driver.find_elements(By.TAG_NAME, "svg")
        assert len(pictures) == 4 and all(it.get_attribute("aria-label") for it in pictures)
    finally:
        driver.quit()


def test_it_is_printed():
    driver = browser()
    try:
        load(driver, 1_000)
        printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
        pdf = base64.b64decode(printed["data"])

        assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 2, len(pdf)
        (FOLDER / "1000.pdf").write_bytes(pdf)
    finally:
        driver.quit()


@pytest.mark.parametrize("size", SIZES)
def test_the_first_paint_is_measured(size):
    driver = browser("phone")
    try:
        times = []
        for _ in range(3):
            driver.get("about:blank")
            load(driver, size)
            paint = "return performance.getEntriesByName('first-contentful-paint').map((it) => it.startTime)"
            WebDriverWait(driver, 10).until(lambda it: it.execute_script(paint))
            times.append(round(driver.execute_script(paint)[0]))

        print(f"first paint at {size} tasks: {times} ms")
        assert all(time > 0 for time in times)
    finally:
        driver.quit()
