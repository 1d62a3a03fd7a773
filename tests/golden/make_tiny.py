"""Makes the golden files: tiny random models, and what `transformers` computes with them.

Usage: `python make_tiny.py OUT` (in the oracles' virtual environment, see `tests/oracles/requirements.txt`). The files
beside this script are its output; `make oracles` makes them anew and compares.

Each model is a whole Hugging Face folder, small enough for git, with two files more:

* `golden.safetensors`, all computed in f32 with eager attention:
  `input_ids` (T) and their `logits` (T, vocabulary); `greedy_ids` (n), the greedy continuation of `input_ids`;
  `batch_ids` (2, L) with `batch_labels` (2, L), where -100 is not learnt (the prompt, the padding at the end), their
  mean `loss` over learnt tokens, and the loss's `gradient` in `gradient_of` = `model.layers.0.self_attn.q_proj.weight`.
* `preferences.safetensors`, beside the fine-tuned twin alone: the losses of `preferences` below, with the twin as the
  model that learns and its base as the reference, and their gradients as above.
* `golden.json`: texts with their token ids, and conversations with their rendered prompt and its token ids.

The models are drawn at random with large weights, so that attention is peaked and each part of the forward pass shows
in the logits, and seeds are such that no greedy choice is a near tie.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

TOKENS = 48
GREEDY = 24
# A greedy step's lead over the second choice: far above what f32 sums in another order may move.
GREEDY_MARGIN = 0.02

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

TEXTS = [
    "Hello, world!",
    " leading space and  two   spaces\n\n\tand a tab",
    "numbers 1 22 333 4444 and 3.14",
    "naïve café, straße, 東京, 🦀🦀, e\u0301",
    "",
    "I'll say it's what we've got; THEY'RE here",
]
CHATS = [
    ([{"role": "user", "content": "Who are you?"}], True),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What's 12 + 30? "}], True),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello, you."},
            {"role": "user", "content": "And now 東京?"},
        ],
        True,
    ),
    ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you."}], False),
]
CORPUS = [
    "the user said hello and the assistant said hello to the user",
    "what is the name of the one that you are and where are you from",
    "this is not that and these are not those, and there it is then",
] * 4


def make_tokenizer(folder: Path, style: str, vocab: int) -> None:
    """Writes a byte-level BPE tokenizer of exactly `vocab` tokens, its special tokens first, and its chat template."""
    special = {
        "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[style]
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    if style == "smollm":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        split = Regex(LLAMA3_SPLIT if style == "llama3" else QWEN_SPLIT)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), byte_level])
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == vocab, tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "bos_token": special[0] if style == "llama3" else "<|im_start|>",
        "eos_token": "<|eot_id|>" if style == "llama3" else "<|im_end|>",
        "model_max_length": 512,
    }
    template = {"smollm": SMOLLM, "llama3": LLAMA3, "qwen": CHATML}[style]
    if style == "qwen":  # The newer way: a file of its own.
        (folder / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Draws every weight: linears with a gain of 1.2, norms around 1, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(0.2 * noise)
            else:
                tensor.copy_(1.2 * noise / tensor.shape[1] ** 0.5)


def weights(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's tensors as they are stored; a tied output head is left out."""
    tied = model.config.tie_word_embeddings
    state = model.state_dict()
    return {k: v.to(dtype).contiguous() for k, v in state.items() if not (tied and k == "lm_head.weight")}


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Writes the tensors as one safetensors file or several with an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    files = {
        name: f"model-{1 + i * shards // len(names):05}-of-{shards:05}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        part = {name: tensors[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})


def load(folder: Path) -> torch.nn.Module:
    """Opens a folder as every check does: f32, eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def golden(model: torch.nn.Module, seed: int, greedy: bool = True) -> dict[str, torch.Tensor]:
    """What `transformers` computes with the model; see the head of this file."""
    generator = torch.Generator().manual_seed(seed + 1)
    vocab = model.config.vocab_size
    draw = lambda count: torch.randint(5, vocab, (count,), generator=generator)  # noqa: E731
    ids = draw(TOKENS)
    with torch.no_grad():
        out = {"input_ids": ids, "logits": model(ids[None]).logits[0].clone()}
    if greedy:
        out["greedy_ids"] = greedy_ids(model, ids)

    lengths, prompts, width = (24, 17), (9, 5), 24
    batch = torch.zeros(2, width, dtype=torch.long)
    labels = torch.full((2, width), -100)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        batch[row, :length] = draw(length)
        labels[row, prompt:length] = batch[row, prompt:length]
    model.zero_grad()
    logits = model(batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    out |= {"batch_ids": batch, "batch_labels": labels, "loss": loss.detach()[None], "gradient": gradient.clone()}
    return out


def preferences(
    model: torch.nn.Module, reference: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Preference losses of the golden batch's two sequences, a and b.

    DPO and its kin: the mean over the pairs a over b, b over a and a over b, with beta 0.1. KTO: the mean over a, good, and b,
    bad, each with the other as the answer to another prompt; a weighs 1.5, b weighs 0.7.
    """
    logsigmoid, relu = torch.nn.functional.logsigmoid, torch.nn.functional.relu
    learnt = labels[:, 1:] != -100
    counts = learnt.sum(dim=1)

    def likelihoods(network: torch.nn.Module) -> torch.Tensor:
        logs = network(ids).logits[:, :-1].log_softmax(-1)
        return (logs.gather(2, ids[:, 1:, None])[..., 0] * learnt).sum(dim=1)

    with torch.no_grad():
        before = likelihoods(reference)
    beta, smoothing, beside = 0.1, 0.1, 0.5
    chosen, rejected = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])

    def loss(kind: str) -> torch.Tensor:
        now = likelihoods(model)
        rewards = now - before
        if kind == "ipo":
            rewards = rewards / counts
        margins = rewards[chosen] - rewards[rejected]
        if kind == "sigmoid":
            ordered = (1 - smoothing) * logsigmoid(beta * margins) + smoothing * logsigmoid(-beta * margins)
            return (-ordered - beside * now[chosen] / counts[chosen]).mean()
        if kind == "hinge":
            return relu(1 - beta * margins).mean()
        if kind == "ipo":
            return ((margins - 1 / (2 * beta)) ** 2).mean()
        divergence = rewards.mean().clamp(min=0).detach()
        good, bad = torch.sigmoid(beta * (rewards[0] - divergence)), torch.sigmoid(beta * (divergence - rewards[1]))
        return (1.5 * (1 - good) + 0.7 * (1 - bad)) / 2

    out = {}
    for kind in ("sigmoid", "hinge", "ipo", "kto"):
        model.zero_grad()
        value = loss(kind)
        value.backward()
        out[f"{kind}_loss"] = value.detach()[None]
        out[f"{kind}_gradient"] = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    return out


def greedy_ids(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The greedy continuation, by whole forward passes; fails on a near tie or on an early end."""
    prompt = ids.clone()
    with torch.no_grad():
        for _ in range(GREEDY):
            first, second = model(ids[None]).logits[0, -1].topk(2).values
            assert first - second > GREEDY_MARGIN, f"near tie: {first} {second}"
            ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    assert model.config.eos_token_id not in ids[len(prompt) :].tolist()
    return ids[len(prompt) :]


def golden_text(folder: Path) -> dict[str, list]:
    """Texts and conversations as `transformers` tokenises them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS]
    chats = []
    for messages, prompt in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        chats.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": ids})
    return {"texts": texts, "chats": chats}


def make_model(
    folder: Path, config: object, style: str, dtype: torch.dtype, shards: int, seed: int, keys: dict
) -> None:
    """Makes one folder. `keys` are what `config.json` says beyond `transformers`' own keys or instead of them."""
    folder.mkdir(parents=True)
    make_tokenizer(folder, style, config.vocab_size)
    model = AutoModelForCausalLM.from_config(config)
    draw_weights(model, seed)
    save_weights(folder, weights(model, dtype), shards)
    written = config.to_diff_dict() | {"architectures": [type(model).__name__]} | keys
    write_json(folder / "config.json", {k: v for k, v in written.items() if v is not None})
    save_file(golden(load(folder), seed), folder / "golden.safetensors")
    # One text or conversation a line, so that a difference can be read.
    lists = []
    for key, items in golden_text(folder).items():
        lines = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in items)
        lists.append(f' "{key}": [\n  {lines}\n ]')
    (folder / "golden.json").write_text("{\n" + ",\n".join(lists) + "\n}\n")


def make_fine_tuned(folder: Path, base: Path, seed: int) -> None:
    """Makes a fine-tuned twin: each linear moved by a structured and a noisy part (‖Δ‖ ≈ 8 % of ‖W‖), norms by 1 %."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "golden.json"):
        (folder / name).write_text((base / name).read_text())
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor += 0.01 * noise(*tensor.shape)
        elif "proj" in name:
            rows, cols = tensor.shape
            delta = noise(rows, 2) @ noise(2, cols) + noise(rows, cols)
            tensor += 0.08 * delta * tensor.norm() / delta.norm()
    save_weights(folder, tensors, 1)
    found = golden(load(folder), seed)
    save_file(found, folder / "golden.safetensors")
    judged = preferences(load(folder), load(base), found["batch_ids"], found["batch_labels"])
    save_file(judged, folder / "preferences.safetensors")


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection in GGUF's order: the two halves of each head interleaved (Llama only)."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def make_gguf(path: Path, base: Path, kind: gguf.GGMLQuantizationType, embedding: gguf.GGMLQuantizationType) -> None:
    """Writes `base` as a GGUF file as llama.cpp's converter does: `kind` for linears, f32 for norms."""
    config = json.loads((base / "config.json").read_text())
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_token_list(vocab)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(json.loads((base / "tokenizer_config.json").read_text())["chat_template"])
    for name, tensor in load_file(base / "model.safetensors").items():
        values = tensor.numpy()
        if "q_proj" in name:
            values = permute(values, config["num_attention_heads"])
        elif "k_proj" in name:
            values = permute(values, config["num_key_value_heads"])
        stored = gguf.GGMLQuantizationType.F32 if "norm" in name else embedding if "embed" in name else kind
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads a Llama GGUF file back as Hugging Face tensors in f32, with nothing of this project's in between."""
    reader = gguf.GGUFReader(str(path))
    heads = reader.fields["llama.attention.head_count"].contents()
    kv_heads = reader.fields["llama.attention.head_count_kv"].contents()
    layers = reader.fields["llama.block_count"].contents()
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in GGUF_NAMES]
    tensors = {}
    for name in names:
        values = stored[gguf_name(name)]
        if "q_proj" in name or "k_proj" in name:
            n = heads if "q_proj" in name else kv_heads
            rows, cols = values.shape
            values = values.reshape(n, rows // n // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors


def make_all(out: Path) -> None:
    """Makes every golden file under `out`."""
    torch.set_num_threads(1)
    llama = LlamaConfig(
        vocab_size=288,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    # What transformers 5 writes: rope_parameters.
    make_model(out / "tiny-llama", llama, "smollm", torch.float32, 1, 15, {"dtype": "float32"})
    make_fine_tuned(out / "tiny-llama-ft", out / "tiny-llama", 24)

    # What transformers 4 wrote: rope_theta, rope_scaling and torch_dtype; odd widths; biases; a head of its own.
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    llama3 = LlamaConfig(
        vocab_size=300,
        hidden_size=72,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=12,
        intermediate_size=100,
        tie_word_embeddings=False,
        attention_bias=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=4,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    old = {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "float16"}
    make_model(out / "tiny-llama3", llama3, "llama3", torch.float16, 1, 35, old | {"dtype": None})

    qwen3 = Qwen3Config(
        vocab_size=288,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=24,
        intermediate_size=80,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        bos_token_id=0,
        eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    old = {"rope_parameters": None, "rope_theta": 1000000.0, "rope_scaling": None, "torch_dtype": "bfloat16"}
    make_model(out / "tiny-qwen3", qwen3, "qwen", torch.bfloat16, 2, 50, old | {"dtype": None})

    folder, base = out / "tiny-llama-gguf", out / "tiny-llama"
    folder.mkdir()
    kinds = gguf.GGMLQuantizationType
    make_gguf(folder / "f32.gguf", base, kinds.F32, kinds.F32)
    for name, kind in (("q8_0", kinds.Q8_0), ("q4_1", kinds.Q4_1)):
        path = folder / f"{name}.gguf"
        make_gguf(path, base, kind, kinds.Q8_0)
        model = load(base)
        model.load_state_dict(gguf_weights(path), strict=False)
        computed = golden(model, 15, greedy=False)
        save_file({k: computed[k] for k in ("input_ids", "logits")}, folder / f"{name}.golden.safetensors")


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
