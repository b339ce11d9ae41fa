"""What goes wrong is told in words, where it went wrong."""

import json

from playwright.sync_api import expect

from suite import PageTest

STREAM = "text/event-stream"
COMPLETIONS = "**/v1/completions"


def denied(route):
    error = {"message": "wrong API key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    route.fulfill(status=401, content_type="application/json", body=json.dumps({"error": error}))


class Errors(PageTest):
    provoked = ("400", "401", "404", "ERR_FAILED")

    def alert(self):
        return self.page.get_by_role("alert")

    def test_the_apis_own_words_are_shown(self):
        self.open()
        self.ask("The linker reports", max_tokens=100_000)
        self.page.click("#send")
        expect(self.alert()).to_contain_text("context is 8192 tokens")
        expect(self.alert()).to_contain_text("context_length_exceeded")
        expect(self.page.locator("#send")).to_be_enabled()

    def test_the_form_refuses_what_cannot_be(self):
        self.open()
        sent = []
        self.page.on("request", lambda request: sent.append(request.url) if "/v1/" in request.url else None)
        self.ask("x", temperature=3)
        self.page.click("#send")
        self.ask("", temperature=0)
        self.page.click("#send")
        expect(self.page.locator("#status")).to_contain_text("Write a prompt first")
        self.assertEqual(sent, [])

    def test_an_unreachable_router_and_a_broken_answer(self):
        self.open()
        self.page.route(COMPLETIONS, lambda route: route.abort())
        self.page.click("#send")
        expect(self.alert()).to_have_text("The router cannot be reached.")
        self.page.unroute(COMPLETIONS)
        half = f"data: {json.dumps({'choices': [{'text': 'half'}]})}\n\n"
        self.page.route(COMPLETIONS, lambda route: route.fulfill(content_type=STREAM, body=half))
        self.page.click("#send")
        expect(self.alert()).to_have_text("The answer broke off before its end.")
        expect(self.page.locator(".answer .text")).to_have_text("half")

    def test_an_error_inside_a_stream(self):
        self.open()
        error = {"error": {"message": "decode node d1 was lost", "type": "server_error", "code": "node_lost"}}
        self.page.route(COMPLETIONS, lambda route: route.fulfill(content_type=STREAM, body=f"data: {json.dumps(error)}\n\n"))
        self.page.click("#send")
        expect(self.alert()).to_have_text("decode node d1 was lost (node_lost)")

    def test_texts_of_the_model_stay_text(self):
        self.open()
        evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
        chunk = {"choices": [{"text": evil, "finish_reason": "stop"}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        self.page.route(COMPLETIONS, lambda route: route.fulfill(content_type=STREAM, body=body))
        self.page.click("#send")
        self.answered()
        expect(self.page.locator(".answer .text")).to_have_text(evil)
        self.assertEqual(self.page.locator("#answers img, #answers script").count(), 0)


class Keys(PageTest):
    provoked = ("401",)

    def test_a_key_is_asked_for_and_goes_with_requests_and_feed(self):
        def guard(route):
            if route.request.headers.get("authorization") == "Bearer secret":
                route.continue_()
            else:
                denied(route)

        self.page.route(COMPLETIONS, guard)
        self.page.route("**/v1/models", guard)
        self.page.route("**/board/events", guard)
        self.page.goto(self.cluster.url)
        expect(self.page.locator("#feed")).to_have_text("needs a key")
        self.page.click("#send")
        expect(self.page.get_by_role("alert")).to_contain_text("An API key is needed")
        self.page.fill("#key", "secret")
        self.page.press("#key", "Tab")
        expect(self.page.locator("#feed")).to_have_text("live")
        self.page.click("#send")
        self.answered()
        stored = self.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        self.assertNotIn("secret", stored)
