"""The page of studies in a real browser, by real keys and a real pointer: at the width of a desk and of a phone."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

from accel.cli.listing import meaning
from accel.results.report.page import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [
    name
    for name, found in (
        ("no Chromium (chromium, chromium-browser, google-chrome)", BROWSER),
        ("no chromedriver", DRIVER),
        ("no selenium", find_spec("selenium")),
    )
    if not found
]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} on this machine")]

WIDTHS = {"desk": 1400, "phone": 390}
TEXT_OUTSIDE = """
const inBox = (e) => e.closest('.box');
return [...document.querySelectorAll('h1,h2,h3,p,li,dt,dd,select,label,svg,.key')].filter((e) => !inBox(e))
  .filter((e) => { const r = e.getBoundingClientRect(); return r.width && (r.right > innerWidth + 1 || r.left < -1); })
  .map((e) => e.outerHTML.slice(0, 80));"""
CONTRASTS = """
const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (rgb) => {
  const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number).map(channel);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const clear = (e) => /, 0\\)$/.test(getComputedStyle(e).backgroundColor);
const ground = (e) => {
  while (e && clear(e)) e = e.parentElement;
  return e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)";
};
const seen = {};
for (const e of document.querySelectorAll("p,li,dt,dd,td,th,a,code,caption span,button,select,svg text")) {
  const style = getComputedStyle(e), own = e.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(own), light(ground(e))].sort((x, y) => y - x);
  seen[own + " on " + ground(e)] = (a + 0.05) / (b + 0.05);
}
return seen;"""


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=WIDTHS)
def opened(request, driver, demo, tmp_path):
    """The page of `demo`, opened at a width, after which the browser has nothing to complain of."""
    path = tmp_path / "page.html"
    path.write_text(page(demo.results, ("demo",), meaning, "1.2.3"), encoding="utf-8")
    width = WIDTHS[request.param]
    driver.get("about:blank")
    driver.get_log("browser"), driver.get_log("performance")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    driver.get(path.as_uri())
    yield driver
    assert driver.get_log("browser") == []
    asked = [entry["message"] for entry in driver.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert asked
    assert not [message for message in asked if '"url":"http' in message], "the page asked somebody"


def press(driver, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def tab_to(driver, selector, most=200):
    """Tab, as often as it takes, until what has the focus is one of these."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(most):
        press(driver, Keys.TAB)
        if driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return driver.switch_to.active_element
    raise AssertionError(f"{selector} is not reached by Tab")


def column(driver, table, place):
    cells = """const cells = [...arguments[0].tBodies[0].rows].map((row) => row.cells[arguments[1]]);
      return cells.map((cell) => [cell.dataset.v, cell.innerText]);"""
    return driver.execute_script(cells, table, place)


def told(driver):
    return driver.execute_script("return document.querySelector('[data-part=told] strong').innerText")


def test_nothing_is_cut_off_and_all_pictures_are_seen(opened):
    wide, seen = opened.execute_script("const r = document.documentElement; return [r.scrollWidth, r.clientWidth]")
    assert wide <= seen, "the page scrolls sideways"
    assert opened.execute_script(TEXT_OUTSIDE) == []
    sizes = opened.execute_script(
        "return [...document.images].map((i) => [i.naturalWidth, i.getBoundingClientRect().height])"
    )
    assert len(sizes) > 3
    assert all(natural > 0 and height >= 40 for natural, height in sizes)


def test_a_wide_table_scrolls_in_its_box_and_says_whose_row_it_is(opened):
    boxes = opened.execute_script(
        "return [...document.querySelectorAll('.box:has(tbody th)')].filter((b) => b.scrollWidth > b.clientWidth + 40)"
    )
    assert boxes, "no table is wider than the page"
    place = """const b = arguments[0]; b.scrollLeft = b.scrollWidth; const own = b.getBoundingClientRect();
      const [head, said] = ['tbody th', 'caption span'].map((s) => b.querySelector(s).getBoundingClientRect());
      const inside = [head, said].flatMap((one) => [one.left - own.left, own.right - one.right]);
      return [b.scrollLeft, ...inside];"""
    for box in boxes:
        scrolled, *inside = opened.execute_script(place, box)
        assert scrolled > 0
        assert min(inside) >= 0, opened.execute_script("return arguments[0].getAttribute('aria-label')", box)


def test_a_table_is_sorted_by_keys(opened):
    from selenium.webdriver.common.keys import Keys

    button = tab_to(opened, "table.sortable thead button")
    for _ in range(2):  # past rank and recipe, to the first value
        press(opened, Keys.TAB)
    button = opened.switch_to.active_element
    head = opened.execute_script("return arguments[0].closest('th')", button)
    table = opened.execute_script("return arguments[0].closest('table')", head)
    place = opened.execute_script("return arguments[0].cellIndex", head)
    assert place == 2
    outline = opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", button)
    assert outline == "solid", "where the focus is cannot be seen"
    before = [text for _, text in column(opened, table, place)]
    for key, order in ((Keys.ENTER, "ascending"), (Keys.SPACE, "descending")):
        press(opened, key)
        cells = column(opened, table, place)
        numbers = [float(v) for v, _ in cells if v]
        assert head.get_attribute("aria-sort") == order
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert len(numbers) > 5
        assert sorted(text for _, text in cells) == sorted(before)


def test_recipes_of_the_front_are_told_by_keys(opened):
    from selenium.webdriver.common.keys import Keys

    point = tab_to(opened, ".point")
    assert point.get_attribute("aria-label").startswith(told(opened))
    press(opened, Keys.HOME)
    names = [told(opened)]
    count = opened.execute_script("return document.querySelectorAll('.point').length")
    for _ in range(count - 1):
        press(opened, Keys.ARROW_RIGHT)
        names.append(told(opened))
        assert opened.switch_to.active_element.get_attribute("aria-label").startswith(names[-1])
    assert len(set(names)) == count > 5
    press(opened, Keys.END)
    assert told(opened) == names[-1]
    press(opened, Keys.TAB)
    assert not opened.execute_script("return document.activeElement.matches('.point')"), "a front is one stop of Tab"


def test_a_recipe_is_told_by_the_pointer(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    free = """const d = document.querySelector('[data-part=drawing]'); d.scrollIntoView({ block: 'center' });
      return [...d.querySelectorAll('.point')].filter((p) => {
        const r = p.querySelector('.reach').getBoundingClientRect();
        const e = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
        return e && e.closest('.point') === p;
      });"""
    points = opened.execute_script(free)
    assert len(points) >= 3, "points hide each other"
    for point in points:
        reach = opened.execute_script("return arguments[0].querySelector('.reach')", point)
        ActionChains(opened).move_to_element(reach).perform()
        assert point.get_attribute("aria-label").startswith(f"{told(opened)},")
    # What is told can be seen without losing the point out of sight.
    top = "return document.querySelector(`[data-part=${arguments[0]}]`).getBoundingClientRect().top"
    drawing, below = (opened.execute_script(top, part) for part in ("drawing", "told"))
    assert 0 < below - drawing < 900


def test_axes_are_chosen(opened):
    from selenium.webdriver.support.ui import Select

    selects = [Select(opened.find_element("css selector", f"select[data-axis={axis}]")) for axis in "xy"]
    titles = "return [...document.querySelectorAll('.drawing text.title')].map((t) => t.textContent)"
    seen = set()
    for x in range(len(selects[0].options)):
        selects[0].select_by_index(x)
        for y in range(len(selects[1].options)):
            selects[1].select_by_index(y)
            names = [select.first_selected_option.text for select in selects]
            shown = opened.execute_script(titles)
            assert [title.startswith(name) for title, name in zip(shown, names, strict=True)] == [True, True]
            outside = opened.execute_script(
                """const s = document.querySelector('.drawing svg').getBoundingClientRect();
                return [...document.querySelectorAll('.drawing text, .drawing .mark')].filter((e) => {
                  const r = e.getBoundingClientRect();
                  return Math.min(r.left - s.left, s.right - r.right, r.top - s.top, s.bottom - r.bottom) < -1;
                }).map((e) => e.textContent || e.closest('.point').getAttribute('aria-label'));"""
            )
            assert outside == [], names
            seen.add(tuple(shown))
    assert len(seen) == len(selects[0].options) * len(selects[1].options)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_colour_schemes(opened, scheme):
    """WCAG 2 AA: contrast of at least 4.5."""
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    found = opened.execute_script(CONTRASTS)
    assert len(found) >= 4
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}
