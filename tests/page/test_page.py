"""The page as a whole: that it opens, what it shows of the cluster, themes, and its end."""

import re
import unittest

from playwright.sync_api import expect

import suite
from suite import PageTest


class Opening(PageTest):
    def test_it_opens_with_the_cluster_and_the_requests_so_far(self):
        self.open()
        expect(self.page.locator("#model")).to_have_text("tiny-llama")
        expect(self.page.locator(".nodes .node")).to_have_count(2)
        expect(self.page.locator(".links li")).to_have_count(1)
        expect(self.page.locator("#saved")).to_have_text(re.compile(r"[KM]iB$"))
        self.assertGreaterEqual(self.page.locator(".requests li").count(), 10)
        codecs = self.page.locator("#codecs tbody th").all_inner_texts()
        self.assertLessEqual({"raw", "kvtc"}, set(codecs))
        self.shot("desktop-light")

    def test_everything_comes_from_the_router(self):
        asked = []
        self.page.on("request", lambda request: asked.append(request.url))
        self.open()
        self.assertGreater(len(asked), 10)
        self.assertEqual([url for url in asked if not url.startswith(self.cluster.url)], [])

    def test_a_request_opens_to_its_details(self):
        self.open()
        self.page.locator(".requests summary").first.click()
        details = self.page.locator(".requests li").first.locator(".facts")
        for words in ("Request", "Nodes", "Phases", "prefill"):
            expect(details).to_contain_text(words)
        expect(details).to_contain_text(re.compile("[0-9a-f]{8}-[0-9a-f]{4}"))


class Themes(PageTest):
    scheme = "dark"

    def ground(self):
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")

    def test_the_systems_theme_is_taken_until_another_is_chosen_and_remembered(self):
        self.open()
        self.shot("desktop-dark")
        dark = self.ground()
        toggle = self.page.locator("#theme")
        expect(toggle).to_have_text("Theme: auto")
        toggle.click()
        expect(toggle).to_have_text("Theme: light")
        light = self.ground()
        self.assertNotEqual(light, dark)
        self.page.reload()
        expect(toggle).to_have_text("Theme: light")
        self.assertEqual(self.ground(), light)
        toggle.click()
        self.assertEqual(self.ground(), dark)

    def test_without_storage_the_toggle_works_all_the_same(self):
        self.page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied') } })")
        self.open()
        dark = self.ground()
        self.page.locator("#theme").click()
        self.assertNotEqual(self.ground(), dark)


class Ending(unittest.TestCase):
    """Named so that it runs by itself: it ends a cluster of its own."""

    def test_an_open_page_does_not_keep_the_router_from_ending(self):
        browser, cluster = suite.shared()["browser"], suite.Cluster()
        page = browser.new_page()
        self.addCleanup(page.close)
        page.goto(cluster.url)
        expect(page.locator("#feed")).to_have_text("live")
        self.assertTrue(cluster.end(), "".join(cluster.said))
        expect(page.locator("#feed")).to_have_text("reconnecting")
