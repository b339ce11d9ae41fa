"""The `openai` SDK: completions, chat, streams, errors."""

import openai

from cluster import ANSWER_SECONDS, MODEL, ClusterTest

PROMPT = "Once upon a time"


class SdkTest(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = openai.OpenAI(base_url=f"{cls.cluster.url}/v1", api_key="unused", max_retries=0, timeout=ANSWER_SECONDS)

    def complete(self, **fields):
        fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}
        return self.client.completions.create(**fields)

    def chat(self, **fields):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}]
        fields = {"model": MODEL, "messages": messages, "max_completion_tokens": 8, "temperature": 0, **fields}
        return self.client.chat.completions.create(**fields)


class Models(SdkTest):
    def test_the_served_model_is_listed_and_retrieved(self):
        self.assertEqual([model.id for model in self.client.models.list()], [MODEL])
        self.assertEqual(self.client.models.retrieve(MODEL).id, MODEL)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")


class Completions(SdkTest):
    def test_a_greedy_text_is_the_same_whole_streamed_and_from_tokens(self):
        whole = self.complete()
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual(whole.usage.completion_tokens, 8)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks[:-1]), whole.choices[0].text)
        self.assertEqual((chunks[-1].choices, chunks[-1].usage), ([], whole.usage))
        tokens = self.client.post("../tokenize", body={"prompt": PROMPT}, cast_to=object)["tokens"]
        self.assertEqual(self.complete(prompt=tokens).choices[0].text, whole.choices[0].text)
        many = self.complete(prompt=[PROMPT, tokens[:3]])
        self.assertEqual([choice.index for choice in many.choices], [0, 1])
        self.assertEqual(many.choices[0].text, whole.choices[0].text)

    def test_a_seed_gives_the_same_text_and_choices_differ(self):
        # With kv_codec "auto" two requests may be coded differently, which changes likelihoods a little.
        fields = {"temperature": 1.5, "seed": 3, "max_tokens": 12, "extra_body": {"kv_codec": "raw"}}
        first, second = self.complete(**fields), self.complete(**fields)
        self.assertEqual(first.choices[0].text, second.choices[0].text)
        choices = self.complete(n=3, **fields).choices
        self.assertEqual([choice.index for choice in choices], [0, 1, 2])
        self.assertEqual(len({choice.text for choice in choices}), 3)

    def test_logprobs_belong_to_the_greedy_tokens(self):
        choice = self.complete(logprobs=3).choices[0]
        lists = choice.logprobs
        self.assertEqual("".join(lists.tokens), choice.text)
        for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
            self.assertLessEqual(logprob, 0)
            self.assertEqual(max(top, key=top.get), token, "greedy takes the likeliest")
            self.assertEqual(len(top), 3)
        starts = [0]
        for token in lists.tokens[:-1]:
            starts.append(starts[-1] + len(token))
        self.assertEqual(lists.text_offset, starts)

    def test_logprobs_do_not_depend_on_where_the_first_token_was_drawn(self):
        one = self.complete(logprobs=1, max_tokens=1).choices[0].logprobs.token_logprobs
        many = self.complete(logprobs=1, max_tokens=8).choices[0].logprobs.token_logprobs
        self.assertAlmostEqual(one[0], many[0], places=4)

    def test_bias_penalties_and_stops_change_the_text(self):
        plain = self.complete(logprobs=0).choices[0]
        first = plain.logprobs.tokens[0]
        ids = self.client.post("../tokenize", body={"prompt": first, "add_special_tokens": False}, cast_to=object)["tokens"]
        biased = self.complete(logit_bias={str(ids[0]): -100}).choices[0]
        self.assertFalse(biased.text.startswith(first))
        forced = self.complete(logit_bias={str(ids[0]): 100}, max_tokens=3).choices[0]
        self.assertEqual(forced.text, first * 3)
        spread = self.complete(logit_bias={str(ids[0]): 100}, max_tokens=3, extra_body={"stop_token_ids": [ids[0]]}).choices[0]
        self.assertEqual(spread.finish_reason, "stop")
        stopped = self.complete(stop=plain.text[4:7], max_tokens=8).choices[0]
        self.assertEqual((stopped.text, stopped.finish_reason), (plain.text[:plain.text.index(plain.text[4:7])], "stop"))
        repeated = self.complete(max_tokens=40, extra_body={"repetition_penalty": 5.0, "ignore_eos": True}).choices[0].text
        self.assertNotEqual(repeated, self.complete(max_tokens=40, extra_body={"ignore_eos": True}).choices[0].text)

    def test_an_echo_repeats_the_prompt(self):
        self.assertTrue(self.complete(echo=True).choices[0].text.startswith(PROMPT))

    def test_the_transfer_is_reported(self):
        answer = self.complete(prompt=PROMPT * 60, extra_body={"kv_transfer": True, "kv_codec": "kvtc"})
        transfer = answer.model_extra["kv_transfer"]
        self.assertEqual((transfer["source"], transfer["codec"]), ("remote", "kvtc"))
        self.assertGreater(transfer["raw_bytes"], 2 * transfer["wire_bytes"])
        raw = self.client.completions.with_raw_response.create(model=MODEL, prompt=PROMPT * 60, max_tokens=2)
        self.assertGreater(int(raw.headers["x-kv-raw-bytes"]), int(raw.headers["x-kv-wire-bytes"]))


class Chat(SdkTest):
    def test_a_chat_is_the_same_whole_and_streamed(self):
        whole = self.chat()
        self.assertEqual((whole.object, whole.choices[0].message.role), ("chat.completion", "assistant"))
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(chunk.choices[0].delta.content for chunk in chunks[:-1]), whole.choices[0].message.content)
        self.assertEqual((chunks[0].choices[0].delta.role, chunks[-1].usage), ("assistant", whole.usage))
        self.assertEqual(len(chunks) - 1, whole.usage.completion_tokens, "one chunk per token")

    def test_the_streaming_helper_of_the_sdk_works(self):
        messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        with self.client.chat.completions.stream(model=MODEL, messages=messages, stop=[" "]) as stream:
            for _event in stream:
                pass
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.role, "assistant")

    def test_logprobs_carry_bytes(self):
        choice = self.chat(logprobs=True, top_logprobs=2).choices[0]
        joined = bytes(byte for token in choice.logprobs.content for byte in token.bytes)
        self.assertEqual(joined.decode(errors="replace"), choice.message.content)
        self.assertTrue(all(len(token.top_logprobs) == 2 for token in choice.logprobs.content))

    def test_choices_are_counted(self):
        answer = self.chat(n=2, temperature=1.0, seed=1)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_chat_without_a_limit_ends(self):
        answer = self.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stop=["."])
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))


class Errors(SdkTest):
    def test_every_error_has_its_class_and_names_its_field(self):
        cases = [
            (openai.NotFoundError, "model", {"model": "gpt-4"}),
            (openai.BadRequestError, "temperature", {"temperature": 9}),
            (openai.BadRequestError, "max_tokens", {"max_tokens": 100_000}),
            (openai.BadRequestError, "suffix", {"suffix": "x"}),
            (openai.BadRequestError, "prompt", {"prompt": [99_999_999]}),
        ]
        for kind, param, fields in cases:
            with self.subTest(param), self.assertRaises(kind) as raised:
                self.complete(**fields)
            self.assertEqual(raised.exception.body["param"], param)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertIn("tools", str(raised.exception))
        image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(messages=[{"role": "user", "content": image}])
        self.assertIn("reads text only", str(raised.exception))
