"""The playground: answers that stream, what the board shows of them, raw against coded, chat."""

import json
import re

from playwright.sync_api import expect

from suite import ANSWER_MS, PageTest

# Notes when pieces of the first answer come.
WATCH = """() => {
    window.pieces = [];
    new MutationObserver((records) => {
        for (const record of records) for (const node of record.addedNodes)
            if (node.nodeType === Node.TEXT_NODE && record.target.matches(".answer .text"))
                window.pieces.push([performance.now(), node.data]);
    }).observe(document.getElementById("answers"), { childList: true, subtree: true });
}"""


class Completion(PageTest):
    def test_tokens_stream_in_and_the_bytes_appear_on_the_board(self):
        self.open()
        self.page.evaluate(WATCH)
        before = self.page.locator(".requests li").first.get_attribute("data-number")
        self.page.click("[data-sample=long]")
        self.assertGreater(len(self.page.input_value("#prompt")), 3000)
        self.page.select_option("#codec", "kvtc")
        self.page.fill("#max_tokens", "24")
        self.page.click("#send")
        self.answered()
        pieces = self.page.evaluate("window.pieces")
        text = self.page.locator(".answer .text").inner_text()
        self.assertGreater(len(pieces), 3, pieces)
        self.assertEqual("".join(piece for _, piece in pieces).strip(), text.strip())
        self.assertGreater(len({round(at) for at, _ in pieces}), 2, "it came all at once")
        facts = self.page.locator(".answer .facts")
        for words in ("First token", "Prompt", "kvtc, tier 32"):
            expect(facts).to_contain_text(words)

        row, request = self.newest()
        self.assertGreater(request["number"], int(before))
        report = request["kv_transfer"]
        self.assertGreater(report["raw_bytes"], 10 * report["wire_bytes"])
        expect(row.locator(".bytes")).to_contain_text(re.compile(r"MiB → [\d.]+ KiB · [\d.]+×"))
        expect(row.locator(".state")).to_have_text("done")
        widths = [row.locator(f".bytes .{kind}").bounding_box()["width"] for kind in ("raw", "wire-bytes")]
        self.assertGreater(widths[0], 5 * widths[1])
        for phase in ("prefill", "encode", "wire", "decode"):
            self.assertGreater(row.locator(f".phases .{phase}").bounding_box()["width"], 0, phase)

    def test_a_running_request_is_on_the_board_while_it_runs(self):
        self.open()
        self.ask("The linker reports", max_tokens=4000)
        self.page.click("#send")
        row = self.page.locator(".requests li[data-state=decode]")
        expect(row).to_have_count(1)
        counted = row.locator(".who .words")

        def tokens():
            return int(re.search(r"in, ([\d,]+) of 4,000 out", counted.inner_text()).group(1).replace(",", ""))

        first = tokens()
        self.page.wait_for_timeout(1500)
        self.assertGreater(tokens(), first)
        self.shot("desktop-running", full=False)
        self.page.keyboard.press("Escape")
        expect(self.page.locator("#status")).to_have_text("Stopped.")
        expect(self.page.locator(".requests li").first).to_have_attribute("data-state", "cancelled")

    def test_raw_against_coded_shows_both_side_by_side(self):
        self.open()
        self.page.click("[data-sample=long]")
        self.page.select_option("#codec", "kvtc")
        self.page.fill("#max_tokens", "12")
        self.page.click("#compare")
        expect(self.page.locator(".compared .answer")).to_have_count(2, timeout=ANSWER_MS)
        self.answered()
        expect(self.page.locator(".verdict")).to_have_text(
            re.compile(r"First token [\d.]+ times (sooner|later), .+ fewer on the wire, (the same|another) text\."))
        raw, coded = self.page.locator(".compared .answer").all()
        widths = [answer.locator(".bytes .wire-bytes").bounding_box()["width"] for answer in (raw, coded)]
        self.assertGreater(widths[0], 10 * widths[1], "bars on one scale")
        for answer in (raw, coded):
            expect(answer.locator(".facts")).to_contain_text(re.compile(r"First token\s*[\d.]+ m?s"))
        reports = [request["kv_transfer"] for request in self.cluster.board()["requests"][-2:]]
        self.assertEqual([report["codec"] for report in reports], ["raw", "kvtc"])
        self.assertGreater(reports[0]["wire_bytes"], reports[0]["raw_bytes"])
        self.shot("desktop-compare-light")
        self.page.emulate_media(color_scheme="dark")
        self.shot("desktop-compare-dark")

    def test_the_keyboard_is_enough(self):
        self.open()
        self.page.keyboard.press("Tab")
        self.assertEqual(self.focused(), "skip")
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Tab")
        seen = [self.focused()]
        for _ in range(16):
            self.page.keyboard.press("Tab")
            seen.append(self.focused())
            outline = self.page.evaluate("""() => [document.activeElement, document.activeElement.nextElementSibling]
                .some((e) => e && getComputedStyle(e).outlineStyle !== "none")""")
            self.assertTrue(outline, f"no focus ring on {seen[-1]}")
        for control in ("max_tokens", "temperature", "top_p", "seed", "codec", "tier", "send", "compare"):
            self.assertIn(control, seen)
        self.page.focus("#prompt")
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type("The compiler says")
        self.page.keyboard.press("Control+Enter")
        self.answered()
        self.assertTrue(self.page.locator(".answer .text").inner_text())

    def focused(self):
        return self.page.evaluate("document.activeElement.id || document.activeElement.className")


CHAT = "**/v1/chat/completions"


def chat_stream(*pieces):
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


class Chat(PageTest):
    provoked = ("404",)

    def choose_chat(self):
        self.open()
        self.page.locator(".segments").get_by_text("Chat").click()

    def test_a_conversation_goes_on_and_begins_anew(self):
        asked = []

        def answer(route):
            asked.append(route.request.post_data_json)
            route.fulfill(content_type="text/event-stream", body=chat_stream("Hel", "lo"))

        self.page.route(CHAT, answer)
        self.choose_chat()
        for message in ("Good morning", "And now?"):
            self.ask(message)
            self.page.click("#send")
            self.answered()
        said = [("user", "Good morning"), ("assistant", "Hello"), ("user", "And now?")]
        self.assertEqual([(turn["role"], turn["content"]) for turn in asked[1]["messages"]], said)
        self.assertNotIn("prompt", asked[1])
        expect(self.page.locator(".answer .text").last).to_have_text("Hello")
        self.page.click("#restart")
        expect(self.page.locator(".answer")).to_have_count(0)
        self.ask("Again")
        self.page.click("#send")
        self.answered()
        self.assertEqual(len(asked[2]["messages"]), 1)

    def test_a_router_without_chat_is_told_in_words(self):
        missing = {"error": {"message": "there is nothing here", "type": "t", "param": None, "code": "not_found"}}
        self.page.route(CHAT, lambda route: route.fulfill(status=404, body=json.dumps(missing)))
        self.choose_chat()
        self.ask("Hello")
        self.page.click("#send")
        expect(self.page.get_by_role("alert")).to_have_text("This router does not serve chat. Choose Completion.")

    def test_the_router_itself_answers_or_says_that_it_does_not(self):
        hello = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        has_chat = self.cluster.status("/v1/chat/completions", hello) == 200
        self.choose_chat()
        self.ask("Hello", max_tokens=4)
        self.page.click("#send")
        if has_chat:
            self.answered()
            expect(self.page.locator(".answer .state")).to_contain_text("done")
        else:
            expect(self.page.get_by_role("alert")).to_contain_text("does not serve chat")
