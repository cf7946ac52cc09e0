"""Greedy tokens by vLLM, in a process of its own: the ids for each prompt, as JSON in a file.

python tests/integrations/vllm_greedy.py FOLDER METHOD MODE TOKENS PROMPTS OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, method, mode, tokens, prompts, output = sys.argv[1:]
    model = LLM(
        model=folder,
        load_format="reallm",
        quantization=method,
        dtype="float32",
        max_model_len=96,
        max_num_seqs=4,
        gpu_memory_utilization=0.2,  # of the machine's memory, on the CPU
        enforce_eager=mode == "eager",
    )
    greedy = SamplingParams(temperature=0, max_tokens=int(tokens), ignore_eos=True)
    given = [{"prompt_token_ids": ids} for ids in json.loads(prompts)]
    made = model.generate(given, greedy)
    ids = [list(one.outputs[0].token_ids) for one in made]
    Path(output).write_text(json.dumps(ids), encoding="utf-8")
