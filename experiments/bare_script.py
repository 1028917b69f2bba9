"""What one writes without gistkit: load, read the whole prompt, answer. Run by `command`.

    python experiments/bare_script.py FOLDER INSTRUCTION INPUT NEW_TOKENS [cached]

INSTRUCTION and INPUT are the two parts of the prompt's text; `cached` reads the first into a KV
cache before, as a process that answers many inputs would. Imports nothing of this project, and of
transformers only the model's own class and a fast tokenizer: FOLDER must hold a Llama.
"""

import sys
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaForCausalLM

folder, instruction, text, new_tokens = sys.argv[1:5]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
prompt = tokenizer(instruction + text, return_tensors="pt")
cache = None
if "cached" in sys.argv[5:]:
    cache = DynamicCache(config=model.config)
    read = tokenizer(instruction, return_tensors="pt")
    with torch.inference_mode():
        model(**read, past_key_values=cache, logits_to_keep=1)
output = model.generate(
    **prompt,
    past_key_values=cache,
    do_sample=False,
    min_new_tokens=int(new_tokens),
    max_new_tokens=int(new_tokens),
)
new = output[0, prompt.input_ids.shape[1] :]
print(tokenizer.decode(new, skip_special_tokens=True))
