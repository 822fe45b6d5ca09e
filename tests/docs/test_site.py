"""The site builds without a warning, knows every key and asks no other host; pictures and notebook are current."""

import re
import sys
from pathlib import Path

import pytest
import run_notebook
from documented_pages import config_keys
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import cagsr
from browser import browser, installed, open_file
from cagsr.cli.main import app
from cagsr.config import Config
from cagsr.config.registry import ESTIMATORS, POLICY_LOSSES
from cagsr.rewards.signals import SIGNALS

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//([^\"> ]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. A warning, of a broken link say, is an error in it."""
    made, path = tmp_path_factory.mktemp("site"), [*sys.path]
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(made), strict=True))
    finally:
        sys.path[:] = path  # a hook may have put its folder there
    return made


def test_every_config_key_command_and_signal_is_in_the_reference(site):
    config = (site / "reference/config.html").read_text()
    documented = {key.replace("[]", "") for key in re.findall(r'<code class="key" id="([^"]+)">', config)}
    assert documented == config_keys(Config) - {*Config.model_fields}
    commands = (site / "reference/commands.html").read_text()
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"<code>cagsr {name}</code>" in commands
    signals = (site / "reference/signals.html").read_text()
    for name in SIGNALS:
        assert f'id="cagsr.rewards.signals.{name}.{name}"' in signals
    losses = (site / "reference/losses.html").read_text()
    for path in (*POLICY_LOSSES.values(), *ESTIMATORS.values()):
        assert f'id="{path}"' in losses


@pytest.mark.parametrize("name", cagsr.__all__)
def test_every_public_name_is_in_the_python_reference(site, name):
    assert f'id="{cagsr._MODULES[name]}.{name}"' in (site / "reference/python.html").read_text()


def test_no_page_takes_anything_from_another_host(site):
    found = {host for page in site.rglob("*.html") for host in OUTSIDE.findall(page.read_text())}
    assert found == set()


def test_a_broken_link_stops_the_build(tmp_path, site):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[nowhere](nowhere.md)")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\ntheme: {name: material, font: false}\nstrict: true\n")
    with pytest.raises(Abort):
        build(load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "made")))


@pytest.mark.skipif(installed() is None, reason="no Chromium here to open the site in")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_is_read_and_searched_from_the_disk_on_a_phone_too(site, scheme):
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        watched = open_file(page, site / "index.html")
        for name in ("method", "reference/config", "guides/many-gpus", "notebook", "tutorial"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0, name
        page.locator("label[for=__search]").first.click()
        page.get_by_role("textbox", name="Search").press_sequentially("knockout")
        page.locator(".md-search-result__item").first.wait_for()
        assert (watched.said, watched.asked, watched.dialogs) == ([], [], [])


def test_the_pictures_are_those_that_the_script_draws(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "figures")
    import draw

    monkeypatch.setattr(sys, "argv", ["draw.py", "--output", str(tmp_path)])
    draw.main()
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 6
    for picture in drawn:
        # Another CPU rounds otherwise, so that numbers may differ in their last digit; words may not.
        committed = (ROOT / "docs/images" / picture.name).read_text()
        assert words(picture.read_text()) == words(committed), f"{picture.name}: run docs/figures/draw.py"


def words(svg: str) -> list[str]:
    return [re.sub(r"[-+]?\d*\.\d+", "0", text) for text in re.findall(r"<text[^>]*>([^<]*)<", svg)]


def test_the_notebook_runs_from_top_to_bottom_and_what_it_shows_is_what_it_says():
    notebook = run_notebook.read()
    shown = [cell.get("outputs") for cell in notebook["cells"] if cell["cell_type"] == "code"]
    left = run_notebook.run(notebook)
    assert sum(left["after"]) < sum(left["before"])
    said = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [[output["output_type"] for output in outputs] for outputs in said] == [
        [output["output_type"] for output in outputs] for outputs in shown
    ]


def test_a_cell_that_raises_stops_the_notebook():
    cell = {"cell_type": "code", "source": ["x = 1\n", "1 / 0"]}
    with pytest.raises(ZeroDivisionError):
        run_notebook.run({"cells": [cell]})
