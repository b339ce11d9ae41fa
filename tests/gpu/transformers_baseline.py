"""Hugging Face Transformers (SDPA, bf16, eager) on a random Llama of Llama 3.2 1B's shape: what `kvferry bench --device cuda` is compared with.

Prints one JSON line per measurement; medians of several runs after a warm-up.
"""

import json
import statistics
import time

import torch
import transformers

PROMPTS = [1024, 4096, 8192]
BATCHES = [1, 64]
CONTEXT = 1024
RUNS = 7
STEPS = 12

config = transformers.LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    attn_implementation="sdpa",
)
torch.manual_seed(1)
torch.set_default_dtype(torch.bfloat16)
model = transformers.LlamaForCausalLM(config).cuda().eval()


def timed(run):
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def report(**figures):
    print(json.dumps({"transformers": transformers.__version__, "device": torch.cuda.get_device_name(), **figures}))


with torch.inference_mode():
    for tokens in PROMPTS:
        ids = torch.randint(0, 128256, (1, tokens), device="cuda")
        run = lambda: model(ids, use_cache=True, logits_to_keep=1)
        times = [timed(run) for _ in range(RUNS + 2)][2:]
        report(prompt_tokens=tokens, prefill_ms=round(statistics.median(times), 3))
    for batch in BATCHES:
        ids = torch.randint(0, 128256, (batch, CONTEXT), device="cuda")
        cache = transformers.DynamicCache(config=config)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = torch.randint(0, 128256, (batch, 1), device="cuda")
        run = lambda: model(step, past_key_values=cache, use_cache=True)
        times = [timed(run) for _ in range(STEPS + 3)][3:]
        median = statistics.median(times)
        report(batch=batch, context=CONTEXT, step_ms=round(median, 3), tokens_per_s=round(batch / median * 1e3, 1))
