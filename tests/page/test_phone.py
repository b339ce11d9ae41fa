"""The page on a phone of 360 pixels: one column, nothing beyond the edge."""

import re

from playwright.sync_api import expect

from suite import ANSWER_MS, PHONE, PageTest

# Elements that reach beyond the page's right edge, but for those inside boxes that scroll or clip by themselves.
BEYOND = """() => [...document.body.querySelectorAll("*")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest(".text, .phases, .hidden"))
    .map((e) => e.tagName + "." + e.className)"""


class Phone(PageTest):
    viewport = PHONE
    is_phone = True

    def fits(self):
        self.assertEqual(self.page.evaluate("document.documentElement.scrollWidth"), PHONE["width"])
        self.assertEqual(self.page.evaluate(BEYOND), [])

    def test_nothing_is_wider_than_the_screen(self):
        self.open()
        self.fits()
        self.page.locator(".requests summary").first.click()
        self.fits()
        self.shot("phone-light")
        self.page.emulate_media(color_scheme="dark")
        self.shot("phone-dark")

    def test_a_comparison_fits_too(self):
        self.open()
        self.page.click("[data-sample=long]")
        self.page.fill("#max_tokens", "8")
        self.page.select_option("#codec", "kvtc")
        self.page.click("#compare")
        self.answered()
        self.fits()
        boxes = [answer.bounding_box() for answer in self.page.locator(".compared .answer").all()]
        self.assertGreater(boxes[1]["y"], boxes[0]["y"], "one below the other")
        self.shot("phone-compare")

    def test_fingers_find_the_buttons(self):
        self.open()
        for button in self.page.locator("#ask button:visible, #theme, .segments span").all():
            self.assertGreaterEqual(button.bounding_box()["height"], 40, button.inner_text())
        # Smaller type in a field makes a phone zoom in when the field gets the focus.
        sizes = self.page.evaluate("[...document.querySelectorAll('#ask textarea, #ask select, #ask input[type=number]')]"
                                   ".map((e) => parseFloat(getComputedStyle(e).fontSize))")
        self.assertGreaterEqual(min(sizes), 16)
