from __future__ import annotations

import pytest
import torch

from llamafarm.errors import ModelError
from llamafarm.models._generate import Sampling, _end_tokens, generate
from llamafarm.models._load import load_for_generation

PROMPTS = ["Turn on", [{"role": "user", "content": "Close the blinds"}], "What is the temperature in the"]
SHORT = Sampling(max_new_tokens=10)


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def loaded(request, tiny_model_dir):
    return load_for_generation(str(tiny_model_dir(request.param)))


def test_a_batch_answers_as_one_by_one(loaded):
    model, tokenizer = loaded
    together = generate(model, tokenizer, PROMPTS, SHORT)
    assert together == [generate(model, tokenizer, [prompt], SHORT)[0] for prompt in PROMPTS]
    assert together == generate(model, tokenizer, PROMPTS, SHORT, batch_size=2)


def test_greedy_takes_the_likeliest_token(loaded):
    model, tokenizer = loaded
    ids = tokenizer(PROMPTS[0])["input_ids"]
    for _ in range(SHORT.max_new_tokens):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[len(tokenizer(PROMPTS[0])["input_ids"]) :], skip_special_tokens=True)
    assert generate(model, tokenizer, PROMPTS[:1], SHORT) == [expected]


def test_sampling_repeats_with_its_seed_and_leaves_torch_alone(loaded):
    model, tokenizer = loaded
    state = torch.get_rng_state()
    first, second, other = (
        generate(model, tokenizer, PROMPTS[:1], Sampling(20, temperature=1.0, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other
    assert torch.equal(state, torch.get_rng_state())


def test_a_tiny_top_k_is_greedy(loaded):
    model, tokenizer = loaded
    sampled = generate(model, tokenizer, PROMPTS, Sampling(10, temperature=2.0, top_k=1, seed=0))
    assert sampled == generate(model, tokenizer, PROMPTS, SHORT)


def test_streaming_hands_over_the_same_text(loaded):
    model, tokenizer = loaded
    pieces: list[str] = []
    answers = generate(model, tokenizer, PROMPTS[1:2], SHORT, stream=pieces.append)
    assert "".join(pieces) == answers[0]


def test_generation_stops_at_the_end_of_the_turn(loaded):
    model, tokenizer = loaded
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|user|>' }}{% endfor %}"  # <|user|> closes a turn here
    )
    ends = _end_tokens(model, tokenizer, [PROMPTS[1]])
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")}
    forced = torch.nn.Linear(64, len(tokenizer))
    with torch.no_grad():
        forced.weight.zero_()
        forced.bias.zero_()
        forced.bias[tokenizer.convert_tokens_to_ids("<|user|>")] = 1
    head = model.get_output_embeddings()
    model.set_output_embeddings(forced)
    try:
        assert generate(model, tokenizer, [PROMPTS[1]], Sampling(5)) == [""]
    finally:
        model.set_output_embeddings(head)


def test_chats_need_a_template(tiny_model_dir):
    model, tokenizer = load_for_generation(str(tiny_model_dir("llama")))
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="LF-MODEL-030"):
        generate(model, tokenizer, PROMPTS[1:2], SHORT)
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(ModelError, match=r"refuses these messages: no system messages \[LF-MODEL-031\]"):
        generate(model, tokenizer, PROMPTS[1:2], SHORT)


def test_an_empty_prompt_is_answered(loaded):
    model, tokenizer = loaded
    assert len(generate(model, tokenizer, [""], Sampling(3))) == 1
