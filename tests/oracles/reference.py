"""The same things as this project does, written plainly in PyTorch and NumPy, sharing none of its code."""

import copy as copying
import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import make_tiny
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

IGNORED = -100

# The linears that a delta covers.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load_gguf(path: Path) -> LlamaForCausalLM:
    """A Llama GGUF file as an f32 PyTorch model with eager attention."""
    fields = gguf.GGUFReader(str(path)).fields
    get = lambda key: fields[f"llama.{key}"].contents()  # noqa: E731
    config = LlamaConfig(
        vocab_size=get("vocab_size"),
        hidden_size=get("embedding_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        intermediate_size=get("feed_forward_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=get("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"].contents(),
        eos_token_id=fields["tokenizer.ggml.eos_token_id"].contents(),
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = make_tiny.gguf_weights(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    # The rotary frequencies are no weights: build that module for real.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval()


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A GGUF file's byte-level BPE tokenizer of the kind `smollm`, with its chat template."""
    fields = gguf.GGUFReader(str(path)).fields
    get = lambda key: fields[f"tokenizer.{key}"].contents()  # noqa: E731
    assert get("ggml.pre") == "smollm"
    tokens, types = get("ggml.tokens"), get("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in get("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[get("ggml.bos_token_id")],
        eos_token=tokens[get("ggml.eos_token_id")],
        chat_template=get("chat_template"),
    )


def read_conversations(path: Path) -> list[list[dict]]:
    """The messages of each line of a JSONL file."""
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> tuple[list[int], list[int]]:
    """A conversation's ids, and the labels of its answers: each answer's text and the token that ends it."""
    render = lambda part, prompt: tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)  # noqa: E731
    ids, labels = [], []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(messages[:index], True)
        assert prompt.startswith(done)
        answer = message["content"] + tokenizer.eos_token
        whole = render(messages[: index + 1], False)
        assert whole.startswith(prompt + answer)
        for text, learnt in ((prompt[len(done) :], False), (answer, True), (whole[len(prompt + answer) :], False)):
            new = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += new
            labels += new if learnt else [IGNORED] * len(new)
        done = whole
    return ids, labels


def sums(model: torch.nn.Module, examples: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, int]:
    """The summed loss over the learnt tokens of `examples`, and their number."""
    width = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in examples])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in examples])[:, 1:]
    logits = model(ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


@torch.no_grad()
def mean_loss(model: torch.nn.Module, examples: list[tuple[list[int], list[int]]], batch: int = 8) -> float:
    """The mean loss a learnt token."""
    parts = [sums(model, examples[at : at + batch]) for at in range(0, len(examples), batch)]
    return sum(loss.item() for loss, _ in parts) / sum(count for _, count in parts)


def projections(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights of the linears that a delta covers."""
    return {name: value for name, value in model.named_parameters() if name.split(".")[-2] in PROJECTIONS}


def copy(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose weights can be changed without changing the first."""
    return copying.deepcopy(model)


class LowRank(torch.nn.Module):
    """A frozen linear with two trained factors beside it: y = W x + scale · B A x."""

    def __init__(self, linear: torch.nn.Linear, rank: int, scale: float, generator: torch.Generator):
        """A starts uniform in ±1/√inputs, B as zero."""
        super().__init__()
        self.linear, self.scale = linear, scale
        bound = linear.in_features**-0.5
        self.a = torch.nn.Parameter((torch.rand(rank, linear.in_features, generator=generator) * 2 - 1) * bound)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, inputs) -> (…, outputs)."""
        return self.linear(x) + self.scale * (x @ self.a.T @ self.b.T)


def add_low_rank(model: torch.nn.Module, rank: int, scale: float, seed: int) -> list[torch.nn.Parameter]:
    """Puts factors beside every projection and returns them."""
    generator = torch.Generator().manual_seed(seed)
    trained = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in PROJECTIONS:
                adapted = LowRank(child, rank, scale, generator)
                setattr(module, name, adapted)
                trained += [adapted.a, adapted.b]
    return trained


@dataclass
class Settings:
    """A training run over the whole data a step, so that no order of examples matters."""

    learning_rate: float
    steps: int = 6
    warmup_steps: int = 1
    max_grad_norm: float = 1.0
    # Examples of one forward pass.
    batch: int = 4


FULL = Settings(learning_rate=2e-4)
LOW_RANK = Settings(learning_rate=1e-3)


def train(
    model: torch.nn.Module,
    trained: list[torch.nn.Parameter],
    examples: list[tuple[list[int], list[int]]],
    settings: Settings,
) -> None:
    """AdamW with linear warm-up, cosine decay, clipped gradients and no weight decay."""
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    learnt = sum(sum(label != IGNORED for label in labels[1:]) for _, labels in examples)
    for _ in range(settings.steps):
        for at in range(0, len(examples), settings.batch):
            loss, _ = sums(model, examples[at : at + settings.batch])
            (loss / learnt).backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.requires_grad_(False)


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes an f32 Hugging Face folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def clip(delta: np.ndarray, sigmas: float) -> np.ndarray:
    """Values beyond the mean ± `sigmas` sample standard deviations of the whole matrix are moved there."""
    reach = sigmas * delta.std(ddof=1, dtype=np.float64)
    mean = delta.mean(dtype=np.float64)
    return delta.clip(mean - reach, mean + reach).astype(np.float32)


def quantise(delta: np.ndarray, bits: int, group: int, sigmas: float | None = 3.0) -> np.ndarray:
    """The symmetric b-bit approximation of a (rows, cols) delta, groups along a row, the last one perhaps shorter.

    One bit: the sign ("+" for zeros) times the group's mean magnitude. More: (q + 1/2) · step for whole q from
    -2^(b-1) to 2^(b-1) - 1, with the step of least squared error among many.
    """
    if sigmas is not None:
        delta = clip(delta, sigmas)
    out = np.empty_like(delta)
    for start in range(0, delta.shape[1], group):
        part = delta[:, start : start + group]
        if bits == 1:
            out[:, start : start + group] = np.where(part >= 0, 1, -1) * np.abs(part).mean(axis=1, keepdims=True)
            continue
        half = 2 ** (bits - 1)
        most = np.abs(part).max(axis=1, keepdims=True)
        best, error = np.zeros_like(part), np.full((len(part), 1), np.inf)
        for share in np.linspace(0.2, 1.05, 60):
            step = most * share / (half - 0.5)
            with np.errstate(divide="ignore", invalid="ignore"):
                q = np.nan_to_num(np.floor(part / step)).clip(-half, half - 1)
            # The step of least squares for these codes.
            odd = q + 0.5
            step = (odd * part).sum(axis=1, keepdims=True) / (odd * odd).sum(axis=1, keepdims=True)
            found = ((part - odd * step) ** 2).sum(axis=1, keepdims=True)
            best, error = np.where(found < error, odd * step, best), np.minimum(found, error)
        out[:, start : start + group] = best
    return out
