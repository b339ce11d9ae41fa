"""The API's description as a page."""

from playwright.sync_api import expect

from suite import PHONE, PageTest


class DocsTest(PageTest):
    def open(self):
        self.page.goto(f"{self.cluster.url}/docs")
        expect(self.page.locator("#about")).to_contain_text("Version")
        self.page.get_by_text("/v1/chat/completions", exact=True).click()


class Docs(DocsTest):
    def test_every_route_is_told_with_its_fields(self):
        self.open()
        described = self.page.evaluate("fetch('/openapi.json').then((answer) => answer.json())")
        routes = sum(len(methods) for methods in described["paths"].values())
        expect(self.page.locator("details")).to_have_count(routes)
        field = self.page.locator("details[open] tr", has_text="max_completion_tokens").first
        expect(field).to_be_visible()
        self.shot("docs-light", full=False)


class DocsOnPhone(DocsTest):
    viewport = PHONE
    is_phone = True
    scheme = "dark"

    def test_nothing_is_wider_than_the_screen(self):
        self.open()
        self.shot("docs-phone", full=False)
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        self.assertEqual(wider, 0)
