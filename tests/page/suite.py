"""What the test files share: one cluster and one browser for all of them, and a page for each test."""

import atexit
import os
import pathlib
import re
import unittest

from cluster import Cluster
from playwright.sync_api import expect, sync_playwright

SCREENSHOTS = pathlib.Path(os.environ["SCREENSHOTS"])
DESK = {"width": 1440, "height": 1000}
PHONE = {"width": 360, "height": 800}
ANSWER_MS = 120_000

expect.set_options(timeout=30_000)
_shared = {}


def shared():
    """Cluster and browser, started once."""
    if not _shared:
        _shared["cluster"] = Cluster()
        _shared["playwright"] = sync_playwright().start()
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launch = _shared["playwright"].chromium.launch
        _shared["browser"] = launch(executable_path=os.environ["CHROMIUM"], args=arguments)
        atexit.register(_end)
    return _shared


def _end():
    _shared["browser"].close()
    _shared["playwright"].stop()
    if _shared["cluster"].process.poll() is None:
        _shared["cluster"].end()


class PageTest(unittest.TestCase):
    """A test with a page of its own; what the browser complains about fails it."""

    viewport = DESK
    is_phone = False
    scheme = "light"
    # What a test provokes: parts of complaints that are not held against the page.
    provoked = ()

    def setUp(self):
        self.cluster = shared()["cluster"]
        self.context = shared()["browser"].new_context(
            viewport=self.viewport, color_scheme=self.scheme, has_touch=self.is_phone, is_mobile=self.is_phone,
            device_scale_factor=2 if self.is_phone else 1)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.complaints = []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.addCleanup(self.context.close)

    def tearDown(self):
        unprovoked = [text for text in self.complaints if not any(part in text for part in self.provoked)]
        self.assertEqual(unprovoked, [])

    def open(self):
        """Opens the page and waits until its board is live."""
        self.page.goto(self.cluster.url)
        expect(self.page.locator("#feed")).to_have_text("live")

    def shot(self, name, full=True):
        # Bars grow to their lengths within 200 ms.
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)

    def ask(self, prompt, **fields):
        """Fills the form, without sending it."""
        self.page.fill("#prompt", prompt)
        for name, value in fields.items():
            if name == "codec":
                self.page.select_option("#codec", value)
            else:
                self.page.fill(f"#{name}", str(value))

    def answered(self):
        """Waits until what runs has ended well."""
        expect(self.page.locator("#status")).to_have_text(re.compile(r"^(Done|Compared)\."), timeout=ANSWER_MS)

    def newest(self):
        """The board's newest request, as a row of the page and as an object."""
        request = self.cluster.board()["requests"][-1]
        return self.page.locator(f".requests li[data-number='{request['number']}']"), request
